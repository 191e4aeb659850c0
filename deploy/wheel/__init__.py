"""Builds the package `gatecast`, the same bytes every time, and tries it where nothing else is installed."""
