"""`gatecast dead-letters`: what is on the dead-letter queue, and what becomes of it."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any, Final

import typer

from gatecast.cli import environment
from gatecast.cli.dead_letter_report import contents, lines, summary
from gatecast.cli.failures import CommandFailed, Interrupted, WrongUsage, explain
from gatecast.cli.options import DryRunOption, OutputOption, YesOption
from gatecast.cli.output import Output, confirm, write, write_json
from gatecast.dead_letters import DeadLetter

commands = typer.Typer(help="List, show, resend or delete dead letters.", rich_markup_mode=None)
_SAFE: Final = "it is safe to run it again"
_MessageIds = Annotated[list[str] | None, typer.Argument(metavar="MESSAGE", help="ids of messages, as listed")]


@commands.command("list")
def list_(output: OutputOption = Output.TEXT) -> None:
    """List all dead letters, without their payloads, and count them by reason.

    Reads GATECAST_DEAD_LETTER_QUEUE_URL. While it runs, the messages are invisible to other programs. Of a FIFO queue
    it lists only the first ten of each group. As JSON, it prints one object per dead letter.
    """
    queue, _ = _open(environment.queue_url(environment.DEAD_LETTER_QUEUE))
    counts: Counter[str] = Counter()
    with _stopping(lambda: None):
        for letter in _all(queue):
            counts[letter.word] += 1
            if output is Output.JSON:
                write_json(summary(letter))
            else:
                write(f"{letter.message_id}  {letter.reason}, {letter.describe(now_ms=time.time() * 1000)}")
    if output is Output.TEXT:
        _write_sum("dead letters", counts)


@commands.command()
def show(
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="the id of the message, as listed")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Show one dead letter with its payload and the connections that missed it.

    Reads GATECAST_DEAD_LETTER_QUEUE_URL.
    """
    queue, _ = _open(environment.queue_url(environment.DEAD_LETTER_QUEUE))
    with _stopping(lambda: None):
        letter = next((letter for letter in _all(queue) if letter.message_id == message), None)
    if letter is None:
        raise CommandFailed(f"there is no dead letter {message}", "see gatecast dead-letters list")
    if output is Output.JSON:
        write_json(summary(letter) | contents(letter))
        return
    for line in lines(letter):
        write(line)


@commands.command()
def redrive(messages: _MessageIds = None, *, dry_run: DryRunOption = False, output: OutputOption = Output.TEXT) -> None:
    """Send dead letters again: all that may succeed, or only those that are named.

    Each reaches the connections that missed it, and no others. Poison, what SQS itself has moved there, and frames that
    are too large stay where they are. Reads GATECAST_QUEUE_URL and GATECAST_DEAD_LETTER_QUEUE_URL. It may be
    interrupted and repeated.
    """
    source, target = environment.both_queue_urls()
    _, sqs = _open(source)

    from gatecast.dead_letter_queue import Redrive

    work = Redrive(
        sqs,
        source=source,
        target=target,
        dry_run=dry_run,
        only=messages or None,
        show=write if output is Output.TEXT else lambda _line: None,
    )

    def summarise() -> None:
        if output is Output.JSON:
            write_json({"dry_run": dry_run, "resent": dict(work.report.sent), "skipped": dict(work.report.skipped)})
            return
        for line in work.report.lines(dry_run=dry_run):
            write(line)

    with _stopping(summarise):
        work.run()
    summarise()
    handled = work.report.sent.total() + work.report.skipped.total()
    if messages and handled < len(set(messages)):
        raise CommandFailed(f"{handled} of {len(set(messages))} messages were found", "see gatecast dead-letters list")


@commands.command()
def drop(
    messages: _MessageIds = None,
    *,
    reason: Annotated[str | None, typer.Option("--reason", help="all with this reason, such as poison")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all dead letters")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete dead letters for ever: those that are named, those with a reason, or all.

    Reads GATECAST_DEAD_LETTER_QUEUE_URL. It asks for a confirmation.
    """
    if sum(map(bool, (messages, reason, everything))) != 1:
        raise WrongUsage("exactly one of MESSAGE, --reason and --all is expected", "see gatecast dead-letters list")
    chosen = _choice(messages, reason)
    what = "all dead letters" if everything else f"dead letters: {reason or ', '.join(messages or ())}"
    queue, _ = _open(environment.queue_url(environment.DEAD_LETTER_QUEUE))
    counts: Counter[str] = Counter()

    def count(letter: DeadLetter) -> None:
        counts[letter.word] += 1
        if output is Output.TEXT:
            verb = "would be dropped" if dry_run else "dropped"
            write(f"{verb}: {letter.message_id}, {letter.reason}, {letter.describe(now_ms=time.time() * 1000)}")

    def summarise() -> None:
        if output is Output.JSON:
            write_json({"dry_run": dry_run, "dropped": dict(counts)})
        else:
            _write_sum("would be dropped" if dry_run else "dropped", counts)

    if not dry_run:
        confirm(f"delete {what} for ever?", yes=yes)
    with _stopping(summarise):
        if dry_run:
            for letter in filter(chosen, _all(queue)):
                count(letter)
        else:
            from gatecast.dead_letter_queue import drop as delete

            delete(queue, chosen, count)
    summarise()
    if messages and counts.total() < len(set(messages)):
        raise CommandFailed(
            f"{counts.total()} of {len(set(messages))} messages were found", "see gatecast dead-letters list"
        )


def _choice(messages: Collection[str] | None, reason: str | None) -> Callable[[DeadLetter], bool]:
    if messages:
        return lambda letter: letter.message_id in messages
    return lambda letter: reason is None or letter.word == reason


def _open(url: str) -> tuple[Any, Any]:
    """The dead-letter queue, and the client of SQS."""
    from gatecast.dead_letter_queue import DeadLetterQueue

    sqs = environment.client("sqs")
    return DeadLetterQueue(sqs, url), sqs


def _all(queue: Any) -> Iterator[DeadLetter]:
    with closing(queue.read()) as batches:
        for letters in batches:
            yield from letters


def _write_sum(what: str, counts: Counter[str]) -> None:
    by_reason = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
    write(f"{counts.total()} {what}" + (f" ({by_reason})" if by_reason else ""))


@contextmanager
def _stopping(summarise: Callable[[], None]) -> Iterator[None]:
    """Ends the command with one line if it is interrupted, or the SDK fails. First calls `summarise`."""
    try:
        yield
    except KeyboardInterrupt:
        summarise()
        raise Interrupted("interrupted", _SAFE) from None
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        summarise()
        raise CommandFailed(f"stopped: {problem.what}", f"{problem.remedy}; {_SAFE}") from error
