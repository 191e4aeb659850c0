"""The engine alone against other clients: the CPU cost of a signed post over TLS."""

import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from bench import peers
from bench.case import FIGURES, Case, Extent, Target, figures, table
from bench.programs import NODE, Load, node, python, run_client, run_wrk
from bench.samples import Sample, Samples, interleave, ratio

ENGINE: Final = "Gatecast's engine"
WRK: Final = "wrk, constant signature"
AIOBOTOCORE: Final = "aiobotocore, tasks"
BOTO3: Final = "boto3, 64 threads"
AIOHTTP: Final = "aiohttp, botocore's signer"
NODE_SDK: Final = "Node SDK v3"

CONCURRENCY: Final = 128
_THREADS: Final = 64
_WRK_SECONDS: Final = 1.5
_MAX_WRK_RATIO: Final = 1.2
_MIN_AIOBOTOCORE_RATIO: Final = 40


@dataclass(frozen=True, slots=True)
class _Kind:
    """A peer, and the body sizes and clients to measure with it."""

    title: str
    start: Callable[[], AbstractContextManager[peers.Peer]]
    sizes: tuple[int, ...] = (256, 4096)
    slow: bool = False


_PEERS: Final = {
    "compiled": _Kind("the mock server", peers.connections),
    "nginx": _Kind("nginx", peers.nginx),
    "slow": _Kind(
        "the mock server, responses after 5 to 15 ms", partial(peers.connections, (5, 15)), (256,), slow=True
    ),
}


class Combination(msgspec.Struct):
    peer: str
    body_bytes: int
    samples: Samples


class Result(msgspec.Struct):
    combinations: list[Combination]
    skipped: dict[str, str]
    """Missing tools, and how to install them."""


class Clients(Case[Result]):
    name = "clients"
    title = "The engine alone against other clients"
    result = Result

    def measure(self, extent: Extent) -> Result:
        skipped = _missing()
        combinations = []
        for name, kind in _PEERS.items():
            if name in skipped:
                continue
            for body_bytes in kind.sizes:
                print(f" {kind.title}, {body_bytes} B", flush=True)
                with kind.start() as peer:
                    clients = _clients(peer, body_bytes, extent, skipped, slow=kind.slow)
                    combinations.append(Combination(name, body_bytes, interleave(extent.rounds, clients)))
        return Result(combinations, skipped)

    def describe(self, result: Result) -> list[str]:
        parts = [
            (
                f"All clients have {CONCURRENCY} connections (boto3 has {_THREADS}, with a thread each) and post to a "
                "different connection id each time. The exception is wrk, which always sends the same prepared bytes "
                "and so shows the cost of TLS and the kernel alone. aiobotocore and aiohttp run on uvloop, as the "
                "worker does."
            ),
            (
                "The cost of a post depends on the response time. If a peer responds in microseconds, many responses "
                "are ready at every wake-up, which suits wrk best. If it takes milliseconds, as API Gateway does, each "
                "response arrives alone and wakes the client, unless the client waits briefly and handles several at "
                "once, as the engine does. So there are three peers."
            ),
        ]
        for each in result.combinations:
            samples = each.samples
            rows = [
                [name, *figures(taken), _times(samples, name, WRK), _times(samples, name, ENGINE)]
                for name, taken in samples.items()
            ]
            parts.append(f"**Against {_PEERS[each.peer].title}, bodies of {each.body_bytes:,} B:**")
            parts.append(table(["client", *FIGURES, "× wrk", "× engine"], rows))
        parts += [f"Skipped: {each}." for each in result.skipped.values()]
        return parts

    def targets(self, result: Result) -> list[Target]:
        found = []
        for each in result.combinations:
            where = f"{_PEERS[each.peer].title}, {each.body_bytes:,} B"
            samples = each.samples
            if WRK in samples:
                measured = ratio(samples[ENGINE], samples[WRK])
                found.append(Target(f"engine's CPU per post, × wrk's ({where})", _MAX_WRK_RATIO, measured))
            measured = ratio(samples[AIOBOTOCORE], samples[ENGINE])
            found.append(
                Target(
                    f"aiobotocore's CPU per post, × the engine's ({where})",
                    _MIN_AIOBOTOCORE_RATIO,
                    measured,
                    form="{:.1f}",
                    at_least=True,
                )
            )
        return found


def _times(samples: Samples, name: str, to: str) -> str:
    return f"{ratio(samples[name], samples[to]):.2f}" if to in samples else "–"


def _missing() -> dict[str, str]:
    missing = {}
    if not shutil.which("wrk"):
        missing["wrk"] = "wrk (apt-get install wrk), and the comparison with it"
    if not shutil.which("nginx"):
        missing["nginx"] = "nginx (apt-get install nginx), one of the peers"
    if not NODE.exists() or not shutil.which("node"):
        missing["node"] = "the Node SDK (apt-get install npm, then `make bench-setup`)"
    return missing


def _clients(
    peer: peers.Peer, body_bytes: int, extent: Extent, skipped: Collection[str], *, slow: bool
) -> dict[str, Callable[[], Sample]]:
    """The numbers of posts are chosen so that each client takes a second or two."""

    def client(
        command: tuple[str, ...], posts: int, warm_up: int, concurrency: int = CONCURRENCY
    ) -> Callable[[], Sample]:
        return partial(run_client, command, peer, Load(extent.posts(posts), body_bytes, concurrency, warm_up))

    clients: dict[str, Callable[[], Sample]] = {}
    if "wrk" not in skipped:
        seconds = extent.seconds(_WRK_SECONDS)
        clients[WRK] = partial(run_wrk, peer, concurrency=CONCURRENCY, body_bytes=body_bytes, seconds=seconds)
    clients[ENGINE] = client(python("bench.clients.engine"), 20_000 if slow else 80_000, 5_000)
    clients[AIOBOTOCORE] = client(python("bench.clients.aiobotocore_tasks"), 1_600, 300)
    if slow:
        return clients
    clients[AIOHTTP] = client(python("bench.clients.aiohttp_signer"), 3_000, 400)
    clients[BOTO3] = client(python("bench.clients.boto3_threads"), 1_000, 300, _THREADS)
    if "node" not in skipped:
        clients[NODE_SDK] = client(tuple(map(str, node())), 1_500, 1_500)
    return clients
