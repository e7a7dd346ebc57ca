"""What ``ringrouter slo`` shows, as text: of each objective its goal, budget, rules and groups, the worst first; pure.

::

    chat-ttft   99 % of ttft <= 500 ms   workload_class interactive   FIRING page
      98.21 % good of 12,345 in 30 d; budget left 43.0 %; spent in 2.1 d as in the last hour, 6.0 d as in the last 6 h
      rule     long   burn   bad          short   burn   bad        fires at   needs bad
      page     1 h    16.1   123 of 763   5 min   20.0   20 of 99   14.4       14.4 %      fires
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from router.observer.alerts.model import Burn
from router.observer.slo.findings import goal_of, span
from router.observer.slo.status import Outlook, SloPage, SloStatus, State
from router.telemetry.units import ABSENT

GROUPS_SHOWN: Final = 20
_RULE_HEAD: Final = ("rule", "long", "burn", "bad", "short", "burn", "bad", "fires at", "needs bad", "")
_GROUP_TAIL: Final = ("state", "good", "of", "budget left", "burn 1 h", "burn 6 h", "spent in")


def as_text(page: SloPage) -> str:
    """Return the whole page."""
    lines = [f"WARNING: {page.problem}", ""] if page.problem else []
    if page.time_scale != 1:
        lines += [f"time scale {page.time_scale:g}: an hour is {span(3600 / page.time_scale)}", ""]
    if not page.statuses:
        return "\n".join([*lines, "no objectives: see [[slo]] in docs/slo.md", ""])
    for name in dict.fromkeys(status.slo for status in page.statuses):
        lines += _objective([status for status in page.statuses if status.slo == name])
    return "\n".join(lines)


def _objective(statuses: Sequence[SloStatus]) -> Iterator[str]:
    total, *groups = statuses
    worst = next((each for each in groups if each.state is not State.OK), total) if groups else total
    yield "   ".join(part for part in (total.slo, goal_of(total), _where(total.where), _state(worst)) if part)
    if total.description:
        yield f"  {total.description}"
    yield f"  {_summary(total)}"
    shown = groups[:GROUPS_SHOWN]
    detailed = total if not groups else groups[0]
    if groups:
        yield from _indented(_group_rows(shown))
        if len(groups) > len(shown):
            yield f"  and {len(groups) - len(shown):,} more: --json has them"
        yield f"  rules of {_values(detailed)}:"
    yield from _indented([_RULE_HEAD, *map(_rule_row, detailed.burns)])
    yield ""


def _where(where: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items())


def _state(status: SloStatus) -> str:
    words = status.state.replace("_", " ")
    if status.state is State.FIRING:
        return f"FIRING {status.severity}"
    return words if status.state is State.OK else words.upper()


def _summary(status: SloStatus) -> str:
    period = span(status.period_s)
    if status.good_ratio is None:
        return f"no request in {period}"
    counted = "" if status.counted_s >= status.period_s else f" ({_about(status.counted_s)} of it counted)"
    return (
        f"{_percent(status.good_ratio)} good of {status.total:,} in {period}{counted}; "
        f"budget left {_percent(status.budget_left)}; {_forecast(status.outlooks)}"
    )


def _forecast(outlooks: Sequence[Outlook]) -> str:
    if any(each.exhausted_in_s == 0 for each in outlooks):
        return "spent"
    found = [
        f"{_about(each.exhausted_in_s)} as in the last {span(each.window_s)}"
        for each in outlooks
        if each.exhausted_in_s is not None
    ]
    return f"spent in {', '.join(found)}" if found else "it lasts"


def _rule_row(burn: Burn) -> tuple[str, ...]:
    state = "fires" if burn.is_firing else "told by a page that is over" if burn.is_told else ""
    return (
        str(burn.severity),
        span(burn.long_s),
        _burn(burn.long_burn),
        f"{burn.long_bad:,} of {burn.long_total:,}",
        span(burn.short_s),
        _burn(burn.short_burn),
        f"{burn.short_bad:,} of {burn.short_total:,}",
        f"{burn.factor:g}",
        _percent(burn.needed_ratio),
        state if burn.is_judged else "too few to say",
    )


def _group_rows(groups: Sequence[SloStatus]) -> list[tuple[str, ...]]:
    return [(*groups[0].group, *_GROUP_TAIL), *map(_group_row, groups)]


def _group_row(status: SloStatus) -> tuple[str, ...]:
    hour, six_hours = status.outlooks
    exhausted = [each.exhausted_in_s for each in status.outlooks if each.exhausted_in_s is not None]
    return (
        *(value or "(none)" for value in status.group.values()),
        _state(status),
        _percent(status.good_ratio),
        f"{status.total:,}",
        _percent(status.budget_left),
        _burn(hour.burn),
        _burn(six_hours.burn),
        ABSENT if not exhausted else _about(min(exhausted)),
    )


def _values(status: SloStatus) -> str:
    return ", ".join(f"{name} {value or '(none)'}" for name, value in status.group.items())


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _percent(ratio: float | None) -> str:
    return ABSENT if ratio is None else f"{ratio * 100:.4g} %"


def _burn(burn: float | None) -> str:
    return ABSENT if burn is None else f"{burn:.3g}" if burn < 1000 else f"{burn:,.0f}"


def _about(seconds: float | None) -> str:
    """Return a time in the largest unit of which there are two: ``2.1 d``, ``90 min``."""
    if seconds is None:
        return ABSENT
    for unit, worth in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * worth:
            return f"{seconds / worth:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds else "spent"
