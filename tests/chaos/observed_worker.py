"""`python -m tests.chaos.observed_worker FILE`: a worker that writes down how many tasks it has, every few seconds.

Everything else that a soak watches can be seen from outside. The worker runs as it is; a thread of its own looks on.
"""

import asyncio
import gc
import sys
import threading
import time
from pathlib import Path
from typing import Final

from worker.__main__ import main

_EVERY_SECONDS: Final = 2.0


def tasks() -> int:
    """Tasks that have not ended. Found among all objects: their loop belongs to another thread."""
    return sum(isinstance(each, asyncio.Task) and not each.done() for each in gc.get_objects())


def keep_writing(file: Path) -> None:
    while True:
        file.write_text(str(tasks()))
        time.sleep(_EVERY_SECONDS)


if __name__ == "__main__":
    threading.Thread(target=keep_writing, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main())
