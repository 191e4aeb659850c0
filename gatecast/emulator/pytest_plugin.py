"""A plugin of pytest, which an installation with `gatecast[emulator]` has: the fixture `websocket_api`.

Where it is installed and not used, it imports nothing else: neither the emulator nor its dependencies.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gatecast.emulator.testing import WebSocketApi

_OWN_VARIABLES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN")


@pytest.fixture
def websocket_api(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Callable[..., WebSocketApi]]":
    """Starts emulated APIs, which end with the test: `websocket_api({"send": app.send})`.

    It takes the arguments of `gatecast.emulator.testing.WebSocketApi`, and `endpoint_variable`, the name of a variable
    from which handlers read the endpoint of `@connections`. During the test, the environment has that variable, those
    of a file's functions, and invented AWS credentials and a Region, so that nothing reaches an account.
    """
    try:
        from gatecast.emulator.environment import invented, variables  # noqa: PLC0415 - only where it is used
        from gatecast.emulator.testing import WebSocketApi  # noqa: PLC0415
    except ModuleNotFoundError as error:
        pytest.fail(f"{error.name} is missing: websocket_api needs the extra gatecast[emulator]", pytrace=False)
    started: list[WebSocketApi] = []

    def start(*args: Any, endpoint_variable: str | None = None, **kwargs: Any) -> "WebSocketApi":
        api = WebSocketApi(*args, **kwargs)
        started.append(api)
        for name in _OWN_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        given = {**invented(api.config.region), **api.config.environment}
        if endpoint_variable:
            given[endpoint_variable] = "{endpoint}"
        environment = variables(given, endpoint=api.endpoint, url=api.url, region=api.config.region, environ={})
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return api.start()

    try:
        yield start
    finally:
        for api in reversed(started):
            api.stop()
