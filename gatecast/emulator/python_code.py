"""Python handlers in the reader's own folders: imported on start, and again when their files change.

A folder is like a function's deployment package: modules are imported from it as if it were first on Python's path.
Several folders may have modules of the same names, as in most SAM projects (`app.py`): each gets its own. What is
installed elsewhere, or in a virtual environment inside a folder, is shared and never imported again.
"""

import importlib
import logging
import sys
import threading
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from gatecast.emulator.events import Event

_log = logging.getLogger(__name__)
_importing: Final = threading.RLock()
_modules_of: Final[dict[Path, dict[str, ModuleType]]] = {}
"""What was imported from each folder, by name."""


class InvalidHandler(Exception):
    """A handler cannot be imported; the message is one line."""


class PythonHandler:
    """The function `module.name` of a folder, in the version that was imported last.

    It is imported by `load`, so that the environment can be set before. Where importing it has failed, each invocation
    raises InvalidHandler until the file is fixed. `place` says in errors where it is configured.
    """

    def __init__(self, folder: "CodeFolder", target: str, place: str = "") -> None:
        self._folder = folder
        self._target = target.replace("/", ".")
        self._place = place
        self._function: Any = None
        self._problem: InvalidHandler | None = None
        self.__name__ = self._target.rpartition(".")[2]

    def load(self) -> None:
        """Imports it. Raises InvalidHandler."""
        self._problem = None
        try:
            self._function = self._folder.function(self._target)
        except InvalidHandler as error:
            self._problem = InvalidHandler(f"{self._place}: {error}" if self._place else str(error))
            raise self._problem from error.__cause__

    def __call__(self, event: Event, context: Any) -> Any:
        if self._problem:
            raise self._problem
        if self._function is None:
            self.load()
        return self._function(event, context)

    def __repr__(self) -> str:
        return f"python:{self._target} in {self._folder}"


class CodeFolder:
    """The modules of one folder, and the handlers in them."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._modules = _modules_of.setdefault(self._path, {})
        self._handlers: list[PythonHandler] = []
        self._seen: dict[Path, int] = {}

    def __str__(self) -> str:
        here = Path.cwd()
        return str(self._path.relative_to(here) if self._path.is_relative_to(here) else self._path)

    def handler(self, target: str, place: str = "") -> PythonHandler:
        """The handler `module.function`, which is not imported yet."""
        handler = PythonHandler(self, target, place)
        self._handlers.append(handler)
        return handler

    def load(self) -> None:
        """Imports all handlers. Raises InvalidHandler for the first that cannot be imported."""
        for handler in self._handlers:
            handler.load()

    def function(self, target: str) -> Any:
        """The function of that name, as `module.function`. Raises InvalidHandler."""
        module_name, _, name = target.rpartition(".")
        if not module_name or not all(part.isidentifier() for part in target.split(".")):
            raise InvalidHandler(f"{target!r}: expected module.function")
        with _importing:
            self._put_first()
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                where = f" in {self._path}" if error.name and module_name.startswith(error.name) else f": {error}"
                raise InvalidHandler(f"{target!r}: there is no module {error.name}{where}") from error
            except (Exception, SystemExit) as error:
                raise InvalidHandler(f"{target!r}: importing {module_name} failed: {error!r}") from error
            finally:
                self._remember()
        if module_name not in self._modules and self._contains(module_name.partition(".")[0]):
            raise InvalidHandler(f"{target!r}: another {module_name} was imported before, from {module.__file__}")
        function = getattr(module, name, None)
        if not callable(function):
            raise InvalidHandler(f"{target!r}: {module_name} has no function {name}")
        return function

    def reload_if_changed(self) -> bool:
        """Imports all modules of the folder again if one of their files has changed. Whether one had."""
        current = self._times()
        changed = {file for file, modified in self._seen.items() if current.get(file) != modified}
        if not changed:
            return False
        with _importing:
            for name, module in self._modules.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]
            self._modules.clear()
            for file in changed:  # Python itself misses a change within a second that keeps the length
                Path(cache_from_source(str(file))).unlink(missing_ok=True)
            for handler in self._handlers:
                try:
                    handler.load()
                except InvalidHandler as error:
                    _log.error("handler.invalid %s", error, exc_info=error.__cause__)
            self._seen = {**self._seen, **current}
        return True

    def _put_first(self) -> None:
        """Lets imports find this folder first, and its modules rather than other folders' of the same names."""
        path = str(self._path)
        if sys.path[:1] != [path]:
            sys.path[:] = [path, *(each for each in sys.path if each != path)]
        for folder, modules in _modules_of.items():
            for name, module in modules.items() if folder != self._path else ():
                if sys.modules.get(name) is module and self._contains(name.partition(".")[0]):
                    del sys.modules[name]
        sys.modules.update(self._modules)
        importlib.invalidate_caches()

    def _contains(self, name: str) -> bool:
        return (self._path / f"{name}.py").exists() or (self._path / name).is_dir()

    def _remember(self) -> None:
        self._modules.update((name, each) for name, each in list(sys.modules.items()) if self._has(name, each))
        self._seen.update(self._times())

    def _has(self, name: str, module: ModuleType) -> bool:
        """Whether the module was imported from this folder, not from an environment inside it."""
        place = self._path.joinpath(*name.split("."))
        file = getattr(module, "__file__", None)
        return file is not None and Path(file) in {place.with_suffix(".py"), place / "__init__.py"}

    def _times(self) -> dict[Path, int]:
        """When the files of all modules were changed last, 0 where one is missing."""
        files = {Path(module.__file__) for module in self._modules.values() if module.__file__} | self._seen.keys()
        return {file: _changed_at_ns(file) for file in files}


def _changed_at_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
