"""The demo: a thousand real clients, the whole stack, and a record of every delivery. `python -m local.demo`."""
