"""A live view of running workers in a terminal, for people: `python -m gatecast.cli.top [URL …]`.

It reads what workers serve and is no part of them: nothing in `worker` imports it, and it imports nothing of theirs.
`fetch` asks, `samples`, `figures` and `view` compute and know no input or output, `screen` draws.
"""
