"""Gatecast's public package: the broadcast's format, the table's keys and items, and a publisher."""

from gatecast.broadcast import Broadcast, InvalidBroadcast, decode, encode
from gatecast.publisher import Publisher, queue_message

__version__ = "0.1.0"

__all__ = ["Broadcast", "InvalidBroadcast", "Publisher", "__version__", "decode", "encode", "queue_message"]
