"""Executes a program that does not outlive the process that started it.

`python die_with_parent.py PARENT_PID PROGRAM ARGUMENT…` replaces itself with PROGRAM under the same process id, so that
signals reach the program. On Linux it first asks the kernel to kill it when its parent dies, which covers the case that
no `finally` can: a parent that dies by SIGKILL. It runs as a script, isolated, and imports nothing of the project.
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
        if os.getppid() != int(parent):  # the parent died before the call above
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - executing that program is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
