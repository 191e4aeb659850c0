"""Publishing broadcasts to the queue, from a program with an SDK client of its own.

- `queue`: how a broadcast becomes a queue message
- `publication`: what a program wants to publish, and the broadcast that it becomes
- `steps`, `batches`: what publishing does, without doing it
- `publishers`: the blocking and the asynchronous publisher, which do it
"""

from gatecast.publisher.batches import Failed, Published
from gatecast.publisher.publication import Publication
from gatecast.publisher.publishers import AsyncPublisher, Publisher
from gatecast.publisher.queue import is_fifo, queue_message

__all__ = ["AsyncPublisher", "Failed", "Publication", "Published", "Publisher", "is_fifo", "queue_message"]
