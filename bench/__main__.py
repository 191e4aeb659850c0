"""`python -m bench`: run benchmarks, store their results, write RESULTS.md.

python -m bench                 run all benchmarks
python -m bench clients paced   run these
python -m bench --quick         run a short version, to check that everything works
python -m bench --report        regenerate RESULTS.md from the stored results
python -m bench --setup         install the Node client, and report missing tools
"""

import argparse
import os
import shutil
import subprocess
import sys
from typing import Final

from bench import machine, report
from bench.case import Extent
from bench.cases import CASES
from bench.peers import CERTIFICATES, SINK
from bench.processes import BenchmarkFailed
from bench.programs import NODE

_ROUNDS: Final = 5
_QUICK_ROUNDS: Final = 1
_QUICK_SHARE: Final = 0.4


def main() -> int:
    arguments = _parse()
    try:
        if arguments.setup:
            _set_up()
            return 0
        if not arguments.report:
            machine.check()
            _check_built()
            _run(arguments.cases or [case.name for case in CASES], arguments.rounds, quick=arguments.quick)
        targets = report.write()
    except (machine.Missing, BenchmarkFailed) as problem:
        print(f"bench: {problem}", *getattr(problem, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    for target in targets:
        print(f"{'met   ' if target.met else 'MISSED'}  {' '.join(target.row()[1:3])}  {target.name}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Gatecast's benchmarks; see bench/README.md")
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help=f"rounds per client; default {_ROUNDS} (quick: {_QUICK_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="short sections, one round")
    parser.add_argument("--report", action="store_true", help="only regenerate RESULTS.md")
    parser.add_argument("--setup", action="store_true", help="only install the Node client and report missing tools")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in names:
            parser.error(f"unknown benchmark {name}; choose from {', '.join(names)}")
    return arguments


def _run(names: list[str], rounds: int | None, *, quick: bool) -> None:
    os.sched_setaffinity(0, {machine.PEER_CORE})  # leaves the other core to the client
    machine.BUILD.mkdir(exist_ok=True)
    extent = Extent(rounds or (_QUICK_ROUNDS if quick else _ROUNDS), _QUICK_SHARE if quick else 1.0)
    for case in CASES:
        if case.name in names:
            print(f"{case.name}: {case.title}", flush=True)
            load = os.getloadavg()[0]
            report.store(case, case.measure(extent), extent, load_average=load, quick=quick)


def _check_built() -> None:
    for path in (SINK / "build" / "connections", SINK / "build" / "aws", CERTIFICATES / "server.pem"):
        if not path.exists():
            raise machine.Missing("the mock servers have not been built: `make bench-setup`")


def _set_up() -> None:
    """Install the Node client and report missing optional tools. Nothing is installed outside the checkout."""
    machine.check()
    for tool, use in (("wrk", "the comparison with wrk"), ("nginx", "the second peer")):
        if not shutil.which(tool):
            print(f"{tool} is missing: apt-get install {tool}. Without it, {use} is skipped.")
    if not shutil.which("npm"):
        print("npm is missing: apt-get install npm. Without it, the Node SDK is skipped.")
        return
    NODE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(machine.CHECKOUT / "bench" / "clients" / "node" / name, NODE)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
    if subprocess.run(command, cwd=NODE, check=False).returncode:  # noqa: S603 - npm of the PATH
        shutil.rmtree(NODE)
        print("The Node SDK could not be installed; it is skipped.")


if __name__ == "__main__":
    sys.exit(main())
