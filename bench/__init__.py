"""Benchmarks: what a delivered message costs, side by side with the alternatives, in one run.

    make bench          everything, about ten minutes; writes bench/results/*.json and bench/RESULTS.md
    make bench-quick    a short version, for working on the benchmarks themselves

`cases/` says what is measured and against which targets, `clients/` are the programs that are compared, `peers` is the
other side (`sink/`, and nginx), `programs` runs a client or a worker beside a peer and takes the figures, `report`
writes them down. The method, the same everywhere:

- The client is pinned to one core, its peers and this harness to the other.
- The figure is the CPU time of the client's process, user and system, over a section that leaves out start-up and
  opening connections, divided by the posts that the peer counted in that section.
- Rounds are interleaved (A B C A B C …), the figures are medians over them, and a ratio is the median of the rounds'
  own ratios: neighbours in time, so that a machine that becomes slower changes both.
- Every line states the rate that was reached, and how busy the peer was: one that fills its core was the bottleneck.
"""
