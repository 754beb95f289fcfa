"""`python -m nbpulse`: the same as the `nbpulse` command."""

from nbpulse.cli import main

if __name__ == "__main__":
    main()
