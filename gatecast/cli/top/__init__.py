"""A live view of running workers in a terminal, for people: `gatecast top [URL …]`.

It reads the workers' HTTP endpoints and is independent of their code: `worker` and this package do not import each
other. `command` is what the user types and `watch` its course; `fetch` polls; `samples`,
`figures` and `view` compute, without input or output; `screen` draws, and `as_json` is for programs.
"""
