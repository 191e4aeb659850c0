"""`python -m gatecast.emulator`."""

import sys

from gatecast.emulator import main

sys.exit(main())
