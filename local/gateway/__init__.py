"""An emulator of API Gateway's WebSocket APIs, good enough to test against: `local.gateway.server.Gateway`.

It knows nothing of Gatecast: routes are whatever handlers it is given.
"""
