"""Measuring programs: what ringrouter adds to a stream, beside no router at all, on the machine they run on.

1. ``c/`` a mock model host and a load generator that stamp every token (compiled on demand by ``build``)
2. ``config`` writes a router's configuration and starts it; the one-line start for other harnesses
3. ``machine`` facts of the machine, CPU clocks, memory and descriptors of a process
4. ``processes`` starts and stops what is measured; ``modes`` are the loads; ``harness`` goes through them in rounds
5. ``ring`` measures the rings beside ``alternatives``: queues, deques, ZeroMQ; ``ring_peers`` are the rings themselves
6. ``report`` makes tables of the raw lines; ``python -m bench`` does all of it; ``soak`` looks for leaks under load
"""
