"""The control interface: inspects a gateway, drops its clients and sets its faults from another process.

| request | response |
|---|---|
| `GET /_emulator/counters` | the Counters, as JSON |
| `GET /_emulator/connections` | `{connection_id: {"client": …}}`, open ones only; `client` of the query, or null |
| `POST /_emulator/drop`, body `["id", …]` | `{"dropped": n}`; ids that are not connected are ignored |
| `PUT /_emulator/faults`, body `[rule, …]` | 204; a rule has the fields of `Rule`; its fault has a `kind` |

Not part of API Gateway: the path cannot be a stage's. Requests that a web page may have made are rejected (403), and
so is a `Host` that is neither on the loopback address nor allowed. No other data that clients sent is exposed: it may
be a token or a cookie.
"""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from local.gateway.browser_requests import browser_rejection
from local.gateway.clients import Clients
from local.gateway.counters import Counters
from local.gateway.faults import Faults, Rule

PREFIX: Final = "/_emulator/"


class Control:
    """Serves the requests above to any program that can connect: the gateway listens on the loopback address.

    `hosts` are allowed `Host` names besides the loopback address and `localhost`.
    """

    def __init__(self, clients: Clients, counters: Counters, faults: Faults, *, hosts: Collection[str] = ()) -> None:
        self._clients = clients
        self._counters = counters
        self._faults = faults
        self._hosts = hosts

    async def handle(self, request: web.BaseRequest) -> web.Response:
        hosts, origins, sites = (request.headers.getall(name, []) for name in ("Host", "Origin", "Sec-Fetch-Site"))
        if reason := browser_rejection(hosts, origins, sites, allowed_hosts=self._hosts):
            return web.json_response({"message": reason}, status=HTTPStatus.FORBIDDEN)
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
