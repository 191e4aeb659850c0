"""Checks of the environment's variables: what is missing, misspelt, or no such thing. Pure."""

from collections.abc import Mapping
from typing import Final

from gatecast.addresses import WrongAddress, connections_endpoint, is_queue_url
from gatecast.cli.doctor.findings import Finding, State, failed, ok, warning
from gatecast.cli.doctor.permissions import Role
from gatecast.cli.environment import (
    BUCKET,
    DEAD_LETTER_QUEUE,
    ENDPOINT,
    EXPECTED,
    QUEUE,
    RECEIPTS_QUEUE,
    TABLE,
    is_table_name,
    misspelt,
    shown,
)
from gatecast.variables import unknown_variables

_REQUIRED: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.WORKER: (QUEUE, TABLE, ENDPOINT),
    Role.PUBLISHER: (QUEUE,),
    Role.OPERATOR: (QUEUE, DEAD_LETTER_QUEUE, TABLE),
}
_OPTIONAL: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.WORKER: (DEAD_LETTER_QUEUE, RECEIPTS_QUEUE, BUCKET),
    Role.PUBLISHER: (BUCKET,),
    Role.OPERATOR: (BUCKET,),
}


def find_resources(role: Role, environ: Mapping[str, str]) -> tuple[dict[str, str], list[Finding]]:
    """The values that can be used, by variable, and what is wrong with the others."""
    values: dict[str, str] = {}
    findings = []
    for name in (*_REQUIRED[role], *_OPTIONAL[role]):
        value = environ.get(name, "")
        if problem := _problem(name, value):
            findings.append(failed("variables", f"{name} is {shown(value)}{problem}", EXPECTED[name]))
        elif value:
            values[name] = value.rstrip("/") if name == ENDPOINT else value
        elif name in _REQUIRED[role]:
            findings.append(failed("variables", f"{name} is missing{misspelt(name, environ)}", EXPECTED[name]))
    for name, nearest in unknown_variables(environ).items():
        remedy = f"if it is meant to be {nearest}, rename it" if nearest else "check its name"
        findings.append(warning("variables", f"{name} is set, and nothing reads it", remedy))
    if all(finding.state is not State.FAILED for finding in findings):
        findings.append(ok("variables", ", ".join(values)))
    return values, findings


def _problem(name: str, value: str) -> str | None:
    """What follows the value if it is wrong; it may be nothing. None if it is right, or empty."""
    if not value:
        return None
    if name in {QUEUE, DEAD_LETTER_QUEUE, RECEIPTS_QUEUE}:
        return None if is_queue_url(value) else ": no URL of a queue"
    if name == TABLE:
        return None if is_table_name(value) else ": no name of a table"
    if name == ENDPOINT:
        try:
            connections_endpoint(value)
        except WrongAddress as wrong:
            return f": {str(wrong) or 'no address of an API'}"
    return None
