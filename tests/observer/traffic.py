"""Simulated traffic with known causes: weeks of tagged requests as columns, in numpy, from a seed.

What is in it: three hosts of two models, six features with prompt versions of their own, devices, channels, networks
and an experiment; traffic that follows the day and the week; hosts that are slower under load; days that are a few
percent faster or slower than others, for all and for each host and feature; minutes in which a host is much slower;
long tails; failures; and harmless releases of prompt versions.

What can be planted (:class:`Plant`): a host that computes or decodes more slowly, a new prompt version with longer
prompts, a tool that answers late.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from router.observer.alerts.evidence.table import NUMBERS, OK, PLACE, Table, Values
from router.observer.catalogue import OUTCOME_WORDS
from router.stamps import STAGES

S = 1_000_000_000
MS = 1_000_000
HOUR = 3600 * S
DAY = 24 * HOUR
MONDAY_WALL_NS = 1_790_553_600 * S
"""A Monday, midnight UTC."""
HOSTS = ("gpu-0", "gpu-1", "gpu-2")
MODELS = ("large", "small")
DEVICES, DEVICE_SHARES = ("mobile", "desktop", "tablet"), (0.55, 0.35, 0.10)
CHANNELS, CHANNEL_SHARES = ("web", "app", "api"), (0.5, 0.3, 0.2)
NETWORKS, NETWORK_SHARES = ("wifi", "cell", "wired"), (0.5, 0.3, 0.2)
VARIANTS = ("a", "b")


class Feature(NamedTuple):
    name: str
    share: float
    model: str
    tokens_in: float
    tokens_out: float
    tool_share: float
    """Share of its requests that bring results of tools."""


FEATURES = (
    Feature("search", 0.28, "large", 900, 160, 0.0),
    Feature("chat", 0.24, "large", 500, 250, 0.0),
    Feature("summary", 0.16, "small", 2600, 180, 0.0),
    Feature("agent", 0.14, "large", 1200, 120, 0.6),
    Feature("autocomplete", 0.12, "small", 220, 24, 0.0),
    Feature("planner", 0.06, "small", 1100, 200, 0.4),
)
HOSTS_OF = {"large": (0.4, 0.4, 0.2), "small": (0.2, 0.3, 0.5)}
"""Shares of a model's requests that each host gets."""


class Plant(NamedTuple):
    """Something that gets worse. ``kind``: ``host_prefill``, ``host_decode``, ``prompt``, ``tool``; ``length`` is what
    users do: longer inputs, which is nobody's fault."""

    kind: str
    value: str
    """A host, or a feature."""
    begin_wall_ns: int
    factor: float
    share: float = 1.0
    """Of a prompt version: share of the feature's requests that have it."""

    @property
    def where(self) -> dict[str, str]:
        """Return the slice that it is."""
        if self.kind.startswith("host"):
            return {"host": self.value}
        if self.kind == "prompt":
            return {"feature_name": self.value, "prompt_version": "new"}
        return {"feature_name": self.value}

    @property
    def stage(self) -> str:
        """Return the stage that takes longer."""
        return {"host_decode": "decode", "tool": "tool"}.get(self.kind, "host_first_token")


class Traffic:
    """Requests at ``per_s`` a second on average, over the week."""

    def __init__(
        self,
        values: Values,
        seed: int,
        per_s: float = 1.0,
        begin_wall_ns: int = MONDAY_WALL_NS,
        plants: Sequence[Plant] = (),
    ) -> None:
        self.values = values
        self.plants = list(plants)
        self._random = np.random.default_rng(seed)
        self._per_s = per_s
        self._begin_ns = begin_wall_ns
        days = 64
        draw = self._random.normal
        self._day_all = draw(0, 0.06, days)
        self._day_host = draw(0, 0.05, (days, len(HOSTS)))
        self._day_feature = draw(0, 0.04, (days, len(FEATURES)))
        self._day_length = draw(0, 0.05, (days, len(FEATURES)))
        self._blips = self._make_blips(days)
        self._release_days = self._random.integers(2, 12, len(FEATURES))

    def reseed(self, seed: int) -> None:
        """Let what comes from now on be another draw; the days stay as they are."""
        self._random = np.random.default_rng(seed)

    def _make_blips(self, days: int) -> list[tuple[int, int, int, float]]:
        """Return minutes in which a host is slow: begin, end, host, factor. About one in two days."""
        count = self._random.poisson(days / 2)
        begins = self._begin_ns + (self._random.random(count) * days * DAY).astype(np.int64)
        lengths = (self._random.uniform(60, 420, count) * S).astype(np.int64)
        hosts = self._random.integers(0, len(HOSTS), count)
        factors = self._random.uniform(1.3, 2.5, count)
        return [
            (int(b), int(b + n), int(h), float(f)) for b, n, h, f in zip(begins, lengths, hosts, factors, strict=True)
        ]

    # ------------------------------------------------------------ what comes
    def blocks(self, begin_wall_ns: int, end_wall_ns: int, step_ns: int) -> Iterator[tuple[int, Table]]:
        """Yield the requests of each step with its end."""
        for begin in range(begin_wall_ns, end_wall_ns, step_ns):
            yield begin + step_ns, self.between(begin, min(end_wall_ns, begin + step_ns))

    def load(self, wall_ns: Any) -> Any:
        """Return traffic over its mean at a time: the day's curve, less of it at weekends."""
        hour = (wall_ns % DAY) / HOUR
        day = ((wall_ns - MONDAY_WALL_NS) // DAY) % 7
        return (1 - 0.75 * np.cos((hour - 3) * 2 * np.pi / 24)) * np.where(day >= 5, 0.6, 1.15)

    def between(self, begin_wall_ns: int, end_wall_ns: int) -> Table:
        """Return the requests that end in a stretch of time (an hour at most), in order."""
        middle = (begin_wall_ns + end_wall_ns) // 2
        count = int(self._random.poisson(self._per_s * float(self.load(middle)) * (end_wall_ns - begin_wall_ns) / S))
        end = np.sort(self._random.integers(begin_wall_ns, end_wall_ns, count))
        return self._table(end, middle)

    def _table(self, end: Any, middle: int) -> Table:
        random, count = self._random, end.size
        feature = random.choice(len(FEATURES), count, p=[each.share for each in FEATURES])
        model = np.array([MODELS.index(each.model) for each in FEATURES])[feature]
        edges = np.cumsum([HOSTS_OF[name] for name in MODELS], axis=1)
        host = np.minimum((random.random(count)[:, None] > edges[model]).sum(axis=1), len(HOSTS) - 1)
        version = self._versions(feature, end)
        numbers = np.full((count, len(NUMBERS)), np.nan, dtype=np.float32)
        self._fill(numbers, feature, model, host, version, end, middle)
        outcome = np.where(random.random(count) < 0.003, OUTCOME_WORDS.index("host_error"), OK).astype(np.int8)
        picks = {
            "host": (HOSTS, host),
            "model": (MODELS, model),
            "feature_name": ([each.name for each in FEATURES], feature),
            "prompt_version": (("v1", "v2", "new"), version),
            "device_type": (DEVICES, random.choice(3, count, p=DEVICE_SHARES)),
            "channel": (CHANNELS, random.choice(3, count, p=CHANNEL_SHARES)),
            "network_type": (NETWORKS, random.choice(3, count, p=NETWORK_SHARES)),
            "workload_class": (("interactive",), np.zeros(count, np.int64)),
            "variant": (VARIANTS, random.integers(0, 2, count)),
            "endpoint": (("chat",), np.zeros(count, np.int64)),
        }
        codes = np.zeros((count, len(self.values.dimensions)), dtype=np.int16)
        for name, (texts, chosen) in picks.items():
            at = self.values.dimensions.index(name)
            codes[:, at] = np.array([self.values.code(at, text) for text in texts])[chosen]
        ids = np.char.mod("%016x", random.integers(0, 2**62, count)).astype("S32") if count else np.zeros(0, "S32")
        return Table(
            end_wall_ns=end.astype(np.int64),
            numbers=numbers,
            codes=codes,
            outcome=outcome,
            good=np.full(count, -1, np.int8),
            is_stream=np.ones(count, np.bool_),
            weight=np.ones(count, np.float32),
            request_id=ids.astype("S64"),
            trace_id=ids,
        )

    # ------------------------------------------------------------ how long it takes
    def _versions(self, feature: Any, end: Any) -> Any:
        """Return 0 before a feature's harmless release, 1 after it; 2 for a version that was planted."""
        released = self._begin_ns + self._release_days * DAY + 14 * HOUR
        version = (end >= released[feature]).astype(np.int64)
        for plant in self.plants:
            if plant.kind == "prompt":
                is_its = (feature == _feature(plant.value)) & (end >= plant.begin_wall_ns)
                version[is_its & (self._random.random(end.size) < plant.share)] = 2
        return version

    def _fill(self, numbers: Any, feature: Any, model: Any, host: Any, version: Any, end: Any, middle: int) -> None:
        random, count = self._random, end.size
        day = int((middle - self._begin_ns) // DAY)
        load = float(self.load(middle))
        sizes = np.array([[each.tokens_in, each.tokens_out] for each in FEATURES])[feature]
        n_in = sizes[:, 0] * np.exp(random.normal(0, 0.6, count) + self._day_length[day, feature])
        n_in *= self._factor("prompt", feature, end, version == 2) * self._factor("length", feature, end)
        n_out = np.maximum(2, sizes[:, 1] * np.exp(random.normal(0, 0.5, count)))
        slow = np.exp(self._day_all[day] + self._day_host[day, host] + self._day_feature[day, feature])
        slow = slow * (1 + 0.12 * load) * self._blip_factor(host, end)
        of_model = np.array([1.0, 0.45])[model]
        prefill = (25 + 0.16 * n_in) * of_model * slow * np.exp(random.normal(0, 0.35, count)) * MS
        prefill *= self._factor("host_prefill", host, end)
        tail = random.random(count) < 0.01
        prefill = np.where(tail, prefill * random.uniform(2, 5, count), prefill)
        pace = 14 * of_model * slow * np.exp(random.normal(0, 0.15, count)) * MS
        pace *= self._factor("host_decode", host, end)
        stages = {name: np.abs(random.normal(0.05, 0.02, count)) * MS for name in STAGES}
        stages["queue"] = random.exponential(1 + 12 * load**2, count) * MS
        stages["upload"] = random.exponential(3, count) * MS
        stages["host_first_byte"] = np.abs(random.normal(4, 1, count)) * MS
        stages["host_first_token"] = prefill
        stages["decode"] = pace * (n_out - 1)
        stages["tail"] = random.exponential(0.5, count) * MS
        for name, column in stages.items():
            numbers[:, PLACE[f"stage.{name}"]] = column
        ttft = sum(stages[name] for name in STAGES[: STAGES.index("egress") + 1])
        numbers[:, PLACE["ttft"]] = numbers[:, PLACE["waited"]] = ttft
        e2e = ttft + stages["decode"] + stages["tail"]
        numbers[:, PLACE["e2e"]] = numbers[:, PLACE["duration"]] = numbers[:, PLACE["left"]] = e2e
        numbers[:, PLACE["tpot"]] = pace
        numbers[:, PLACE["n_in"]] = np.round(n_in)
        numbers[:, PLACE["n_out"]] = np.round(n_out)
        numbers[:, PLACE["cost"]] = (prefill * 0.6 + stages["decode"] * 0.2) / S * 2.5 / 3600
        self._fill_tools(numbers, feature, end)

    def _fill_tools(self, numbers: Any, feature: Any, end: Any) -> None:
        random, count = self._random, end.size
        has = random.random(count) < np.array([each.tool_share for each in FEATURES])[feature]
        tool = 700 * np.exp(random.normal(0, 0.6, count)) * MS * self._factor("tool", feature, end)
        numbers[:, PLACE["stage.tool"]] = np.where(has, tool, np.nan)

    def _factor(self, kind: str, index: Any, end: Any, only: Any = True) -> Any:
        """Return how much longer something takes for each request, because of what was planted."""
        factor = np.ones(end.size)
        for plant in self.plants:
            if plant.kind == kind:
                own = HOSTS.index(plant.value) if kind.startswith("host") else _feature(plant.value)
                factor[(index == own) & (end >= plant.begin_wall_ns) & only] *= plant.factor
        return factor

    def _blip_factor(self, host: Any, end: Any) -> Any:
        factor = np.ones(end.size)
        for begin, stop, of_host, value in self._blips:
            if end.size and begin <= end[-1] and end[0] < stop:
                factor[(host == of_host) & (end >= begin) & (end < stop)] *= value
        return factor


def _feature(name: str) -> int:
    return [each.name for each in FEATURES].index(name)
