"""Does harm to a running nbpulse and proves that nothing was lost or doubled. `make torture MINUTES=10 SEED=1`."""
