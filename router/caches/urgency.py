"""How urgent a call is for which several clients wait: as the most urgent of them; pure.

It has the first of their classes, and the earliest of their deadlines for its order in the waiting room. It is refused
for its deadline only where all have this one and none would be served later: what one gives up another still wants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from router.admission import BATCH, INTERACTIVE
from router.config.caches import CALLS_AT_ONCE

if TYPE_CHECKING:
    from router.request import Terms

CALLS_MAX: Final = (CALLS_AT_ONCE, CALLS_AT_ONCE * 7 // 8, CALLS_AT_ONCE * 3 // 4)
"""By class: with so many calls under way no further one of the class begins. A file of texts that is warmed in the
background leaves room for calls that somebody waits for."""


class Urgency(NamedTuple):
    """``workload`` is a class, never 0; ``deadline_ns`` 0 where none has one."""

    workload: int
    deadline_ns: int
    serves_late: bool

    def put(self, terms: Terms) -> None:
        """Have a request be as urgent."""
        terms.workload, terms.deadline_ns, terms.serves_late = self


LEAST_URGENT: Final = Urgency(BATCH, 0, serves_late=True)


def of_one(terms: Terms) -> Urgency:
    """Return how urgent a call is for which one client waits."""
    return Urgency(
        terms.workload or INTERACTIVE, terms.deadline_ns, serves_late=terms.serves_late or not terms.deadline_ns
    )


def joined(urgency: Urgency, terms: Terms) -> Urgency:
    """Return how urgent a call becomes for which one more waits."""
    own = of_one(terms)
    if urgency is LEAST_URGENT:
        return own
    deadlines = [each for each in (urgency.deadline_ns, own.deadline_ns) if each]
    return Urgency(
        min(urgency.workload, own.workload),
        min(deadlines, default=0),
        serves_late=urgency.serves_late or own.serves_late or urgency.deadline_ns != own.deadline_ns,
    )


def of_all(every: Iterable[Terms]) -> Urgency:
    """Return how urgent a call is for which all these wait."""
    urgency = LEAST_URGENT
    for terms in every:
        urgency = joined(urgency, terms)
    return urgency
