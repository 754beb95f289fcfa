"""`python -m nbpulse`: the same as the `nbpulse` command, and how the supervisor starts its parts."""

import os
import sys

from nbpulse.supervisor import SUPERVISOR_VARIABLE

if __name__ == "__main__":
    if SUPERVISOR_VARIABLE in os.environ:
        from nbpulse.parts import run_part

        run_part(*sys.argv[1:])
    else:
        from nbpulse.cli import main

        main()
