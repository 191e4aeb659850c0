"""All checks, in the order in which one explains the next."""

import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any, Final

from gatecast.addresses import may_be_public
from gatecast.cli import environment
from gatecast.cli.doctor import endpoint, permissions, queues, quotas, table
from gatecast.cli.doctor.findings import Finding, State, failed, ok, skipped
from gatecast.cli.doctor.permissions import POLICIES, Role
from gatecast.cli.doctor.variables import find_resources
from gatecast.cli.environment import DEAD_LETTER_QUEUE, ENDPOINT, QUEUE, TABLE
from gatecast.cli.failures import CLOCK_SECONDS, REMEDIES, Cause, CommandFailed, Problem
from gatecast.queue_check import is_same_queue

_QUOTA_OVERRIDES: Final = ("AWS_ENDPOINT_URL_API_GATEWAY", "AWS_ENDPOINT_URL")


class Clock:
    """Compares this machine's clock with the dates of responses."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._ahead_seconds: list[float] = []

    def record(self, http_response: Any, **_: Any) -> None:
        """A handler of the SDK's event `after-call`."""
        try:
            date = parsedate_to_datetime(http_response.headers["Date"])
        except (KeyError, ValueError, TypeError, AttributeError):
            return
        self._ahead_seconds.append(self._now() - date.timestamp())

    def check(self) -> Finding:
        if not self._ahead_seconds:
            return skipped("clock", "no response had a date")
        ahead = median(self._ahead_seconds)
        if abs(ahead) <= CLOCK_SECONDS:
            return ok("clock", f"within {CLOCK_SECONDS} s of the services'")
        direction = "ahead of" if ahead > 0 else "behind"
        what = f"this machine's clock is {abs(ahead):,.0f} s {direction} the services'"
        return failed("clock", what, REMEDIES[Cause.CLOCK])


def examine(role: Role, environ: Mapping[str, str], clock: Clock) -> Iterator[Finding]:
    """Yields what each check finds. Raises an error that is none of the SDK's."""
    resources, found = find_resources(role, environ)
    yield from found
    try:
        session = environment.session()
    except CommandFailed as problem:
        yield failed("Region", problem.what, problem.remedy)
        return
    yield ok("Region", session.region_name)
    try:
        credentials = environment.check_credentials(session)
    except CommandFailed as problem:
        yield failed("credentials", problem.what, problem.remedy)
        yield skipped("queue, table, endpoint, permissions", "not checked: no credentials can be used")
        return
    yield ok("credentials", f"found by {credentials.method}")
    session.events.register("after-call", clock.record)
    sqs, dynamodb = (environment.client(service, session, attempts=1) for service in ("sqs", "dynamodb"))
    found = list(_check_queues(sqs, role, resources)) if QUEUE in resources else []
    if TABLE in resources:
        found += table.check(dynamodb, resources[TABLE])
    yield from found
    if ENDPOINT in resources:
        management = environment.client(
            "apigatewaymanagementapi", session, attempts=1, endpoint_url=resources[ENDPOINT]
        )
        yield from endpoint.check(management, resources[ENDPOINT], POLICIES[role])
    yield clock.check()
    reported = {finding.remedy for finding in found if finding.state is State.FAILED}
    for finding in permissions.check({"sqs": sqs, "dynamodb": dynamodb}, role, resources):
        if finding.check != permissions.RESOURCE or finding.remedy not in reported:
            yield finding
    if ENDPOINT in resources:
        yield _check_quotas(session, resources[ENDPOINT], environ)


def _check_queues(sqs: Any, role: Role, resources: Mapping[str, str]) -> Iterator[Finding]:
    url, dead_letter_url = resources[QUEUE], resources.get(DEAD_LETTER_QUEUE)
    if dead_letter_url is not None and is_same_queue(url, dead_letter_url):
        yield queues.circle()
        return
    attributes = queues.read(sqs, url)
    others: Mapping[str, str] | Problem = {} if dead_letter_url is None else queues.read(sqs, dead_letter_url)
    if isinstance(attributes, Problem):
        yield queues.unread(QUEUE, url, attributes)
    else:
        yield from queues.check_attributes(url, attributes, {} if isinstance(others, Problem) else others)
    if dead_letter_url is None:
        if role is Role.WORKER:
            yield queues.no_dead_letter_queue()
    elif isinstance(others, Problem):
        yield queues.unread(DEAD_LETTER_QUEUE, dead_letter_url, others)
    else:
        yield ok("dead-letter queue", others.get("QueueArn", dead_letter_url).rpartition(":")[2])


def _check_quotas(session: Any, url: str, environ: Mapping[str, str]) -> Finding:
    """Only where the API is on AWS: an emulator has no quotas, and its credentials are none of AWS."""
    if not may_be_public(url) and not any(environ.get(name) for name in _QUOTA_OVERRIDES):
        return skipped("quotas", "the API is not on AWS")
    return quotas.check(environment.client("apigateway", session, attempts=1), environ)
