"""Becomes another program, one that does not outlive the process that started it.

`python leash.py PARENT_PID PROGRAM ARGUMENT…` replaces itself by PROGRAM, under the same process id, so that signals
reach the program. Where the kernel can (Linux), it arranges before that to be killed with its parent, which covers what
no `finally` can: a parent that dies by SIGKILL. It runs as a script, in isolation, and imports nothing of the project.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the line above
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming that program is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
