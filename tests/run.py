"""All tests: `python -m tests.run`, for the Makefile.

Chaos tests come first, alone, because they compare times. Then end-to-end and integration tests, which mostly wait for
processes and clocks; beside them, with a low priority, run unit and property tests, which need a core and open no
connections. The output of these follows. Ctrl-C ends all.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_PYTEST: Final = (sys.executable, "-m", "pytest")
_CALCULATING: Final = ("tests/unit", "tests/property")
_WAITING: Final = ("tests/e2e", "tests/integration")
_COMPARING_TIMES: Final = ("tests/chaos",)
_TIMEOUT_SECONDS: Final = "400"
"""Of a test that calculates: it gets only what the others leave."""
_LOG: Final = Path(".local/test-unit.log")


def main() -> int:
    _LOG.parent.mkdir(exist_ok=True)
    comparing = subprocess.run((*_PYTEST, *_COMPARING_TIMES), check=False).returncode
    with _LOG.open("wb") as log:
        beside = subprocess.Popen(
            (*_PYTEST, "-p", "no:cacheprovider", "--timeout", _TIMEOUT_SECONDS, *_CALCULATING),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(10),  # noqa: PLW1509 - no thread has been started
        )
        try:
            waiting = subprocess.run((*_PYTEST, *_WAITING), check=False).returncode
            sys.stdout.write("\nUnit and property tests:\n")
            sys.stdout.flush()
            calculating = beside.wait()
        finally:
            beside.kill()
    sys.stdout.write(_LOG.read_text(errors="replace"))
    return max(comparing, waiting, calculating, key=abs)


if __name__ == "__main__":
    sys.exit(main())
