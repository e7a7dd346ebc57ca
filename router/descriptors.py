"""File descriptors: one for every client and every request's host, or fewer clients."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from router.config import Config

OTHER_DESCRIPTORS: Final = 256
"""Rings, listeners, probes, logs, and spare connections to hosts."""


def fit_descriptors(config: Config, log: Any) -> Config:
    """Have descriptors for every client and every request's host; return the configuration with as many clients as
    there is room for.

    libzmq ends the whole process when it has no descriptor left for the next client, so it must not come to that.
    """
    others = config.limits.in_flight + OTHER_DESCRIPTORS
    wanted = config.limits.connections + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    clients = max(soft, wanted) - others
    if clients >= config.limits.connections:
        return config
    clients = max(clients, 1)
    log.warning("too few descriptors for limits.connections", descriptors=hard, connections=clients)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, connections=clients))
