"""What routing sees of hosts and what it says of them: values and numbers of the done record, pure."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

NO_HOST: Final = -1
"""Returned where no candidate can take the request now."""

Candidate = tuple[int, int, int, bool, bool]
"""What routing sees of a host: its id, how many of its slots are busy (running and draining requests), how many it has
now (at least one), whether it can be used, and whether it failed this request already."""

Verdict = tuple[int, int, float]
"""What is said of a candidate: the id of its host, a :class:`Reason`, and a score whose unit the reason gives."""


class PolicyId(IntEnum):
    """The policy that decided; the number stands in the done record."""

    LEAST_OUTSTANDING = 1
    ROUND_ROBIN = 2
    WEIGHTED = 3
    P2C_EWMA = 4
    LEAST_PREDICTED_TTFT = 5
    PREFIX_AFFINITY = 6


class Reason(IntEnum):
    """Why a candidate was taken or not; the number stands in the done record.

    The score beside it is the share of the host's slots in use, unless something else is said here. That of a host that
    was taken by the policy itself (``CHOSEN``), or could have been, is the policy's own:

    * least outstanding, round robin: the share of slots in use
    * weighted: the host's credit before this turn, in weights
    * power of two choices: expected time to the first token with all that is outstanding, seconds
    * least predicted TTFT: predicted time to the first token, seconds
    * prefix affinity: the share of the prompt that the host was thought to hold
    """

    CHOSEN = 1
    BUSIER = 2
    FULL = 3
    UNHEALTHY = 4
    TRIED = 5
    """It failed this request already."""
    BREAKER_OPEN = 6
    """Its requests failed lately: none go there until some are let through to try it."""
    EJECTED = 7
    """It did far worse than its peers and is left out for a while."""
    DRAINING = 8
    """It is being taken out of service."""
    STICKY = 9
    """Taken because its session was there before."""
    EXPLORED = 10
    """Taken to learn how fast it is now."""
    PINNED = 11
    """Taken because the client asked for this host."""
    ABOVE_BOUND = 12
    """Left out for its load; the score is its load as a multiple of the mean."""
    FEWER_HELD = 13
    """It would have had more to do before the first token than the chosen one."""
    SLOWER = 14
    """A longer time to the first token was expected of it."""
    NOT_ITS_TURN = 15
    NOT_DRAWN = 16
    """It was none of the two that were compared."""
    LATER_IN_ORDER = 17
    """A host that is preferred by priority or cost could take the request; the score is its own priority or cost."""
    NOT_ITS_SESSION = 18
    """Another host had the session before."""
