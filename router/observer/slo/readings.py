"""The numbers of objectives for ``/metrics``; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from router.observer.catalogue import Labels
from router.observer.prometheus import PREFIX, Reading
from router.observer.slo.findings import window_label
from router.observer.slo.status import SloStatus, State

_BURN: Final = "How many times faster than it lasts the budget burns, by window; absent without requests"


def readings_of(statuses: Iterable[SloStatus], folded_count: int) -> Iterator[Reading]:
    """Yield all readings, those of one name together. The label ``group_by`` tells a budget's own series apart."""
    listed = [(status, _labels(status)) for status in statuses]
    for status, labels in listed:
        yield _gauge("slo_objective_ratio", "Share of requests that must be good", labels, status.objective / 100)
    for status, labels in listed:
        yield _gauge("slo_period_requests", "Requests in the period of the budget", labels, status.total)
    for status, labels in listed:
        yield _gauge("slo_period_bad_requests", "Bad ones among them", labels, status.bad)
    for status, labels in listed:
        if status.good_ratio is not None:
            yield _gauge("slo_good_ratio", "Share of good requests in the period", labels, status.good_ratio)
    for status, labels in listed:
        if status.budget_left is not None:
            yield _gauge("slo_budget_left_ratio", "Share of the budget that is left", labels, status.budget_left)
    for status, labels in listed:
        for window_s, burn in _burns(status).items():
            window = (("window", window_label(window_s)),)
            yield _gauge("slo_burn_rate", _BURN, (*labels, *window), burn)
    for status, labels in listed:
        for state in State:
            meaning = "1 for the state that the objective is in"
            yield _gauge("slo_state", meaning, (*labels, ("state", str(state))), status.state is state)
    meaning = "Requests that found no place in group_by and were counted under __other__"
    yield Reading(PREFIX + "slo_folded_requests", "counter", meaning, (), folded_count)


def _burns(status: SloStatus) -> dict[float, float]:
    """Return the burn of every window that a rule or an outlook has, each once."""
    found = {each.window_s: each.burn for each in status.outlooks}
    for each in status.burns:
        found[each.long_s] = each.long_burn
        found[each.short_s] = each.short_burn
    return {window_s: burn for window_s, burn in sorted(found.items()) if burn is not None}


def _labels(status: SloStatus) -> Labels:
    own = tuple((f"tag_{name}" if name in _RESERVED else name, value) for name, value in status.group.items())
    return (("slo", status.slo), ("group_by", ",".join(status.group) or "all"), *own)


_RESERVED: Final = frozenset({"slo", "group_by", "window", "state"})


def _gauge(name: str, meaning: str, labels: Labels, value: float) -> Reading:
    return Reading(PREFIX + name, "gauge", meaning, labels, value)
