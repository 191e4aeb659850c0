"""Looking into a gateway, and making its clients vanish, from another process.

| request | answer |
|---|---|
| `GET /_emulator/counters` | the Counters, as JSON |
| `GET /_emulator/connections` | `{connection_id: {"client": …}}` of all that are open: `client` of its query, or null |
| `POST /_emulator/vanish`, body `["id", …]` | `{"vanished": n}`; ids that are not connected are left out |
| `PUT /_emulator/faults`, body `[rule, …]` | 204; a rule is written as `Rule` has it, its fault with a `kind` |

Not a part of API Gateway: the path cannot be a stage's. Requests that a web page may have made are rejected (403), and
so is a `Host` that is neither on the loopback address nor allowed. What clients sent besides `client` is not shown: it
may be a token or a cookie.
"""

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from local.gateway.clients import Clients
from local.gateway.counters import Counters
from local.gateway.faults import Faults, Rule
from local.web_pages import page_rejection

PREFIX: Final = "/_emulator/"


class Control:
    """Responds to the requests above, from any program that reaches it: the gateway listens on the loopback address.

    `hosts` are names by which it may be called besides the loopback address and `localhost`.
    """

    def __init__(self, clients: Clients, counters: Counters, faults: Faults, *, hosts: Collection[str] = ()) -> None:
        self._clients = clients
        self._counters = counters
        self._faults = faults
        self._hosts = hosts

    async def handle(self, request: web.BaseRequest) -> web.Response:
        hosts, origins, sites = (request.headers.getall(name, []) for name in ("Host", "Origin", "Sec-Fetch-Site"))
        if reason := page_rejection(hosts, origins, sites, allowed_hosts=self._hosts):
            return web.json_response({"message": reason}, status=HTTPStatus.FORBIDDEN)
        try:
            return self._answer(request.method, request.path.removeprefix(PREFIX), await request.read())
        except (msgspec.MsgspecError, ValueError) as error:
            return web.json_response({"message": str(error)}, status=HTTPStatus.BAD_REQUEST)

    def _answer(self, method: str, name: str, body: bytes) -> web.Response:
        match method, name:
            case "GET", "counters":
                return web.json_response(self._counters.snapshot())
            case "GET", "connections":
                return web.json_response(
                    {
                        client.id: {"client": dict(client.origin.query).get("client")}
                        for client in self._clients.open.values()
                    }
                )
            case "POST", "vanish":
                doomed = set(msgspec.json.decode(body, type=list[str])) & self._clients.open.keys()
                for connection_id in doomed:
                    self._clients.vanish(connection_id)
                return web.json_response({"vanished": len(doomed)})
            case "PUT", "faults":
                self._faults.replace(msgspec.json.decode(body, type=list[Rule]))
                return web.Response(status=HTTPStatus.NO_CONTENT)
        return web.json_response({"message": "no such control"}, status=HTTPStatus.NOT_FOUND)
