"""How many examples the property tests of histories and resumes run: a multiple in `make seam` (GATECAST_EXAMPLES)."""

import os
from typing import Final

_FACTOR: Final = int(os.environ.get("GATECAST_EXAMPLES", "1"))


def examples(number: int) -> int:
    """The value for `max_examples` of a test that runs `number` examples in `make test`."""
    return number * _FACTOR
