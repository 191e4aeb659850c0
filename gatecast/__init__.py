"""Gatecast's public package: what programs publish and store, the Python client, the command line and the emulator.

Its names are imported when they are first used, so that a subpackage that is used alone, such as the emulator, needs
nothing else of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gatecast.broadcast import Broadcast, InvalidBroadcast, decode, encode
    from gatecast.publisher import AsyncPublisher, Failed, Publication, Published, Publisher, queue_message
    from gatecast.rooms import Rooms as Rooms  # not in __all__: a star import would need the extra `aws`

__version__ = "0.1.0"

__all__ = [
    "AsyncPublisher",
    "Broadcast",
    "Failed",
    "InvalidBroadcast",
    "Publication",
    "Published",
    "Publisher",
    "__version__",
    "decode",
    "encode",
    "queue_message",
]

_MODULES: Final = {
    "gatecast.broadcast": ("Broadcast", "InvalidBroadcast", "decode", "encode"),
    "gatecast.publisher": ("AsyncPublisher", "Failed", "Publication", "Published", "Publisher", "queue_message"),
    "gatecast.rooms": ("Rooms",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(module), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
