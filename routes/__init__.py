"""The Lambda handlers behind an API Gateway WebSocket API: they maintain connections and memberships, and publish.

They import `gatecast` and nothing else of the project. Point each route at one function of `routes.handlers`, and the
authorizer of `$connect` at `routes.authorizer.handler`.
"""
