"""One measured section of one client, and what many of them say together."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec


class Sample(msgspec.Struct):
    """`posts` in `seconds`, for `cpu_seconds` of the client and `peer_cpu_seconds` of its peers together."""

    posts: int
    seconds: float
    cpu_seconds: float
    peer_cpu_seconds: float

    @property
    def cost(self) -> float:
        """CPU microseconds a post, which is CPU milliseconds for 1,000."""
        return self.cpu_seconds / self.posts * 1e6

    @property
    def rate(self) -> float:
        return self.posts / self.seconds

    @property
    def core(self) -> float:
        """Share of its core that the client took."""
        return self.cpu_seconds / self.seconds

    @property
    def peer_core(self) -> float:
        return self.peer_cpu_seconds / self.seconds


Samples = dict[str, list[Sample]]
"""By client, one a round."""


def interleave(rounds: int, clients: Mapping[str, Callable[[], Sample]]) -> Samples:
    """A B C A B C …: whatever changes on the machine meanwhile, changes for all."""
    samples: Samples = {name: [] for name in clients}
    for round_ in range(rounds):
        for name, measure in clients.items():
            sample = measure()
            samples[name].append(sample)
            print(
                f"  round {round_ + 1}  {name:<32} {sample.cost:8.1f} µs a post  {sample.rate:9,.0f}/s  "
                f"client {sample.core:4.0%}  peer {sample.peer_core:4.0%}",
                flush=True,
            )
    return samples


def cost(samples: Sequence[Sample]) -> float:
    return median(sample.cost for sample in samples)


def rate(samples: Sequence[Sample]) -> float:
    return median(sample.rate for sample in samples)


def core(samples: Sequence[Sample]) -> float:
    return median(sample.core for sample in samples)


def peer_core(samples: Sequence[Sample]) -> float:
    return median(sample.peer_core for sample in samples)


def ratio(samples: Sequence[Sample], to: Sequence[Sample]) -> float:
    """How many times the CPU a post, by the median of the rounds' own ratios."""
    return median(one.cost / other.cost for one, other in zip(samples, to, strict=True))
