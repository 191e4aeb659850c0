"""`gatecast`, and `python -m gatecast.cli`: runs a command, and returns its exit code.

0 done, 1 failed, 2 an argument or the environment is wrong, 130 ended by Ctrl-C. Commands that run until they are
stopped (`tail`, `top`, `emulator`) end with 0 then. An error is one line on the standard error.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

_INTERRUPTED: Final = 130
_OF_EXTRA: Final = frozenset({
    "aiohttp", "boto3", "botocore", "prometheus_client", "rich", "typer", "websockets", "yaml",
})  # fmt: skip


def main() -> int:
    """The program. Imports nothing before Ctrl-C is handled, and ignores it while the interpreter shuts down."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as the standard error: no character is an error
    try:
        code = invoke(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. Raises KeyboardInterrupt and BrokenPipeError."""
    try:
        from gatecast.cli.app import run

        return run(arguments)
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in _OF_EXTRA:
            raise
        extra = "emulator" if name == "yaml" else "cli"
        return _fail(f"{name} is not installed: install gatecast with its extra, gatecast[{extra}]", 1)


def _fail(line: str, code: int) -> int:
    sys.stderr.write(f"gatecast: {line}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
