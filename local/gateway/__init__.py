"""An emulator of API Gateway's WebSocket APIs, for tests and local use: `local.gateway.server.Gateway`.

It is independent of Gatecast and imports nothing else of the project: routes are the handlers that it is given.
"""
