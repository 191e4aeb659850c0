"""All tests: `python -m tests.run`, for the Makefile.

Chaos tests come first, alone, because they compare times. The others run side by side: end-to-end and integration tests
mostly wait for processes and clocks; unit and property tests need a core, have a low priority and open no connections.
What is not printed at once is printed at the end. Ctrl-C ends all.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

_PYTEST: Final = (sys.executable, "-m", "pytest")
_TIMEOUT_SECONDS: Final = "400"
"""Of a test beside others."""
_LOGS: Final = Path(".local")


def main() -> int:
    _LOGS.mkdir(exist_ok=True)
    codes = [_run("tests/chaos")]
    with _Beside("tests/e2e") as end_to_end, _Beside("tests/unit", "tests/property", niceness=5) as calculating:
        codes += _run("--timeout", _TIMEOUT_SECONDS, "tests/integration"), end_to_end.finish(), calculating.finish()
    return max(codes, key=abs)


def _run(*arguments: str) -> int:
    return subprocess.run((*_PYTEST, *arguments), check=False).returncode


class _Beside:
    """Tests in these folders that run beside others, with their output in a file."""

    def __init__(self, *folders: str, niceness: int = 0) -> None:
        self._log = _LOGS / f"test-{Path(folders[0]).name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (*_PYTEST, "-p", "no:cacheprovider", "--timeout", _TIMEOUT_SECONDS, *folders),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.nice(niceness),  # noqa: PLW1509 - no thread has been started
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def finish(self) -> int:
        """Waits for the end, prints the output and returns the exit code."""
        code = self._process.wait()
        sys.stdout.write(self._log.read_text(errors="replace"))
        return code


if __name__ == "__main__":
    sys.exit(main())
