"""What a gateway uses unless it is configured otherwise. Standard library only."""

import secrets
from typing import Final

from gatecast.emulator.sigv4 import Credentials

LOOPBACK: Final = "127.0.0.1"
REGION: Final = "us-east-1"
ACCOUNT_ID: Final = "000000000000"
CREDENTIALS: Final = Credentials("local", secrets.token_hex(20))
"""New in each process, which passes them on to its children."""
