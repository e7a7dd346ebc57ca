"""Measuring programs: what ringrouter adds to a stream, beside no router at all, on the machine they run on.

1. ``c/`` a mock model host and a load generator that stamp every token (compiled on demand by ``build``)
2. ``config`` writes a router's configuration and starts it; the one-line start for other harnesses
3. ``machine`` facts of the machine, CPU clocks, memory and descriptors of a process
4. ``processes`` starts and stops what is measured; ``modes`` are the loads; ``harness`` goes through them in rounds
5. ``report`` makes tables of the raw lines, ``hgrm`` and ``plot`` the distributions; ``python -m bench`` does all of it
6. ``peers`` measures other proxies and routers beside it: ``peers_known`` are they, ``peers_process`` runs them,
   ``peers_ratios`` compares, ``peers_must`` judges; ``soak`` looks for leaks under load
7. ``ring`` measures the rings beside ``alternatives``: queues, deques, ZeroMQ; ``ring_peers`` are the rings themselves
8. ``zeromq`` measures the ZeroMQ socket; ``gate`` counts what must not grow
"""
