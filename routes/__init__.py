"""The Lambda handlers behind an API Gateway WebSocket API: who is connected, who is in which room, who publishes what.

They import `gatecast` and nothing else of the project. Point each route at one function of `routes.handlers`, and the
authorizer of `$connect` at `routes.authorizer.handler`.
"""
