"""The command line: `gatecast`, which the extra `gatecast[cli]` installs.

One module for each group of commands. Each holds what the user types, and is thin over functions that need neither a
terminal nor typer. Only `app` imports all of them; what takes time to import, they import when they run.
"""
