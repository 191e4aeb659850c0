"""The demo: a thousand real clients, the whole stack, and an account of every delivery. `python -m local.demo`."""
