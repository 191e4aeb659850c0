"""`gatecast top`: a live view of running workers."""

from pathlib import Path
from typing import Annotated, Final

import typer

from gatecast.cli.failures import WrongUsage
from gatecast.cli.options import OutputOption
from gatecast.cli.output import Output

_MIN_SECONDS: Final = 0.1
_MAX_SECONDS: Final = 3600.0


def top(
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="URL", help="http://host:port or host:port; by default 127.0.0.1:9090"),
    ] = None,
    *,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="time between polls")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="poll twice, print one view, and exit with 1 unless all workers are ready")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="like --once, and save the view as an SVG image")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> int:
    """Show running workers live, until Ctrl-C.

    Problems first, then the figures of each worker and their total, then the broadcasts in progress. Rates and
    quantiles cover the time between two polls. As JSON, it prints one object per poll.
    """
    from gatecast.cli.top.fetch import address
    from gatecast.cli.top.watch import snapshot, watch

    if not _MIN_SECONDS <= interval <= _MAX_SECONDS:
        raise WrongUsage(f"--interval {interval:g} is invalid", "give 0.1 to 3600 seconds")
    try:
        addresses = [address(each) for each in workers or ("127.0.0.1",)]
    except ValueError as error:
        raise WrongUsage(f"URL is invalid ({error})", "give http://host:port or host:port") from None
    if once or svg is not None:
        return snapshot(addresses, interval, output, svg)
    watch(addresses, interval, output)
    return 0
