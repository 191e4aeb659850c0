"""`python -m deploy.verify --target aws|local`: asks what only a real AWS account can say, and prints a report.

With `aws` it makes one stack in the account that you are signed in to, after it has asked for confirmation, and deletes
it in the end, also when it is interrupted. With `local` it needs no account: the emulator and ministack take its place.
The report is Markdown, without ids or secrets, on standard output and in .local/. Progress is on standard error.
Exit codes: 0 success; 1 failure, or something is left over; 2 wrong arguments.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from deploy.ecs.stacks import DeployError
from deploy.verify import aws
from deploy.verify.asking import Asked, Seen, ask
from deploy.verify.deployment import Deployment, left_behind, new_name
from deploy.verify.documented import DOCUMENTED
from deploy.verify.masking import Masker
from deploy.verify.questions import QUESTIONS
from deploy.verify.report import Run, has_failed, render
from deploy.verify.target import Target

ASKED: Final[tuple[Asked, ...]] = (*QUESTIONS, *DOCUMENTED)
NAMES: Final = tuple(each.name for each in ASKED)
OUTPUT: Final = Path(__file__).parents[2] / ".local"
COST: Final = """\
This makes one stack: two WebSocket APIs, a function with its role and log, and a queue. It sends about 1,000 messages
and posts, and takes about {minutes} minutes, then it deletes the stack. All of this costs less than 0.01 USD.
"""

MINUTES: Final = 20
QUICK_MINUTES: Final = 8

_RETRIES: Final = Config(retries={"mode": "standard", "total_max_attempts": 10})


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        if options.target == "local":
            return _verify_local(_chosen(options.only), quick=options.quick)
        session = _session(options.region)
        if options.list:
            return _list(session)
        if options.destroy_only is not None:
            return _destroy(session, options.destroy_only)
        return _verify_aws(session, _chosen(options.only), quick=options.quick, confirmed=options.yes)
    except NoCredentialsError:
        return _failed("No AWS credentials: sign in (`aws sso login`, `aws configure`) or set AWS_PROFILE")
    except (DeployError, ClientError, BotoCoreError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return _failed("Interrupted")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.verify", description=__doc__)
    parser.add_argument("--target", choices=["aws", "local"], required=True)
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=[], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="leave out what takes more than ten minutes on AWS")
    parser.add_argument("--region", help="the Region on AWS (default: that of your configuration)")
    parser.add_argument("--yes", action="store_true", help="deploy to AWS without confirmation")
    parser.add_argument("--list", action="store_true", help="only list what earlier runs have left on AWS")
    parser.add_argument("--destroy-only", metavar="NAME", help="only remove what the run of that name has left on AWS")
    options = parser.parse_args(arguments)
    if options.target == "local" and (
        options.list or options.destroy_only is not None or options.region or options.yes
    ):
        parser.error("--list, --destroy-only, --region and --yes are for --target aws")
    return options


def _chosen(names: Sequence[str]) -> list[Asked]:
    return [each for each in ASKED if not names or each.name in names]


def _verify_aws(session: Any, questions: Sequence[Asked], *, quick: bool, confirmed: bool) -> int:
    identity = session.client("sts").get_caller_identity()
    _say(f"Account {identity['Account']}, Region {session.region_name}, as {identity['Arn'].rpartition('/')[2]}")
    _say(COST.format(minutes=QUICK_MINUTES if quick or not any(each.long for each in questions) else MINUTES))
    deployment = Deployment(session, new_name(), say=_say)
    if not confirmed and not _confirms(deployment.name):
        raise DeployError("Nothing was deployed")
    _say(f"If this run is killed: {deployment.removal}")
    masker, seen = Masker([identity["Account"], identity["Arn"], identity["UserId"]]), Seen()
    problem: str | None = "interrupted"
    try:
        outputs = deployment.deploy()
        target = aws.target(session, outputs, masker)
        problem = _observe(lambda: nullcontext(target), questions, seen, quick=quick)
    except (DeployError, ClientError, BotoCoreError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        pass
    finally:
        left = deployment.destroy()
    lines = [f"What was deployed: the stack {deployment.name}-probe"]
    run = Run(target="AWS", region=session.region_name, date=_today(), lines=lines, problem=problem, left=left)
    return _report(run, questions, seen, masker, "verify-aws.md")


def _verify_local(questions: Sequence[Asked], *, quick: bool) -> int:
    from deploy.verify import local_target  # noqa: PLC0415 - on AWS nothing of the local stack is needed
    from local.ministack import Ministack  # noqa: PLC0415
    from local.processes import ProcessFailed  # noqa: PLC0415

    masker, seen = Masker(), Seen()
    try:
        running = Ministack.start(services=local_target.SERVICES)
    except (FileNotFoundError, ProcessFailed) as error:
        return _failed(str(error))
    with running as ministack:
        local_target.use_only(ministack)
        session = _session(None)
        sqs = session.client("sqs")
        deployment = Deployment(session, new_name(), say=_say, poll_seconds=local_target.POLL_SECONDS)
        try:
            queue_url, line = local_target.deploy(deployment, sqs)
            problem = _observe(lambda: local_target.opened(sqs, queue_url, masker), questions, seen, quick=quick)
        finally:
            left = deployment.destroy()
    lines = [line, "API Gateway is the emulator of this checkout, with the template's function"]
    run = Run(target="this machine", region=session.region_name, date=_today(), lines=lines, problem=problem, left=left)
    return _report(run, questions, seen, masker, "verify-local.md")


def _observe(
    opened: Callable[[], AbstractAsyncContextManager[Target]],
    questions: Sequence[Asked],
    seen: Seen,
    *,
    quick: bool,
) -> str | None:
    """Ask the questions. Returns why that ended early, or None."""

    async def run() -> None:
        async with opened() as target:
            await ask(target, questions, seen, quick=quick, say=_say)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return "interrupted"
    except (DeployError, ClientError, BotoCoreError) as error:
        return str(error)
    return None


def _report(run: Run, questions: Sequence[Asked], seen: Seen, masker: Masker, name: str) -> int:
    text = render(run, questions, seen, masker)
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / name).write_text(text)
    _say(f"The report is also in .local/{name}")
    print(text, end="", flush=True)  # noqa: T201 - the report is the output
    return int(has_failed(run, seen))


def _list(session: Any) -> int:
    for name in left_behind(session.client("cloudformation")):
        print(name)  # noqa: T201
    return 0


def _destroy(session: Any, name: str) -> int:
    names = left_behind(session.client("cloudformation"))
    if name not in names:
        raise DeployError(f"No run {name!r} has left a stack in {session.region_name}; there are: {names or 'none'}")
    left = Deployment(session, name, say=_say).destroy()
    return 1 if left else 0


def _session(region: str | None) -> Any:
    core = botocore.session.get_session()
    core.set_default_client_config(_RETRIES)
    session = boto3.session.Session(botocore_session=core, region_name=region)
    if session.region_name is None:
        raise DeployError("No Region: give one (REGION=… with make, --region here), or set AWS_DEFAULT_REGION")
    return session


def _confirms(name: str) -> bool:
    print(f"Type {name} to continue: ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip() == name


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, and the stack must be removed all the same
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress for a person


def _failed(reason: str) -> int:
    _say(reason)
    return 1


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))  # a closed terminal must leave no stack
    sys.exit(main())
