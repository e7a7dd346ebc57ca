"""Compares features, prompt versions, devices, ...: how fast, how often broken, at what cost, and what has changed.

Requests count by when they ended. Percentiles are by nearest rank (the value at rank ``ceil(p / 100 · n)``), of answers
that ended well; those that failed are counted beside them. Cost per response is what all requests of a group cost,
failed ones too, over its good answers.

The stages are compared by their means over good answers; those up to ``egress`` sum to the mean of TTFT, but for folded
answers, whose TTFT has the host's ``decode`` in it too. The stage that changed most is the one whose mean differs most
from that of the hour before. A prompt version that was not there in that hour is compared with the other versions
beside it: the requests of this time and of the hour before that differ from it in nothing but the version.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from router.observer.columns import TAG_COLUMNS
from router.observer.parquet import quoted
from router.observer.query import JournalReader, QueryError
from router.observer.rows import STAGE_FIELDS

VERSION: Final = "prompt_version"
"""The tag whose new values are compared with its other ones."""
STAGE_SQL: Final = {
    name: "greatest(egress_ns - CASE WHEN folded THEN coalesce(decode_ns, 0) ELSE 0 END, 0)"
    if name == "egress"
    else field
    for name, field in STAGE_FIELDS
}
"""Each stage as an expression: the row's egress of a folded answer holds its decode, see ``catalogue.egress_ns``."""
BEFORE_NS: Final = 3_600_000_000_000
"""What the report's time is compared with: the hour before it."""
GROUPS_MAX: Final = 1000
"""Groups that are told, the largest first; of more, only a query can."""
FIELDS: Final = ("model", "host", "endpoint", "instance", "outcome", "error", "policy")
"""What requests can be told apart and chosen by beside their tags."""


class StageMean(msgspec.Struct, frozen=True):
    """The mean of a stage over good answers."""

    stage: str
    mean_ns: float


class StageChange(msgspec.Struct, frozen=True):
    """The stage whose mean differs most from that of the requests compared with."""

    stage: str
    mean_ns: float
    before_mean_ns: float
    """Of the requests compared with."""
    against: str
    """:data:`THE_HOUR_BEFORE` or :data:`OTHER_VERSIONS`."""


THE_HOUR_BEFORE: Final = "before"
OTHER_VERSIONS: Final = "other versions"


class UnknownCost(msgspec.Struct, frozen=True):
    """Requests whose cost is not known for one reason, by the host of their last attempt."""

    missing: str
    """``no_price``, ``no_usage`` or ``gap``; empty for a row that was written before its cost was known."""
    host: str
    n: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the requests with the same values; ``None`` where there is nothing to take a number from."""

    values: dict[str, str | None]
    """Tag or field → value; ``None`` for requests that do not have it. Empty for all requests together."""
    n: int
    ok_count: int
    client_gone_count: int
    error_count: int
    """Requests that neither ended well nor were left by their client."""
    most_frequent_error: str | None
    ttft_n: int
    """Streamed answers: a whole one has its first token when it has its last."""
    ttft_p50_ns: int | None
    ttft_p95_ns: int | None
    tpot_p50_ns: float | None
    tpot_p95_ns: float | None
    early_tps_p50: float | None
    visible_2s_mean: float | None
    e2e_p50_ns: int | None
    e2e_p95_ns: int | None
    tokens_out: int
    cost: float | None
    """Sum of the costs that are known."""
    cost_per_response: float | None
    waste_share: float | None
    """Part of ``cost`` that bought nothing."""
    cost_unknown_count: int
    before_ok_count: int
    first_wall_ns: int
    """When its first request ended, from the hour before on: after ``since_wall_ns`` when that hour had none."""
    longest_stage: StageMean | None
    changed_most: StageChange | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that ended in ``[since_wall_ns, until_wall_ns)``, the largest group first."""

    since_wall_ns: int
    until_wall_ns: int
    by: list[str]
    currency: str | None
    total: Group
    groups: list[Group]
    group_count: int
    """All groups, also those that are over :data:`GROUPS_MAX`."""
    unknown_costs: list[UnknownCost]
    """Why the costs are not known that are counted in ``total.cost_unknown_count``, the most frequent first."""


def make_report(
    directory: Path,
    by: Sequence[str],
    since_wall_ns: int,
    until_wall_ns: int,
    where: Sequence[tuple[str, str]] = (),
) -> Report:
    """Return the report of a journal; QueryError without one, or for a tag that no request has."""
    reader = JournalReader(directory, since_wall_ns - BEFORE_NS)
    try:
        _check_names(reader, [*by, *(name for name, _ in where)])
        chosen = _Chosen(by, since_wall_ns, until_wall_ns, where)
        found = _records(reader, *_statement(chosen))
        totals = [record for record in found if record["is_total"]]
        unknown = _unknown_costs(reader, chosen) if totals[0]["cost_unknown_count"] else []
    finally:
        reader.close()
    grouped = [record for record in found if not record["is_total"]]
    of_all_versions = _of_all_versions(grouped, by) if VERSION in by else {}
    groups = [
        _group(record, by, of_all_versions.get(_without_version(record, by))) for record in grouped if record["n"]
    ]
    return Report(
        since_wall_ns=since_wall_ns,
        until_wall_ns=until_wall_ns,
        by=list(by),
        currency=totals[0]["currency"],
        total=_group(totals[0], ()),
        groups=groups[:GROUPS_MAX] if by else [],
        group_count=len(groups) if by else 0,
        unknown_costs=unknown,
    )


def _check_names(reader: JournalReader, names: Sequence[str]) -> None:
    """Refuse names that are neither built in nor a tag of any request."""
    unknown = [name for name in names if name not in FIELDS and name not in TAG_COLUMNS]
    if not unknown:
        return
    answer = reader.ask("SELECT DISTINCT unnest(map_keys(tags)) FROM requests")
    own = sorted({str(name) for (name,) in answer} - set(TAG_COLUMNS))
    for name in unknown:
        if name not in own:
            raise QueryError(f"{name}: expected one of {', '.join((*FIELDS, *TAG_COLUMNS, *own))}")


def _expression(name: str) -> str:
    return name if name in FIELDS or name in TAG_COLUMNS else f"tags[{quoted(name)}]"


class _Chosen(NamedTuple):
    """Which requests a report is of, and by what they are told apart."""

    by: Sequence[str]
    since_wall_ns: int
    until_wall_ns: int
    where: Sequence[tuple[str, str]]

    @property
    def keys(self) -> list[str]:
        """Return the columns that hold the values of ``by``."""
        return [f"by_{index}" for index in range(len(self.by))]

    def table(self) -> tuple[str, list[Any]]:
        """Return a WITH clause that makes the table ``chosen``, of this time and the hour before, and its parameters.

        The two spans differ only in a flag, so that the files are read once.
        """
        values = [f"{_expression(name)} AS {key}, " for name, key in zip(self.by, self.keys, strict=True)]
        conditions = [f"coalesce({_expression(name)}, '') = ?" for name, _ in self.where]
        sql = f"""
            WITH chosen AS (
                SELECT *, {"".join(values)} end_wall_ns < {self.since_wall_ns} AS is_before, outcome = 'ok' AS is_ok
                FROM requests WHERE {" AND ".join(["end_wall_ns >= ?", "end_wall_ns < ?", *conditions])}
            )
        """  # noqa: S608 - names are checked, values are parameters
        return sql, [self.since_wall_ns - BEFORE_NS, self.until_wall_ns, *(value for _, value in self.where)]


def _records(reader: JournalReader, sql: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    answer = reader.ask(sql, parameters)
    return [dict(zip(answer.columns, values, strict=True)) for values in answer]


def _statement(chosen: _Chosen) -> tuple[str, list[Any]]:
    """Return the statement: one pass over both spans, one record for each group and one for all."""
    table, parameters = chosen.table()
    keys = chosen.keys
    grouping = f"GROUP BY GROUPING SETS (({', '.join(keys)}), ())" if keys else "GROUP BY ()"
    is_total = f"GROUPING({keys[0]}) = 1" if keys else "true"
    sql = f"""
        {table} SELECT {"".join(f"{key}, " for key in keys)} {is_total} AS is_total, {", ".join(_aggregates())}
        FROM chosen {grouping} ORDER BY {", ".join(["n DESC", *keys])}
    """  # noqa: S608 - names are checked, values are parameters
    return sql, parameters


def _of_all_versions(groups: Sequence[Mapping[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], Counter[str]]:
    """Return count and stages of the good answers of both spans, by the values of ``by`` without the version."""
    found: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for record in groups:
        of_all = found[_without_version(record, by)]
        of_all["count"] += record["ok_count"] + record["before_ok_count"]
        for name in STAGE_SQL:
            of_all[name] += record[f"now_{name}"] + record[f"before_{name}"]
    return found


def _without_version(record: Mapping[str, Any], by: Sequence[str]) -> tuple[Any, ...]:
    return tuple(record[f"by_{index}"] for index, name in enumerate(by) if name != VERSION)


def _unknown_costs(reader: JournalReader, chosen: _Chosen) -> list[UnknownCost]:
    """Return why costs are not known, and at which hosts."""
    table, parameters = chosen.table()
    sql = f"""
        {table} SELECT coalesce(cost_missing, '') AS missing, host, count(*) AS n
        FROM chosen WHERE NOT is_before AND cost_amount IS NULL GROUP BY ALL ORDER BY n DESC, missing, host
    """  # noqa: S608 - names are checked, values are parameters
    return [UnknownCost(**record) for record in _records(reader, sql, parameters)]


def _aggregates() -> list[str]:
    now, now_ok = "FILTER (NOT is_before)", "FILTER (NOT is_before AND is_ok)"
    before_ok, streamed = "FILTER (is_before AND is_ok)", "FILTER (NOT is_before AND is_ok AND stream)"
    known = "FILTER (NOT is_before AND cost_amount IS NOT NULL)"
    failed = "FILTER (NOT is_before AND NOT is_ok AND outcome <> 'client_gone')"
    plain = {
        "n": f"count(*) {now}",
        "ok_count": f"count(*) {now_ok}",
        "client_gone_count": "count(*) FILTER (NOT is_before AND outcome = 'client_gone')",
        "error_count": f"count(*) {failed}",
        "most_frequent_error": f"mode(nullif(error, '')) {failed}",
        "ttft_n": f"count(ttft_ns) {streamed}",
        "ttft_p50_ns": f"quantile_disc(ttft_ns, 0.5) {streamed}",
        "ttft_p95_ns": f"quantile_disc(ttft_ns, 0.95) {streamed}",
        "tpot_p50_ns": f"quantile_disc(tpot_ns, 0.5) {now_ok}",
        "tpot_p95_ns": f"quantile_disc(tpot_ns, 0.95) {now_ok}",
        "early_tps_p50": f"quantile_disc(early_tps, 0.5) {streamed}",
        "visible_2s_mean": f"avg(visible_2s) {streamed}",
        "e2e_p50_ns": f"quantile_disc(e2e_ns, 0.5) {now_ok}",
        "e2e_p95_ns": f"quantile_disc(e2e_ns, 0.95) {now_ok}",
        "tokens_out": f"coalesce(sum(n_out) {now}, 0)::BIGINT",
        "cost": f"sum(cost_amount) {known}",
        "waste": f"sum(cost_waste_amount) {known}",
        "cost_ok_count": "count(*) FILTER (NOT is_before AND is_ok AND cost_amount IS NOT NULL)",
        "cost_unknown_count": "count(*) FILTER (NOT is_before AND cost_amount IS NULL)",
        "currency": f"any_value(cost_currency) {known}",
        "before_ok_count": f"count(*) {before_ok}",
        "first_wall_ns": "coalesce(min(end_wall_ns), 0)",
    }
    for name, stage in STAGE_SQL.items():
        plain[f"now_{name}"] = f"coalesce(sum({stage}) {now_ok}, 0)"
        plain[f"before_{name}"] = f"coalesce(sum({stage}) {before_ok}, 0)"
    return [f"{expression} AS {name}" for name, expression in plain.items()]


def _group(record: Mapping[str, Any], by: Sequence[str], of_all_versions: Mapping[str, int] | None = None) -> Group:
    names = {field.name for field in msgspec.structs.fields(Group)} & record.keys()
    cost, ok_count = record["cost"], record["cost_ok_count"]
    return Group(
        values={name: record[f"by_{index}"] for index, name in enumerate(by)},
        cost_per_response=cost / ok_count if cost is not None and ok_count else None,
        waste_share=record["waste"] / cost if cost else None,
        longest_stage=_longest_stage(record),
        changed_most=_changed_most(record, of_all_versions),
        **{name: record[name] for name in names},
    )


def _means(record: Mapping[str, Any], which: str, n: int) -> dict[str, float]:
    """Return the mean of each stage from its sum over ``n`` answers."""
    return {name: record[f"{which}_{name}"] / n for name in STAGE_SQL}


def _longest_stage(record: Mapping[str, Any]) -> StageMean | None:
    if not record["ok_count"]:
        return None
    stage, mean_ns = max(_means(record, "now", record["ok_count"]).items(), key=lambda item: item[1])
    return StageMean(stage, mean_ns) if mean_ns else None


def _changed_most(record: Mapping[str, Any], of_all_versions: Mapping[str, int] | None) -> StageChange | None:
    ok_count, before_count = record["ok_count"], record["before_ok_count"]
    if not ok_count:
        return None
    now = _means(record, "now", ok_count)
    if before_count:
        return _largest_change(now, _means(record, "before", before_count), THE_HOUR_BEFORE)
    other_count = of_all_versions["count"] - ok_count if of_all_versions is not None else 0
    if of_all_versions is None or not other_count:
        return None
    others = {name: (of_all_versions[name] - record[f"now_{name}"]) / other_count for name in STAGE_SQL}
    return _largest_change(now, others, OTHER_VERSIONS)


def _largest_change(now: Mapping[str, float], before: Mapping[str, float], against: str) -> StageChange:
    changes = [StageChange(name, now[name], before[name], against) for name in STAGE_SQL]
    return max(changes, key=lambda change: abs(change.mean_ns - change.before_mean_ns))
