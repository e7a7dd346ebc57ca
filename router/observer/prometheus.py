"""``/metrics``: everything counted since the observer's start, for Prometheus; by a custom collector.

Two sets of names, both from the same counts (docs/metrics.md lists them):

* ``gen_ai_…``: OpenTelemetry's names and attributes, dots turned into underscores. Their series are told apart by
  operation, model, host and error, and add up to all requests.
* ``ringrouter_…``: every metric, under the slices of ``observer.slices``. The label ``slice`` says which tags a series
  is told apart by, and those tags are its other labels: ``{slice="feature_name", feature_name="search"}``. Series of
  one ``slice`` add up to all requests; to add up those of two is to count twice.

:func:`capture` copies the counters, which takes a moment; :func:`render` makes the text of the copy, which may take
longer and may run in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Literal, NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString

from router.observer.aggregate import OTEL_ENTRY, Aggregate
from router.observer.catalogue import FULL_ENTRIES, WORD, Labels, Metric, OTel
from router.observer.totals import Line
from router.telemetry import counters

PREFIX: Final = "ringrouter_"
TOTAL_SLICE: Final = "all"
_FULL_SLICES: Final = frozenset(entry or TOTAL_SLICE for entry in FULL_ENTRIES)
PROVIDER: Final = "openai"
"""``gen_ai.provider.name`` of a host whose kind is not known: all speak OpenAI's API."""
_OPERATIONS: Final = {
    "chat": "chat", "responses": "chat", "messages": "chat", "completion": "text_completion",
    "embeddings": "embeddings",
}  # fmt: skip
"""``gen_ai.operation.name`` by endpoint; others go under their own name."""
_RESERVED: Final = frozenset({"slice", "le", "stage", "kind", "outcome", "error", "goal", "good", "basis", "entry"})
"""Labels of ours: a user's own tag of that name becomes ``tag_NAME``."""
_GAUGES: Final = frozenset({
    counters.Counter.CONNECTIONS_OPEN, counters.Counter.IN_FLIGHT, counters.Counter.WAITING,
    counters.Counter.CYCLE_NS_MAX, counters.Counter.HOSTS_HEALTHY,
    counters.Counter.TOOLS, counters.Counter.TOOLS_BYTES, counters.Counter.TOOL_SOURCES_STALE,
    counters.Counter.TOOLS_AGE_S_MAX, counters.Counter.RESPONSES, counters.Counter.RESPONSES_BYTES,
    counters.Counter.RESPONSES_AGE_S_MAX, counters.Counter.CACHE_MEMORY_BYTES,
    counters.Counter.CACHE_STORE_ENTRIES, counters.Counter.CACHE_STORE_BYTES,
    counters.Counter.CACHE_STORE_AGE_S_MAX, counters.Counter.KEEPER_UP,
})  # fmt: skip
"""Counters of the router that go up and down."""


class Reading(NamedTuple):
    """One number from elsewhere: ``name`` in full, without ``_total``; readings of one name stand together."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: Labels
    value: float


class Series(NamedTuple):
    """The totals of one slice, with the labels that name it."""

    slice_name: str
    labels: dict[str, str]
    line: Line


class Capture(NamedTuple):
    """A copy of all counters, at one moment."""

    metrics: Sequence[Metric]
    offsets: Sequence[int]
    series: list[Series]
    otel: list[Series]
    readings: list[Reading]


def capture(aggregate: Aggregate, readings: Iterable[Reading], now_ns: int) -> Capture:
    """Copy what the page is made of. ``readings`` are of the process: what it lost, how it is doing."""
    aggregate.flush(now_ns)
    series = []
    otel = []
    for entry in aggregate.slicer.capped:
        is_otel = ",".join(entry.names) == OTEL_ENTRY
        for held in entry.slices.values():
            line = aggregate.totals.line(held.id)
            if line is None:
                continue
            if is_otel:
                otel.append(Series("", dict(zip(entry.names, held.values, strict=True)), line))
            else:
                series.append(Series(",".join(entry.names) or TOTAL_SLICE, _labels(entry.names, held.values), line))
    return Capture(
        aggregate.metrics, aggregate.totals.offsets, series, otel, [*_own_readings(aggregate, now_ns), *readings]
    )


def _labels(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    labels = {label_of(name): value for name, value in zip(names, values, strict=True)}
    return {"slice": ",".join(label_of(name) for name in names) or TOTAL_SLICE, **labels}


def label_of(tag: str) -> str:
    """Return the label under which a tag is exported. Prometheus itself sets ``instance``."""
    if tag == "instance":
        return "router"
    return f"tag_{tag}" if tag in _RESERVED else tag


def _own_readings(aggregate: Aggregate, now_ns: int) -> Iterator[Reading]:
    folded = PREFIX + "folded_requests"
    for entry in aggregate.slicer.entries():
        name = ",".join(entry.names)
        if name not in {"", OTEL_ENTRY}:
            meaning = "Requests counted under __other__ because their slice found no place"
            yield Reading(folded, "counter", meaning, (("entry", name),), entry.folded_count)
    yield Reading(PREFIX + "observed_requests", "counter", "Finished requests read", (), aggregate.row_count)
    yield Reading(
        PREFIX + "window_bytes", "gauge", "Memory of the windowed histograms", (),
        aggregate.windows.byte_count,
    )  # fmt: skip
    oldest_ns = aggregate.windows.oldest_ns
    yield Reading(
        PREFIX + "window_reach_seconds", "gauge", "How far back the windowed histograms reach", (),
        (now_ns - oldest_ns) / 1e9 if oldest_ns is not None else 0.0,
    )  # fmt: skip
    yield Reading(
        PREFIX + "late_values", "counter", "Values of requests that ended before the oldest window", (),
        aggregate.windows.late_count,
    )  # fmt: skip


def router_readings(values: Mapping[str, Mapping[str, int]]) -> Iterator[Reading]:
    """Turn the counters of routers, by instance and name, into readings, those of one name together."""
    for spec in counters.CATALOGUE:
        kind: Literal["counter", "gauge"] = "gauge" if spec.id in _GAUGES else "counter"
        for instance, found in values.items():
            if spec.name in found:
                name = f"{PREFIX}router_{spec.name}"
                yield Reading(name, kind, f"Of a router: {spec.label}", (("router", instance),), found[spec.name])


def render(page: Capture, accept: str = "", providers: Mapping[str, str] | None = None) -> tuple[bytes, str]:
    """Return the body and its content type, in the format that an ``accept`` header asks for.

    ``providers`` are the kinds of the hosts, by name.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(page, providers or {}))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector:
    """What prometheus_client asks for families."""

    def __init__(self, page: Capture, providers: Mapping[str, str]) -> None:
        self._page = page
        self._providers = providers

    def collect(self) -> Iterator[Family]:
        """Yield all families, each once."""
        yield from self._own()
        yield from self._otel()
        for name, readings in groupby(self._page.readings, key=lambda reading: reading.name):
            yield _reading_family(name, list(readings))

    def _own(self) -> Iterator[Family]:
        indexed = enumerate(self._page.metrics)
        for _, members in groupby(indexed, key=lambda item: item[1].family):
            group = list(members)
            metric = group[0][1]
            name = PREFIX + metric.family
            if metric.unit is WORD:
                yield self._word_family(name, *group[0])
                continue
            family = Family(_with_unit(name, metric), metric.meaning, "histogram")
            for index, member in group:
                for series in self._page.series:
                    labels = {**series.labels, **dict(member.labels)}
                    is_full = member.is_headline or series.slice_name in _FULL_SLICES
                    self._add_histogram(family, labels, index, series, is_full=is_full)
            yield family

    def _word_family(self, name: str, index: int, metric: Metric) -> Family:
        family = Family(name, metric.meaning, "counter")
        begin = self._page.offsets[index]
        for series in self._page.series:
            counts = series.line.counts[begin : begin + len(metric.words)].tolist()
            for labels, count in zip(metric.words, counts, strict=True):
                if count and labels[0][1]:
                    family.add_sample(f"{name}_total", {**series.labels, **dict(labels)}, count)
        return family

    def _otel(self) -> Iterator[Family]:
        named: dict[str, list[tuple[int, Metric, OTel]]] = {}
        for index, metric in enumerate(self._page.metrics):
            for otel in metric.otel:
                named.setdefault(otel.name, []).append((index, metric, otel))
        for dotted, members in named.items():
            _, metric, first = members[0]
            name = _with_unit(dotted.replace(".", "_"), metric)
            family = Family(name, metric.meaning, "counter" if first.is_counter else "histogram")
            for index, _, otel in members:
                for series in self._page.otel:
                    if series.labels["host"] or not otel.is_of_host:
                        self._add_otel(family, otel, index, series)
            yield family

    def _add_otel(self, family: Family, otel: OTel, index: int, series: Series) -> None:
        labels = {**self._attributes(series.labels, otel), **dict(otel.attributes)}
        if not otel.is_counter:
            self._add_histogram(family, labels, index, series, is_full=True)
        elif spent := series.line.sums[index]:
            family.add_sample(f"{family.name}_total", labels, float(spent))

    def _attributes(self, of: Mapping[str, str], otel: OTel) -> dict[str, str]:
        """Return OpenTelemetry's attributes; a server's own address is Prometheus's ``instance``."""
        labels = {
            "gen_ai_operation_name": _OPERATIONS.get(of["endpoint"], of["endpoint"]),
            "gen_ai_provider_name": self._providers.get(of["host"], PROVIDER),
            "gen_ai_request_model": of["model"],
            "server_address" if otel.is_of_host else "ringrouter_host": of["host"],
            "error_type": of["error"],
        }
        return {name: value for name, value in labels.items() if value}

    def _add_histogram(
        self, family: Family, labels: dict[str, str], index: int, series: Series, *, is_full: bool
    ) -> None:
        """Add the samples of one histogram; none of one that is empty, but for the total."""
        metric = self._page.metrics[index]
        begin = self._page.offsets[index]
        counts = series.line.counts[begin : begin + len(metric.bounds) + 1]
        n = int(counts.sum())
        if not n and series.slice_name != TOTAL_SLICE:
            return
        if is_full:
            below = counts.cumsum().tolist()
            for end, count in zip(_ends(metric), below, strict=False):
                family.add_sample(f"{family.name}_bucket", {**labels, "le": end}, count)
        family.add_sample(f"{family.name}_bucket", {**labels, "le": "+Inf"}, n)
        family.add_sample(f"{family.name}_count", labels, n)
        family.add_sample(f"{family.name}_sum", labels, round(float(series.line.sums[index]) * metric.unit.worth, 12))


def _ends(metric: Metric) -> list[str]:
    """Return the boundaries as Prometheus writes them, without the errors of binary fractions."""
    ends = (round(bound * metric.unit.worth, 12) for bound in metric.bounds)
    return [floatToGoString(end) for end in ends]  # type: ignore[no-untyped-call]


def _with_unit(name: str, metric: Metric) -> str:
    return f"{name}_{metric.unit.exported}" if metric.unit.exported else name


def _reading_family(name: str, readings: Sequence[Reading]) -> Family:
    first = readings[0]
    family = Family(name, first.meaning, first.kind)
    for reading in readings:
        sample = f"{name}_total" if first.kind == "counter" else name
        family.add_sample(sample, dict(reading.labels), reading.value)
    return family
