"""The Lambda handlers behind an API Gateway HTTP API (payload format 2.0): publishing, reading, and disconnecting.

- `request`: the event as a request, and who sent it
- `routing`: which operation a method and a path name
- `problems`: errors, as `application/problem+json`
- `messages`: the message that a request publishes
- `backend`, `client`: the operations of backends and of clients
- `handlers`: the two functions

`handlers.backend` is for programs of the operator: API Gateway itself authorizes them with IAM. `handlers.client` is
for clients with a token, below `/client`, and allows what their grants allow. Each accepts only events whose
authorizer is its own, so that neither serves a request that nobody has authorized.
"""
