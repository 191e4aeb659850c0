"""The demo's final output."""

from rich.table import Table

from local.demo.scenario import Result


def summary(result: Result) -> Table:
    """The demo's results as a table; failed expectations are red."""
    tally = result.tally
    rows: list[tuple[str, str, bool]] = [
        ("broadcasts", f"{tally.broadcasts:,}", True),
        ("deliveries expected", f"{tally.expected:,}", True),
        ("deliveries received", f"{tally.received:,}", True),
        ("missing", f"{tally.missing:,}", not tally.missing),
        ("duplicates", f"{tally.duplicates:,}", True),
        ("received by others", f"{tally.strays:,}", not tally.strays),
        ("connections lost", f"{result.lost:,}", not result.lost),
        ("gone connections reaped", f"{result.reaped:,} of {result.dropped:,}", result.reaped == result.dropped),
        *((f"publish to receive, p{each}", f"{tally.percentile(each) * 1_000:,.0f} ms", True) for each in (50, 95, 99)),
        ("large payload fetched", f"{result.fetched} of {result.fetching}", result.fetched == result.fetching),
        ("posts per second", f"{result.posts_per_second:,.0f}", True),
    ]
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value, passed in rows:
        table.add_row(name, value, style=None if passed else "bold red")
    return table
