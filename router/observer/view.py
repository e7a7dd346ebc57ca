"""The numbers of one stretch of time, out of an :class:`~router.observer.aggregate.Aggregate`; pure.

As :mod:`router.observer.state` describes them, for people and programs. The stretch ends now and begins with a window,
so that it is longer than asked for by up to one window of that age; rates are over its true length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from router.observer.aggregate import TOTAL, Aggregate
from router.observer.catalogue import COST_WORDS, MONEY, NS, OUTCOME_WORDS, PACE
from router.observer.hist import Histogram
from router.observer.hist_files import Interval, hgrm, hlog
from router.observer.rows import STAGE_FIELDS
from router.observer.slices import Slice as Placed
from router.observer.state import Host, Quantiles, Slice, SliceTable, Traffic
from router.telemetry.records import OTHER_VALUE

METRICS: Final = (
    *("ttft", "ttfc", "ttfo", "tpot", "icl", "stall_max", "early_tps", "visible_2s", "e2e", "router_overhead"),
    *("host_ttft", "queue_depth", "cancel_latency", "tokens_saved"),
)
"""What :meth:`View.metrics` returns, in this order."""
STAGES: Final = tuple(name for name, _ in STAGE_FIELDS)
_STAGE_METRICS: Final = tuple(f"stage.{name}" for name in STAGES)
_HOST_METRICS: Final = ("outcome", "ttft", "tpot", "tokens_out", "cost")
_SLICE_METRICS: Final = ("outcome", "ttft", "tpot", "early_tps", "e2e", "priced")
_SLICE_MEANS: Final = ("cost", *_STAGE_METRICS)
_OK: Final = OUTCOME_WORDS.index("ok")
_LEFT: Final = OUTCOME_WORDS.index("client_gone")
_UNKNOWN_COSTS: Final = frozenset(COST_WORDS.index(word) for word in ("no_price", "no_usage", "gap"))


class View:
    """Reads the last ``window_ns`` before ``now_ns`` (nanoseconds since 1970, UTC)."""

    def __init__(self, aggregate: Aggregate, now_ns: int, window_ns: int) -> None:
        aggregate.flush(now_ns)
        self._aggregate = aggregate
        self._begin_ns, self._end_ns = now_ns - window_ns, now_ns + 1
        first = next(aggregate.windows.between(self._begin_ns, self._end_ns), None)
        begin_ns = self._begin_ns if first is None else min(first.start_ns, self._begin_ns)
        self.covered_ns = max(1, now_ns - max(begin_ns, aggregate.started_ns))
        """Length of what the numbers are of; less than was asked for while the observer is young."""

    def histograms(self, names: Sequence[str], slice_id: int | None = None) -> dict[str, Histogram]:
        """Return histograms of a slice (of all requests, unless given) by the names of their metrics."""
        if slice_id is None:
            total = self._slices(TOTAL)
            slice_id = total[0].id if total else -1
        found = self._aggregate.histograms(names, [slice_id], self._begin_ns, self._end_ns)
        return dict(zip(names, found[0], strict=True))

    def hlog(self, names: Sequence[str], by: str = TOTAL) -> str:
        """Return the histograms of metrics, window by window, as an ``.hlog`` file; each slice of ``by`` has a tag.

        Values are as inside: nanoseconds, tokens. Raises ``KeyError`` for a metric that there is not.
        """
        windows = list(self._aggregate.windows.between(self._begin_ns, self._end_ns))
        series = []
        for placed in self._slices(by):
            spans = [(window.start_ns, window.length_ns) for window in windows]
            found = [self._aggregate.histograms(names, [placed.id], start, start + 1)[0] for start, _ in spans]
            for position, name in enumerate(names):
                of = [Interval(*span, each[position]) for span, each in zip(spans, found, strict=True)]
                tag = " ".join([name, *placed.values])
                series.append((tag, [interval for interval in of if interval.histogram.n]))
        return hlog(series, windows[0].start_ns if windows else self._begin_ns)

    def hgrm(self, name: str) -> str:
        """Return the percentile spectrum of a metric over all requests, as an ``.hgrm`` file; times are milliseconds.

        Raises ``KeyError`` for a metric that there is not.
        """
        is_time = self._aggregate.metric(name).unit is NS
        return hgrm(self.histograms([name])[name], 1e6 if is_time else 1.0)

    def metrics(self) -> list[Quantiles]:
        """Return percentiles of :data:`METRICS` over all requests."""
        return [self._quantiles(name, name, histogram) for name, histogram in self.histograms(METRICS).items()]

    def stages(self) -> list[Quantiles]:
        """Return percentiles of every stage over all answered requests, in the order of the path."""
        found = self.histograms(_STAGE_METRICS)
        return [self._quantiles(name, name.removeprefix("stage."), found[name]) for name in _STAGE_METRICS]

    def traffic(self, running_count: int, waiting_count: int) -> Traffic:
        """Return what went through; what is under way is known to the caller."""
        found = self.histograms(("outcome", "goodput", "tokens_in", "tokens_out", "cost", "cost_basis"))
        outcomes = _by_bucket(found["outcome"])
        named = {OUTCOME_WORDS[outcome]: count for outcome, count in outcomes.items()}
        request_count = found["outcome"].n
        goodput = _by_bucket(found["goodput"])
        judged_count = sum(goodput.values())
        return Traffic(
            request_count=request_count,
            requests_per_s=self._per_s(request_count),
            outcomes=dict(sorted(named.items(), key=lambda item: -item[1])),
            tokens_in_per_s=self._per_s(found["tokens_in"].total),
            tokens_out_per_s=self._per_s(found["tokens_out"].total),
            running_count=running_count,
            waiting_count=waiting_count,
            goodput=sum(n for i, n in goodput.items() if i % 2) / judged_count if judged_count else None,
            cost=_money(found["cost"]),
            cost_unknown_count=sum(n for i, n in _by_bucket(found["cost_basis"]).items() if i in _UNKNOWN_COSTS),
        )

    def hosts(self, running_counts: Mapping[str, int]) -> list[Host]:
        """Return every host that ended requests in this time or runs some now, by name."""
        placed = {each.values[0]: each for each in self._slices("host")}
        found = dict(zip(placed, self._of_slices(list(placed.values()), _HOST_METRICS), strict=True))
        nothing = dict.fromkeys(_HOST_METRICS, Histogram.of([]))
        names = sorted({name for name, of in found.items() if of["outcome"].n} | running_counts.keys())
        return [self._host(name, running_counts.get(name, 0), found.get(name, nothing)) for name in names]

    def _host(self, name: str, running_count: int, of: Mapping[str, Histogram]) -> Host:
        return Host(
            name=name,
            running_count=running_count,
            request_count=of["outcome"].n,
            failed_count=_failed(of["outcome"]),
            left_count=_left(of["outcome"]),
            tokens_out_per_s=self._per_s(of["tokens_out"].total),
            ttft_p50_ns=of["ttft"].quantile(0.5),
            ttft_p95_ns=of["ttft"].quantile(0.95),
            tpot_p50_ns=of["tpot"].quantile(0.5),
            cost=_money(of["cost"]),
        )

    def slices(self, by: str) -> SliceTable | None:
        """Return the slices of an entry, the busiest first; ``None`` when there is no such entry."""
        entry = self._aggregate.slicer.entry(by)
        if entry is None:
            return None
        placed = self._slices(by)
        ids = [each.id for each in placed]
        means = self._aggregate.means(_SLICE_MEANS, ids, self._begin_ns, self._end_ns)
        found = list(zip(placed, self._of_slices(placed, _SLICE_METRICS), means, strict=True))
        rows = [_slice(each, of, cost, stage_ns) for each, of, (cost, *stage_ns) in found if of["outcome"].n]
        # A client may send the word itself: it says something only where requests had to be folded.
        is_other_busy = any(OTHER_VALUE in each.values and of["outcome"].n for each, of, _ in found)
        busiest = sorted(rows, key=lambda row: -row.request_count)
        return SliceTable(by=by, rows=busiest, is_overflowed=bool(entry.folded_count) and is_other_busy)

    def _slices(self, by: str) -> list[Placed]:
        entry = self._aggregate.slicer.entry(by)
        return list(entry.slices.values()) if entry is not None else []

    def _of_slices(self, placed: Sequence[Placed], names: Sequence[str]) -> list[dict[str, Histogram]]:
        found = self._aggregate.histograms(names, [each.id for each in placed], self._begin_ns, self._end_ns)
        return [dict(zip(names, of, strict=True)) for of in found]

    def _per_s(self, count: int) -> float:
        return count / (self.covered_ns / 1e9)

    def _quantiles(self, name: str, shown: str, histogram: Histogram) -> Quantiles:
        unit = self._aggregate.metric(name).unit
        worth = unit.worth if unit is PACE else 1.0
        values = (histogram.mean(), *(histogram.quantile(q) for q in (0.5, 0.95, 0.99)))
        mean, p50, p95, p99 = (None if value is None else value * worth for value in values)
        return Quantiles(name=shown, unit=unit.name, n=histogram.n, mean=mean, p50=p50, p95=p95, p99=p99)


def _longest(stage_ns: Sequence[float | None]) -> str:
    """Return the name of the longest stage; empty when there is none."""
    longest_ns, name = max(zip((ns or 0.0 for ns in stage_ns), STAGES, strict=True))
    return name if longest_ns else ""


def _slice(placed: Placed, of: Mapping[str, Histogram], cost: float | None, stage_ns: Sequence[float | None]) -> Slice:
    pace = of["early_tps"].quantile(0.5)
    return Slice(
        value=shown(placed.values),
        request_count=of["outcome"].n,
        failed_count=_failed(of["outcome"]),
        left_count=_left(of["outcome"]),
        ttft_p50_ns=of["ttft"].quantile(0.5),
        ttft_p95_ns=of["ttft"].quantile(0.95),
        tpot_p50_ns=of["tpot"].quantile(0.5),
        early_tps_p50=None if pace is None else pace * PACE.worth,
        e2e_p95_ns=of["e2e"].quantile(0.95),
        cost_per_response=_cost_per_response(cost, of["priced"]),
        longest_stage=_longest(stage_ns),
    )


def shown(values: Sequence[str]) -> str:
    """Return the values of a slice as one text; empty when none was given."""
    return ", ".join(value or "–" for value in values) if any(values) else ""


def _by_bucket(histogram: Histogram) -> dict[int, int]:
    """Return counts of words by their position: each has a bucket of its own."""
    return dict(zip(histogram.buckets.tolist(), histogram.counts.tolist(), strict=True))


def _failed(outcomes: Histogram) -> int:
    return outcomes.n - _by_bucket(outcomes).get(_OK, 0) - _left(outcomes)


def _left(outcomes: Histogram) -> int:
    return _by_bucket(outcomes).get(_LEFT, 0)


def _cost_per_response(mean: float | None, priced: Histogram) -> float | None:
    """Return what the priced requests cost over the answers among them, from their mean and their outcomes."""
    answer_count = _by_bucket(priced).get(_OK, 0)
    return mean * priced.n / answer_count * MONEY.worth if mean is not None and answer_count else None


def _money(histogram: Histogram) -> float | None:
    """Return what was spent; ``None`` when no cost is known."""
    return histogram.total * MONEY.worth if histogram.n else None
