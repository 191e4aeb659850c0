"""The control interface: inspects a gateway, drops its clients and sets its faults from another process.

| request | response |
|---|---|
| `GET /_emulator/counters` | the Counters, as JSON |
| `GET /_emulator/connections` | `{connection_id: {"client": …}}`, open ones only; `client` of the query, or null |
| `POST /_emulator/drop`, body `["id", …]` | `{"dropped": n}`; ids that are not connected are ignored |
| `PUT /_emulator/faults`, body `[rule, …]` | 204; a rule has the fields of `Rule`; its fault has a `kind` |

Not part of API Gateway: the path cannot be a stage's. Requests that a web page may have made are rejected (403); the
gateway has checked their `Host`. A body must be `application/json` (415), which a
page cannot send to another origin without a permission that nothing here gives. No other data that clients sent is
exposed: it may be a token or a cookie.
"""

from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from gatecast.emulator.browser_requests import page_rejection
from gatecast.emulator.clients import Clients
from gatecast.emulator.counters import Counters
from gatecast.emulator.faults import Faults, Rule

PREFIX: Final = "/_emulator/"
_JSON: Final = "application/json"


class Control:
    """Serves the requests above to any program that can connect: the gateway listens on the loopback address."""

    def __init__(self, clients: Clients, counters: Counters, faults: Faults) -> None:
        self._clients = clients
        self._counters = counters
        self._faults = faults

    async def handle(self, request: web.BaseRequest) -> web.Response:
        origins, sites = (request.headers.getall(name, []) for name in ("Origin", "Sec-Fetch-Site"))
        if reason := page_rejection(origins, sites):
            return web.json_response({"message": reason}, status=HTTPStatus.FORBIDDEN)
        if request.method != "GET" and request.content_type != _JSON:
            message = f"the Content-Type must be {_JSON}"
            return web.json_response({"message": message}, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        try:
            return self._respond(request.method, request.path.removeprefix(PREFIX), await request.read())
        except (msgspec.MsgspecError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=HTTPStatus.BAD_REQUEST)

    def _respond(self, method: str, name: str, body: bytes) -> web.Response:
        match method, name:
            case "GET", "counters":
                return web.json_response(self._counters.snapshot())
            case "GET", "connections":
                return web.json_response(
                    {
                        client.id: {"client": dict(client.info.query).get("client")}
                        for client in self._clients.open.values()
                    }
                )
            case "POST", "drop":
                dropped = set(msgspec.json.decode(body, type=list[str])) & self._clients.open.keys()
                for connection_id in dropped:
                    self._clients.drop(connection_id)
                return web.json_response({"dropped": len(dropped)})
            case "PUT", "faults":
                self._faults.replace(msgspec.json.decode(body, type=list[Rule]))
                return web.Response(status=HTTPStatus.NO_CONTENT)
        return web.json_response({"message": "unknown control request"}, status=HTTPStatus.NOT_FOUND)
