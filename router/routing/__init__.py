"""Routing, pure: which host gets a request.

The default is :mod:`router.routing.least_outstanding`, a function. The others are objects that a model may be
configured with (:mod:`router.routing.policy`), loaded only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from router.routing.candidates import NO_HOST, Candidate, PolicyId, Reason, Verdict
from router.routing.least_outstanding import choose, explain

if TYPE_CHECKING:
    from router.config import HostConfig, RoutingConfig
    from router.routing.policy import Policy

__all__ = ["NO_HOST", "Candidate", "PolicyId", "Reason", "Verdict", "choose", "explain", "make"]


def make(routing: RoutingConfig, hosts: Mapping[int, HostConfig], random: Random) -> Policy | None:
    """Return the policy of a model, ``None`` for plain least outstanding, which :func:`choose` is.

    ``hosts`` are the settings of hosts by their id; it is looked at for each decision, so that what changes in it
    counts at once. ``random`` must be seeded: the same seed and the same requests give the same choices.
    """
    if routing.is_default:
        return None
    from router.routing.factory import build  # noqa: PLC0415 - only who configures a policy loads it

    return build(routing, hosts, random)
