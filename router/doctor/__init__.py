"""``ringrouter doctor``: looks at everything a router needs and says what to do about what is wrong.

::

    findings    what a check has found, and the exit code
    machine     clock, limits, shared memory, permissions
    network     ports and hosts, asked over the network
    service     the units, and the routers that run

Each check takes the configuration and yields findings; none changes anything, and none that fails stops the others.
"""
