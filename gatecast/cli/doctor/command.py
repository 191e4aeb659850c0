"""`gatecast doctor`: examines the set-up and prints what it finds."""

import os
from typing import Annotated

import typer

from gatecast.cli.doctor.permissions import Role
from gatecast.cli.options import OutputOption
from gatecast.cli.output import Output, write, write_json


def doctor(
    *,
    role: Annotated[
        Role, typer.Option("--role", help="whose variables and permissions are checked: the credentials are its own")
    ] = Role.WORKER,
    output: OutputOption = Output.TEXT,
) -> int:
    """Check a set-up: variables, Region, credentials, clock, queues, table, endpoint, permissions and quotas.

    Run it with the environment and the credentials of the program that does not work. It changes nothing. The exit code
    is 1 if something is wrong.
    """
    from gatecast.cli.doctor.examination import Clock, examine
    from gatecast.cli.doctor.findings import State

    found = []
    for finding in examine(role, os.environ, Clock()):
        found.append(finding)
        if output is Output.TEXT:
            write(f"{finding.state:8} {finding.check}: {finding.what}")
            if finding.remedy:
                write(f"         remedy: {finding.remedy}")
    wrong = sum(finding.state is State.FAILED for finding in found)
    if output is Output.JSON:
        write_json({"ok": not wrong, "findings": [finding._asdict() for finding in found]})
    else:
        write(f"{wrong} of {len(found)} checks failed" if wrong else f"nothing is wrong in {len(found)} checks")
    return int(wrong > 0)
