"""Samples: measured sections of clients, and their medians."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec


class Sample(msgspec.Struct):
    """One section: `posts` in `seconds`, with the CPU time of the client, and that of its peers together."""

    posts: int
    seconds: float
    cpu_seconds: float
    peer_cpu_seconds: float

    @property
    def cost(self) -> float:
        """CPU microseconds per post, which is CPU milliseconds per 1,000 posts."""
        return self.cpu_seconds / self.posts * 1e6

    @property
    def rate(self) -> float:
        return self.posts / self.seconds

    @property
    def core(self) -> float:
        """Share of its core that the client used."""
        return self.cpu_seconds / self.seconds

    @property
    def peer_core(self) -> float:
        return self.peer_cpu_seconds / self.seconds


Samples = dict[str, list[Sample]]
"""By client, one per round."""


def interleave(rounds: int, clients: Mapping[str, Callable[[], Sample]]) -> Samples:
    """Measure in the order A B C A B C …, so that changes on the machine affect all clients alike."""
    samples: Samples = {name: [] for name in clients}
    for round_ in range(rounds):
        for name, measure in clients.items():
            sample = measure()
            samples[name].append(sample)
            print(
                f"  round {round_ + 1}  {name:<32} {sample.cost:8.1f} µs per post  {sample.rate:9,.0f}/s  "
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
    """Ratio of CPU per post: the median of the rounds' own ratios."""
    return median(one.cost / other.cost for one, other in zip(samples, to, strict=True))
