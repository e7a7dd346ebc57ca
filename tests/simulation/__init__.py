"""The whole router on a virtual clock, against scripted hosts and clients, from a seed (README.md).

1. :mod:`~tests.simulation.scenario` what happens in a run: values only, drawn from a seed by :mod:`.drawing`.
2. :mod:`~tests.simulation.virtual_loop` the clock, and an event loop on it; :mod:`.network` connections in memory.
3. :mod:`~tests.simulation.hosts` and :mod:`.clients` what stands on either side; :mod:`.answers` what hosts say.
4. :mod:`~tests.simulation.world` builds the router between them and runs a scenario to its end.
5. :mod:`~tests.simulation.invariants` what must hold after each step and at the end.
6. :mod:`~tests.simulation.plants` bugs that are planted to see that they are found.
"""
