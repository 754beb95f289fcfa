"""PostgreSQL: the ledger, people and courses. The only place, with the time series, that knows asyncpg."""
