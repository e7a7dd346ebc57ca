"""The life of alerts: when they fire, when they end, what flaps, and what a restart changes of it: nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.observer.alerts.inhibit import inhibited
from router.observer.alerts.ledger import ACTIVE_MAX, FLAP_NS, RECENT_MAX, Ledger, fingerprint
from router.observer.alerts.model import Cause, Finding, Severity
from tests.support.alerts import WALL_NS, evidence, finding

PERIOD_NS = 10_000_000_000
RESOLVE_AFTER = 3


class Evaluations:
    """A ledger that is asked every ten seconds."""

    def __init__(self) -> None:
        self.ledger = Ledger(RESOLVE_AFTER)
        self.wall_ns = WALL_NS

    def see(self, *findings: Finding) -> list[tuple[str, str]]:
        """Evaluate once; return what is told."""
        self.wall_ns += PERIOD_NS
        steps = self.ledger.update(findings, self.wall_ns)
        return [(step.event, str(step.alert.finding.severity)) for step in steps]

    def restart(self) -> None:
        raw = self.ledger.dump()
        self.ledger = Ledger(RESOLVE_AFTER)
        self.ledger.load(raw)


FIRING = [("firing", "page")]
RESOLVED = [("resolved", "page")]


def test_a_finding_is_told_when_it_is_seen_twice_in_a_row_and_once_only() -> None:
    at = Evaluations()
    assert at.see(finding()) == []
    assert at.see(finding()) == FIRING, "within two evaluations"
    assert at.see(finding()) == []
    (alert,) = at.ledger.active()
    assert alert.starts_wall_ns == WALL_NS, "it began when the finding says"
    assert alert.updated_wall_ns == at.wall_ns


def test_what_is_there_for_one_evaluation_only_is_never_told() -> None:
    at = Evaluations()
    for _ in range(5):
        assert at.see(finding()) == []
        assert at.see() == []
    assert at.ledger.active() == []


def test_it_is_resolved_after_so_many_quiet_evaluations_in_a_row() -> None:
    at = Evaluations()
    at.see(finding())
    at.see(finding())
    assert [at.see(), at.see(), at.see(finding()), at.see(), at.see()] == [[]] * 5, "it was seen in between"
    assert at.see() == RESOLVED
    assert at.ledger.active() == []
    (ended,) = at.ledger.recent
    assert ended.ends_wall_ns == at.wall_ns


def test_labels_tell_alerts_apart_and_nothing_else_does() -> None:
    same = finding(summary="other words", since_wall_ns=1, where={}, severity=Severity.INFO)
    assert fingerprint(finding()) == fingerprint(same)
    assert fingerprint(finding()) != fingerprint(finding(labels={"slo": "other"}))
    assert fingerprint(finding()) != fingerprint(finding(cause=Cause.BUDGET))
    assert fingerprint(finding(labels={"a": "b\x1ec"})) != fingerprint(finding(labels={"a": "b", "c": ""}))


def test_of_findings_with_one_fingerprint_the_worst_counts() -> None:
    at = Evaluations()
    both = finding(severity=Severity.TICKET), finding()
    at.see(*both)
    assert at.see(*both) == FIRING


def test_severity_rises_and_does_not_fall_while_it_fires() -> None:
    at = Evaluations()
    ticket = finding(severity=Severity.TICKET)
    at.see(ticket)
    assert at.see(ticket) == [("firing", "ticket")]
    assert at.see(finding()) == [("escalated", "page")]
    assert at.see(ticket) == []
    assert at.ledger.active()[0].finding.severity is Severity.PAGE
    assert [at.see() for _ in range(3)][-1] == RESOLVED


@pytest.mark.parametrize("stage", ["pending", "firing", "almost resolved"])
def test_a_restart_neither_tells_again_nor_forgets(stage: str) -> None:
    at = Evaluations()
    at.see(finding())
    if stage == "pending":
        at.restart()
        assert at.see(finding()) == FIRING
        return
    at.see(finding())
    at.ledger.explain(fingerprint(finding()), evidence())
    if stage == "almost resolved":
        at.see()
        at.see()
        at.restart()
        assert at.see() == RESOLVED
        assert at.ledger.recent[0].evidence == evidence()
        return
    at.restart()
    assert at.see(finding()) == []
    assert at.ledger.active()[0].evidence == evidence()


def test_what_comes_back_soon_must_stay_away_twice_as_long_each_time() -> None:
    at = Evaluations()
    quiet_counts = []
    for _ in range(4):
        at.see(finding())
        assert at.see(finding()) == FIRING
        quiet_counts.append(next(count for count in range(1, 999) if at.see()))
        at.restart()
    assert quiet_counts == [3, 6, 12, 24]
    at.wall_ns += FLAP_NS + PERIOD_NS
    at.see(finding())
    at.see(finding())
    assert next(count for count in range(1, 999) if at.see()) == RESOLVE_AFTER, "an hour of quiet is forgotten"


def test_everything_is_bounded_and_what_finds_no_room_is_counted() -> None:
    at = Evaluations()
    many = [finding(labels={"slo": str(number)}) for number in range(ACTIVE_MAX + 7)]
    at.see(*many)
    at.see(*many)
    assert len(at.ledger.active()) == ACTIVE_MAX
    assert at.ledger.untold_count == 14
    for _ in range(RESOLVE_AFTER):
        at.see()
    assert len(at.ledger.recent) == RECENT_MAX


def test_a_damaged_file_says_so() -> None:
    for raw in (b"", b"{}", b'{"schema":"other","entries":{},"recent":[],"flaps":{}}'):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with it
            Ledger(RESOLVE_AFTER).load(raw)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.sets(st.integers(0, 59)))
def test_what_fires_ends_and_restarts_change_nothing(seen: Sequence[tuple[bool, bool]], restarts: set[int]) -> None:
    """For any history, told by two ledgers, one of which restarts: firing and resolved alternate for each thing."""
    steady, restarted = Evaluations(), Evaluations()
    things = finding(labels={"slo": "a"}), finding(labels={"slo": "b"})
    fires = dict.fromkeys(map(fingerprint, things), False)
    for number, each in enumerate(seen):
        findings = [thing for thing, is_seen in zip(things, each, strict=True) if is_seen]
        steady.wall_ns = restarted.wall_ns = steady.wall_ns + PERIOD_NS
        steps = steady.ledger.update(findings, steady.wall_ns)
        assert restarted.ledger.update(findings, steady.wall_ns) == steps
        for step in steps:
            assert fires[step.alert.fingerprint] is (step.event == "resolved")
            fires[step.alert.fingerprint] = step.event == "firing"
        if number in restarts:
            restarted.restart()
    assert {alert.fingerprint for alert in steady.ledger.active()} == {key for key, is_on in fires.items() if is_on}


class TestInhibition:
    host_down = finding(cause=Cause.HOST_DOWN, labels={"host": "gpu-1"}, where={"host": "gpu-1"}, summary="down")

    def regression(self, **where: str) -> Finding:
        return finding(
            cause=Cause.REGRESSION, severity=Severity.TICKET, labels=where, where=where, summary=f"worse: {where}"
        )

    def test_a_burn_tells_of_the_regressions_of_its_requests_as_facts(self) -> None:
        worse, other = self.regression(host="gpu-1"), self.regression(feature_name="chat")
        kept = inhibited([finding(), worse, other])
        assert [each.summary for each in kept] == [finding().summary, other.summary], "search is not chat"
        assert kept[0].facts == (worse.summary,)

    def test_a_burn_tells_that_its_own_budget_is_spent(self) -> None:
        spent = finding(cause=Cause.BUDGET, summary="spent")
        (kept,) = inhibited([spent, finding()])
        assert kept.facts == ("spent",)
        assert len(inhibited([spent, finding(slo="other")])) == 2
        assert inhibited([spent]) == [spent]

    def test_a_host_that_is_down_tells_of_its_regressions_but_not_of_the_objectives(self) -> None:
        kept = inhibited([self.host_down, self.regression(host="gpu-1"), self.regression(host="gpu-2")])
        assert [each.summary for each in kept] == ["down", "worse: {'host': 'gpu-2'}"]
        assert len(inhibited([self.host_down, finding()])) == 2
