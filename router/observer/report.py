"""Compares features, prompt versions, devices, ...: how fast, how often broken, at what cost, and what has changed.

Requests count by when they ended. Percentiles are by nearest rank (the value at rank ``ceil(p / 100 · n)``), of answers
that ended well; those that failed are counted beside them. Cost per response is what all requests of a group cost,
failed ones too, over its good answers. The stage that changed most is the one whose mean, over good answers, differs
most from that of the hour before; the stages' means sum to the mean of TTFT and of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from router.observer.columns import TAG_COLUMNS
from router.observer.parquet import quoted
from router.observer.query import JournalReader, QueryError
from router.observer.rows import STAGE_FIELDS

BEFORE_NS: Final = 3_600_000_000_000
"""What the report's time is compared with: the hour before it."""
GROUPS_MAX: Final = 1000
"""Groups that are told, the largest first; of more, only a query can."""
FIELDS: Final = ("model", "host", "endpoint", "instance", "outcome", "error", "policy")
"""What requests can be told apart and chosen by beside their tags."""


class StageChange(msgspec.Struct, frozen=True):
    """The stage whose mean changed most against the hour before."""

    stage: str
    mean_ns: float
    before_mean_ns: float


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
        sql, parameters = _statement(by, since_wall_ns, until_wall_ns, where)
        answer = reader.ask(sql, parameters)
        found = [dict(zip(answer.columns, values, strict=True)) for values in answer]
    finally:
        reader.close()
    groups = [_group(record, by) for record in found if not record["is_total"] and record["n"]]
    totals = [record for record in found if record["is_total"]]
    return Report(
        since_wall_ns=since_wall_ns,
        until_wall_ns=until_wall_ns,
        by=list(by),
        currency=totals[0]["currency"],
        total=_group(totals[0], ()),
        groups=groups[:GROUPS_MAX] if by else [],
        group_count=len(groups) if by else 0,
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


def _statement(
    by: Sequence[str], since_ns: int, until_ns: int, where: Sequence[tuple[str, str]]
) -> tuple[str, list[Any]]:
    """Return the statement: one pass over both spans, one record for each group and one for all."""
    conditions = ["end_wall_ns >= ?", "end_wall_ns < ?"]
    parameters: list[Any] = [since_ns - BEFORE_NS, until_ns]
    for name, value in where:
        conditions.append(f"coalesce({_expression(name)}, '') = ?")
        parameters.append(value)
    keys = [f"by_{index}" for index in range(len(by))]
    chosen = [f"{_expression(name)} AS {key}" for name, key in zip(by, keys, strict=True)]
    listed = ", ".join(keys)
    grouping = f"GROUP BY GROUPING SETS (({listed}), ())" if by else "GROUP BY ()"
    is_total = f"GROUPING({keys[0]}) = 1" if by else "true"
    # The two spans differ only in a flag, so that the files are read once.
    sql = f"""
        WITH chosen AS (
            SELECT *, {"".join(f"{each}, " for each in chosen)}
                   end_wall_ns < {since_ns} AS is_before, outcome = 'ok' AS is_ok
            FROM requests WHERE {" AND ".join(conditions)}
        )
        SELECT {"".join(f"{key}, " for key in keys)} {is_total} AS is_total, {", ".join(_aggregates())}
        FROM chosen {grouping} ORDER BY {", ".join(["n DESC", *keys])}
    """  # noqa: S608 - names are checked, values are parameters
    return sql, parameters


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
    }
    for name, field in STAGE_FIELDS:
        plain[f"now_{name}"] = f"avg(coalesce({field}, 0)) {now_ok}"
        plain[f"before_{name}"] = f"avg(coalesce({field}, 0)) {before_ok}"
    return [f"{expression} AS {name}" for name, expression in plain.items()]


def _group(record: Mapping[str, Any], by: Sequence[str]) -> Group:
    names = {field.name for field in msgspec.structs.fields(Group)} & record.keys()
    cost, ok_count = record["cost"], record["cost_ok_count"]
    return Group(
        values={name: record[f"by_{index}"] for index, name in enumerate(by)},
        cost_per_response=cost / ok_count if cost is not None and ok_count else None,
        waste_share=record["waste"] / cost if cost else None,
        changed_most=_changed_most(record),
        **{name: record[name] for name in names},
    )


def _changed_most(record: Mapping[str, Any]) -> StageChange | None:
    if not record["ok_count"] or not record["before_ok_count"]:
        return None
    changes = [StageChange(name, record[f"now_{name}"], record[f"before_{name}"]) for name, _ in STAGE_FIELDS]
    return max(changes, key=lambda change: abs(change.mean_ns - change.before_mean_ns))
