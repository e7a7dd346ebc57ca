"""What each request cost: its share of its hosts' time, or the price of its tokens, and how much of that was wasted.

A host with ``cost_per_hour`` costs the same whether it works or not, so a request is charged its share of the time in
which the host worked on it (:mod:`router.observer.occupancy`), for every attempt, failed ones too. A row's cost is
settled a second after its end at the earliest, and rows leave in the order in which they came.

Wasted is what failed attempts used, and all of a request whose client did not get the whole answer. An attempt that a
host answered with an error status, or with no byte at all, costs nothing by the token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from router.observer.in_flight import Sighting
from router.observer.occupancy import HostClocks, Occupancy, Stay
from router.observer.prices import Prices, TokenCounts, tokens_amount
from router.observer.rows import RequestRow, RowAttempt, RowCost, RowKey
from router.observer.sharing import HostTime

PENDING_ROWS_MAX: Final = 65_536
"""Rows that wait for their cost. Over it the oldest go on without one: memory has a bound, whatever happens."""
_MISSING: Final = ("gap", "no_price", "no_usage")
"""Why an amount is not known; of several the first is told."""


class Charge(NamedTuple):
    """What one attempt cost. ``amount`` is ``None`` when ``missing`` says why; ``host_ns`` when it was not paid for by
    the host's time, or that time is not known.
    """

    amount: float | None
    host_ns: int | None
    basis: str
    missing: str
    is_waste: bool


class CostMeter:
    """Gives every row its cost. To be fed each tick with rows and sightings, the latter taken before the rows."""

    def __init__(self, prices: Prices, hosts: Sequence[str] = ()) -> None:
        """``hosts``: the names of all hosts, so that their idle time counts before they are used first."""
        self._prices = prices
        self._clocks = HostClocks(hosts)
        self._pending: deque[tuple[RequestRow, Occupancy | None]] = deque()
        self._settled: list[RequestRow] = []
        """Rows that are about to be returned."""

    @property
    def pending_count(self) -> int:
        """Rows that wait for their cost."""
        return len(self._pending) + len(self._settled)

    def host_times(self) -> dict[str, HostTime]:
        """Return where each host's time went so far: charged, idle, or not known."""
        return self._clocks.times()

    def add(
        self,
        rows: Sequence[RequestRow],
        sightings: Sequence[Sighting],
        now_ns: int,
        known: Sequence[RequestRow] = (),
    ) -> None:
        """Take the rows of a batch, and the sightings that were made before it was read.

        ``known`` are rows that have their cost already: they tell what ran beside the others, as when an observer goes
        on where one before it ended. Whatever is raised, no row of ``rows`` is lost: it goes on without a cost.
        """
        # The clocks find losses by the numbers of the records; ends can differ from their order by microseconds.
        in_ring_order = sorted((*known, *rows), key=lambda row: (row.instance, row.generation, row.done_seq))
        taken: dict[RowKey, Occupancy] = {}
        try:
            for row in in_ring_order:
                taken[row.key] = self._clocks.take(row)
        finally:
            self._pending.extend((row, taken.get(row.key)) for row in rows)
        self._clocks.see(sightings, now_ns)

    def settled(self, now_ns: int) -> list[RequestRow]:
        """Return the rows whose cost is known now, or never will be, with it.

        When working one out raises, that row has none, and it and those before it are returned by the next call.
        """
        self._clocks.advance(now_ns)
        pending = self._pending
        while pending and (_is_settled(pending[0][1]) or len(pending) > PENDING_ROWS_MAX):
            self._settle_next()
        return self._take_settled()

    def flush(self) -> list[RequestRow]:
        """Return all rows that still wait, with what is known of their cost: the observer ends."""
        while self._pending:
            self._settle_next()
        return self._take_settled()

    def _settle_next(self) -> None:
        row, occupancy = self._pending.popleft()
        self._settled.append(row)  # first without: a fault must not lose it
        if occupancy is not None:
            self._settled[-1] = row.with_cost(row_cost(row, occupancy, self._prices))

    def _take_settled(self) -> list[RequestRow]:
        settled, self._settled = self._settled, []
        return settled


def _is_settled(occupancy: Occupancy | None) -> bool:
    return occupancy is None or occupancy.is_settled()


def row_cost(row: RequestRow, occupancy: Occupancy, prices: Prices) -> RowCost:
    """Return the cost of a request from its shares of its hosts' time. A request that reached no host cost nothing."""
    charges = [
        _charge(row, attempt, stay, prices)
        for attempt, stay in zip(row.attempts, occupancy.of_attempts, strict=True)
        if stay is not None
    ]
    charges += [_charge_of_time(stay, prices, is_waste=True) for stay in occupancy.unnamed]
    waste = [charge for charge in charges if charge.is_waste]
    amount = _amount(charges)
    missing = {charge.missing for charge in charges}
    bases = {charge.basis for charge in charges}
    return RowCost(
        amount=amount,
        waste_amount=_amount(waste),
        host_ns=_host_ns(charges),
        waste_host_ns=_host_ns(waste),
        currency=prices.currency,
        basis="" if amount is None or not bases else bases.pop() if len(bases) == 1 else "mixed",
        missing=next((word for word in _MISSING if word in missing), ""),
    )


def _charge(row: RequestRow, attempt: RowAttempt, stay: Stay, prices: Prices) -> Charge:
    is_waste = attempt.outcome != "ok" or row.outcome != "ok"
    price = prices.of_model(row.model)
    if price is None or prices.ns_cost(attempt.host) is not None:
        return _charge_of_time(stay, prices, is_waste=is_waste)
    if attempt.outcome == "failed" and (attempt.status >= 400 or attempt.first_byte_mono_ns is None):
        return Charge(0.0, None, "tokens", "", is_waste)
    if attempt.outcome == "failed" or row.n_in is None:
        return Charge(None, None, "tokens", "no_usage", is_waste)
    tokens = TokenCounts(row.n_in, row.n_out, row.n_cached or 0, row.n_reasoning or 0)
    return Charge(tokens_amount(price, tokens), None, "tokens", "", is_waste)


def _charge_of_time(stay: Stay, prices: Prices, *, is_waste: bool) -> Charge:
    if stay.share.lost or not stay.share.ended:
        return Charge(None, None, "occupancy", "gap", is_waste)
    ns_cost = prices.ns_cost(stay.host)
    if ns_cost is None:
        return Charge(None, stay.share.ns, "occupancy", "no_price", is_waste)
    return Charge(stay.share.ns * ns_cost, stay.share.ns, "occupancy", "", is_waste)


def _amount(charges: Sequence[Charge]) -> float | None:
    amounts = [charge.amount for charge in charges if charge.amount is not None]
    return sum(amounts, 0.0) if len(amounts) == len(charges) else None


def _host_ns(charges: Sequence[Charge]) -> int | None:
    """Return the sum of the hosts' time; ``None`` when one is not known, or all was paid for by the token."""
    of_time = [charge for charge in charges if charge.basis == "occupancy"]
    shares = [charge.host_ns for charge in of_time if charge.host_ns is not None]
    if len(shares) < len(of_time) or (charges and not of_time):
        return None
    return sum(shares)
