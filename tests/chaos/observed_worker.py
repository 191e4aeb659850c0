"""`python -m tests.chaos.observed_worker FILE`: a worker that writes its number of tasks to FILE every few seconds.

The soak test can observe everything else from outside the process. The worker runs unchanged; a separate thread counts.
"""

import asyncio
import gc
import sys
import threading
import time
from pathlib import Path
from typing import Final

from worker.__main__ import main

_INTERVAL_SECONDS: Final = 2.0


def tasks() -> int:
    """Number of unfinished tasks. They are found among all objects because their event loop runs in another thread."""
    return sum(isinstance(each, asyncio.Task) and not each.done() for each in gc.get_objects())


def write_periodically(file: Path) -> None:
    while True:
        file.write_text(str(tasks()))
        time.sleep(_INTERVAL_SECONDS)


if __name__ == "__main__":
    threading.Thread(target=write_periodically, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main())
