"""`python -m nbpulse_capture`: where the console script is not on the path, as on Windows."""

import sys

from nbpulse_capture.cli import main

sys.exit(main())
