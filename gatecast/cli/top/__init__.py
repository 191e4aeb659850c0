"""A live view of running workers in a terminal, for people: `python -m gatecast.cli.top [URL …]`.

It reads the workers' HTTP endpoints and is independent of their code: `worker` and this package do not import each
other. `fetch` polls; `samples`, `figures` and `view` compute, without input or output; `screen` draws.
"""
