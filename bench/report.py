"""Keeps what was measured in `results/*.json` and writes RESULTS.md from these files: no figure is typed by hand."""

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from bench.case import Case, Extent, Target, table
from bench.cases import CASES
from bench.machine import CHECKOUT, Machine, Missing, describe

RESULTS: Final = CHECKOUT / "bench" / "results"
REPORT: Final = CHECKOUT / "bench" / "RESULTS.md"

_HEAD: Final = """\
# Results of the benchmarks

Written by `make bench`; do not edit. `bench/README.md` says how it is measured.

CPU is user and system time of the client's process, in microseconds a post, which is milliseconds for 1,000 posts. The
client has one core for itself, its peers the other: a peer whose core is nearly full was the bottleneck, and a client
that should have filled its core and has not shared it with something else. Ratios are medians of the rounds' own
ratios. Everything is TLS 1.3 with a session token of 1,000 characters.
"""


class Stored(msgspec.Struct):
    """A file of `results/`."""

    benchmark: str
    command: str
    date: str
    quick: bool
    rounds: int
    load_average: float
    """Of the minute before the benchmark: what else went on."""
    machine: Machine
    result: msgspec.Raw


def store(case: Case[Any], result: Any, extent: Extent, *, load_average: float, quick: bool) -> None:
    stored = Stored(
        benchmark=case.name,
        command=f".venv/bin/python -m bench {case.name}{' --quick' if quick else ''} --rounds {extent.rounds}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        rounds=extent.rounds,
        load_average=round(load_average, 2),
        machine=describe(),
        result=msgspec.Raw(msgspec.json.encode(result)),
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{case.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n")


def write() -> list[Target]:
    """RESULTS.md from all files that there are; what they say about the targets."""
    targets: list[Target] = []
    sections: list[str] = []
    machines: list[Machine] = []
    for case in CASES:
        path = RESULTS / f"{case.name}.json"
        if not path.exists():
            continue
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=Stored)
            result = msgspec.json.decode(stored.result, type=case.result)
        except msgspec.ValidationError as error:
            raise Missing(f"{path.name} was written by another version ({error}): run {case.name} again") from None
        targets += case.targets(result)
        sections += [f"## {case.title}", *case.describe(result)]
        if stored.machine not in machines:
            machines.append(stored.machine)
        sections += _footer(stored, machines.index(stored.machine) + 1)
    summary = table(["target", "to be", "reached", "met"], [target.row() for target in targets])
    described = ["## Machines", *(_describe(machine, number) for number, machine in enumerate(machines, start=1))]
    paragraphs = [_HEAD.strip(), "## Targets", summary, *sections, *described]
    REPORT.write_text("\n\n".join(map(_wrapped, paragraphs)) + "\n")
    return targets


def _footer(stored: Stored, machine: int) -> Iterator[str]:
    if stored.quick:
        yield "**A quick run: short sections, few rounds. Do not rely on these figures.**"
    yield (
        f"{stored.date}, rounds: {stored.rounds}, machine {machine}, load average before: {stored.load_average}. Again:"
    )
    yield f"```\n{stored.command}\n```"


def _describe(machine: Machine, number: int) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"Machine {number}: {machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, Python {machine.python}, "
        f"OpenSSL {machine.openssl}, {versions}."
    )


def _wrapped(paragraph: str) -> str:
    if "\n" in paragraph or paragraph.startswith("#"):
        return paragraph
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)
