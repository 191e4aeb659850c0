"""The page that the local stack serves: join a room, publish, and see what arrives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gatecast.emulator.pages import Page

_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def pages() -> Mapping[str, Page]:
    """The files by path."""
    directory = Path(__file__).parent
    return {path: Page(kind, (directory / name).read_bytes()) for path, (name, kind) in _FILES.items()}
