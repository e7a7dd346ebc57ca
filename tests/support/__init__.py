"""What tests share: routers and model hosts as real processes, in directories and on ports of their own.

``waiting`` has free ports, fresh directories in shared memory and :func:`~tests.support.waiting.wait_until`;
``processes`` has :class:`~tests.support.processes.RouterProcess` and :class:`~tests.support.processes.HostProcess`.
"""
