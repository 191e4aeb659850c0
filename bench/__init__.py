"""Benchmarks: what a delivered message costs, side by side with the alternatives, in one run.

    make bench          all of them, about twenty minutes; writes bench/results/*.json and bench/RESULTS.md
    make bench-quick    a short version, for working on the benchmarks themselves

`cases/` defines what is measured and the targets, `clients/` are the programs under comparison, `peers` the servers
that they call (`sink/`, and nginx), `programs` runs a client or a worker against a peer and measures it, `report`
stores the results. The method is the same for all:

- The client is pinned to one core, its peers and this harness to the other.
- CPU per post is the CPU time of the client's process, user and system, over a section without start-up and
  connection establishment, divided by the posts that the peer counted in that section.
- Rounds are interleaved (A B C A B C …). Figures are medians over the rounds, and a ratio is the median of the
  rounds' own ratios: both sides are close in time, so a machine that becomes slower affects both.
- Every row states the rate reached and the peer's CPU usage: a peer that fills its core was the bottleneck.
"""
