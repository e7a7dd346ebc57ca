"""Findings become alerts: in the pipeline, over restarts and kills, with their evidence, and by the process and its
commands.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router import config
from router.observer.alerts import desk as desk_module
from router.observer.alerts.desk import DIRECTORY, EVALUATE_NS, Desk
from router.observer.alerts.ledger import Ledger, Step
from router.observer.alerts.ledger_file import DAMAGED, FILE, FOLLOWS, LedgerFile
from router.observer.alerts.model import Cause, Change, Evidence, Finding
from router.observer.alerts.watch import MINUTE_EVALUATIONS, ObserverSight
from router.observer.follow import RouterView
from router.observer.life import HostLoads
from router.observer.pipeline import Pipeline
from tests.support.alerts import WALL_NS, evidence, finding

WELL = ObserverSight(0, 0, 0, "on")


class At:
    """A desk, its clock, and what it told."""

    def __init__(self, directory: Path, **sources: Sequence[Finding]) -> None:
        self.directory = directory
        self.found: dict[str, Sequence[Finding] | Exception] = dict(sources)
        self.told: list[Step] = []
        self.explained: list[Finding] = []
        self.wall_ns = WALL_NS
        self.desk = self.open()

    def open(self) -> Desk:
        settings = config.parse(f'version = 1\n[observer]\ndata_dir = "{self.directory}/data"\n')
        desk = Desk(settings, self.directory / "run", self.directory / "data")
        for name in self.found:
            desk.sources[name] = lambda _, name=name: self.source(name)  # type: ignore[misc]
        desk.tell = self.told.extend
        desk.explain = self.explain
        self.desk = desk
        return desk

    def source(self, name: str) -> Sequence[Finding]:
        found = self.found[name]
        if isinstance(found, Exception):
            raise found
        return found

    def explain(self, about: Finding, wall_ns: int, changes: Sequence[Change]) -> Evidence | None:
        self.explained.append(about)
        return evidence()

    def evaluate(self, *routers: RouterView) -> list[str]:
        self.wall_ns += EVALUATE_NS
        count = len(self.told)
        self.desk.evaluate(routers, WELL, self.wall_ns - WALL_NS, self.wall_ns)
        return [step.event for step in self.told[count:]]


def kill(_: Sequence[Step]) -> None:
    raise KeyboardInterrupt


def test_what_fires_is_told_with_its_evidence_within_two_evaluations(directory: Path) -> None:
    at = At(directory, slo=[finding()])
    assert [at.evaluate(), at.evaluate(), at.evaluate()] == [[], ["firing"], []]
    assert at.told[0].alert.evidence == evidence()
    assert at.explained == [finding()], "only when it fires"
    for _ in range(6):
        at.evaluate()
    assert len(at.explained) == 2, "and again when a minute has brought more requests"
    page = at.desk.page(at.wall_ns)
    assert [each.evidence for each in page.active] == [evidence()]
    assert page.evaluated_wall_ns == at.wall_ns
    assert at.desk.page(at.wall_ns, fingerprint="other").active == []
    assert [each.value for each in at.desk.readings()] == [1, 0]


def test_what_another_finding_explains_is_a_fact_of_it(directory: Path) -> None:
    worse = finding(cause=Cause.REGRESSION, labels={"host": "a"}, where={"host": "a"}, summary="host a is slower")
    at = At(directory, slo=[finding()], regressions=[worse])
    at.evaluate()
    at.evaluate()
    assert [step.alert.finding.cause for step in at.told] == [Cause.BURN]
    assert at.told[0].alert.finding.facts == ("host a is slower",)


@pytest.mark.parametrize("how", ["restart", "killed before it was told", "killed before the ledger was saved"])
def test_the_next_observer_goes_on(directory: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = At(directory, slo=[finding()])
    at.evaluate()
    if how == "restart":
        at.evaluate()
        at.open()
        assert at.evaluate() == [], "told already"
    elif how == "killed before it was told":
        at.desk.tell = kill
        with pytest.raises(KeyboardInterrupt):
            at.evaluate()
        at.open()
        assert at.evaluate() == ["firing"], "the ledger does not say that it was told"
    else:
        monkeypatch.setattr(at.desk, "_save", lambda: None)
        assert at.evaluate() == ["firing"]
        at.open()
        assert at.evaluate() == ["firing"], "twice is better than never"
    at.found["slo"] = []
    at.open()
    assert [at.evaluate() for _ in range(3)] == [[], [], ["resolved"]], "that it is over is told too"


def test_what_cannot_be_judged_yet_after_a_restart_goes_on(directory: Path) -> None:
    worse = finding(cause=Cause.REGRESSION, labels={"host": "a"}, where={"host": "a"})
    at = At(directory, regressions=[worse])
    at.evaluate()
    at.evaluate()
    at.found["regressions"] = []
    at.open().holds_ns[Cause.REGRESSION] = 5 * EVALUATE_NS
    assert [at.evaluate() for _ in range(5)] == [[]] * 5, "its source needs so long to see anything"
    assert [at.evaluate() for _ in range(3)] == [[], [], ["resolved"]]


def test_a_source_that_fails_ends_nothing_and_holds_up_nobody(directory: Path) -> None:
    other = finding(labels={"slo": "other"})
    at = At(directory, slo=[finding()], regressions=[other])
    at.evaluate()
    at.found["slo"] = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        at.evaluate()
    assert {step.alert.finding.labels["slo"] for step in at.told} == {"chat-ttft", "other"}
    for _ in range(5):
        with pytest.raises(ValueError, match="broken"):
            at.evaluate()
    assert len(at.desk.ledger.active()) == 2


def test_routers_that_cannot_be_looked_at_hold_up_no_other_source(directory: Path) -> None:
    at = At(directory, slo=[finding()])

    def fail(*_: object) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    at.desk.changes.read = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            at.evaluate()
    assert [step.event for step in at.told] == ["firing"]


def test_of_many_that_fire_at_once_all_are_told_and_evidence_comes_by_and_by(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "EXPLAIN_NS_MAX", 1)
    at = At(directory, slo=[finding(labels={"slo": f"s{number}"}) for number in range(5)])
    assert [at.evaluate(), at.evaluate()] == [[], ["firing"] * 5]
    assert [step.alert.evidence is not None for step in at.told] == [True, False, False, False, False]
    for explained_count in range(2, 6):
        at.evaluate()
        assert len(at.explained) == explained_count
    assert all(alert.evidence is not None for alert in at.desk.ledger.active())


def test_a_clock_that_is_put_back_holds_no_alert_for_longer(directory: Path) -> None:
    down = finding(cause=Cause.HOST_DOWN, labels={"host": "a"}, where={"host": "a"})
    at = At(directory, slo=[down])
    at.evaluate()
    at.evaluate()
    at.found["slo"] = []
    desk = at.open()
    at.told.clear()
    now_ns = 0
    for number in range(MINUTE_EVALUATIONS + 4):
        desk.evaluate((), WELL, now_ns, at.wall_ns - number * 3600 * 1_000_000_000)
        now_ns += EVALUATE_NS
    assert [step.event for step in at.told] == ["resolved"]


def test_an_alert_whose_evidence_fails_is_told_without_it(directory: Path) -> None:
    at = At(directory, slo=[finding()])

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no requests")

    at.desk.explain = fail
    at.evaluate()
    with pytest.raises(ZeroDivisionError):
        at.evaluate()
    assert [(step.event, step.alert.evidence) for step in at.told] == [("firing", None)]


def test_a_router_that_dies_is_an_alert(directory: Path) -> None:
    at = At(directory)
    dead = RouterView("main", 1, "dead", {}, HostLoads({}, 0), 0)
    assert at.evaluate(dead) == [], "its directory is going away: nobody knows how it ended"
    path = directory / "run" / "main" / "1"
    path.mkdir(parents=True)
    (path.parent / "current").symlink_to("1")
    assert [at.evaluate(dead), at.evaluate(dead)] == [[], ["firing"]]
    assert at.told[0].alert.finding.labels == {"router": "main"}


def in_its_place(ledger: Path, what: str) -> None:
    """Put something else where the ledger was."""
    ledger.unlink()
    if what == "directory":
        (ledger / "inside").mkdir(parents=True)
    elif what == "pipe":
        os.mkfifo(ledger)
    elif what == "link in a circle":
        ledger.symlink_to(ledger)
    else:
        ledger.write_bytes(FOREIGN[what])


FOREIGN = {
    "nothing": b"",
    "bytes that are no text": bytes(range(256)),
    "another schema": b'{"schema":"other","entries":{},"recent":[],"flaps":{}}',
    "nested without end": b'{"x":' + b"[" * 200_000,
    "another entry": b'{"schema":"ringrouter.alert-ledger/1","entries":{"a":{"finding":{"cause":"host_down",'
    b'"severity":"page","labels":{},"summary":"","since_wall_ns":1}}},"recent":[],"flaps":{}}',
}


class TestDamagedLedger:
    def fired(self, directory: Path) -> tuple[At, Path]:
        at = At(directory, slo=[finding()])
        assert [at.evaluate(), at.evaluate()] == [[], ["firing"]]
        return at, directory / "data" / DIRECTORY / FILE

    @pytest.mark.parametrize("what", [*FOREIGN, "directory", "pipe", "link in a circle"])
    def test_it_is_put_aside_and_said_everywhere_and_what_fires_is_told_again(self, directory: Path, what: str) -> None:
        at, ledger = self.fired(directory)
        in_its_place(ledger, what)
        with capture_logs() as lines:
            at.open()
        aside = ledger.with_name(DAMAGED)
        assert os.path.lexists(aside)
        (line,) = lines
        assert (line["event"], line["log_level"], line["file"]) == ("alerts_not_remembered", "error", str(ledger))
        assert line["error"], "what was wrong"
        assert (line["follows"], line["now"]) == (FOLLOWS, f"it is {DAMAGED} now")
        said = f"{ledger} {line['error']}: {FOLLOWS}; it is {DAMAGED} now"
        assert at.desk.problem == at.desk.lost == at.desk.page(at.wall_ns).problem == said
        assert [at.evaluate(), at.evaluate()] == [[], ["firing"]], "told again"
        assert ledger.is_file(), "it is kept again"
        with capture_logs() as lines:
            assert (at.open().problem, lines) == ("", []), "once"
        assert at.evaluate() == []

    def test_wherever_it_was_cut_it_is_damaged(self, directory: Path) -> None:
        at, ledger = self.fired(directory)
        raw = ledger.read_bytes()
        for size in range(len(raw)):
            ledger.write_bytes(raw[:size])
            file = LedgerFile(ledger.parent)
            file.load(kept := Ledger(3))
            assert f"{ledger} is damaged (" in file.lost, size
            assert kept.active() == []
        ledger.write_bytes(raw)
        assert at.open().problem == ""
        assert len(at.desk.ledger.active()) == 1

    def test_one_that_cannot_be_read_or_put_aside_is_said(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at, ledger = self.fired(directory)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", refuse)
            at.open()
        assert f"{ledger} cannot be read (Permission denied): {FOLLOWS}" in at.desk.problem
        in_place = ledger.with_name(DAMAGED)
        in_place.rename(ledger.with_name("ledger.elsewhere"))
        (in_place / "inside").mkdir(parents=True)
        ledger.mkdir()
        at.open()
        assert f"it cannot be renamed to {DAMAGED} (Directory not empty): remove it" in at.desk.problem
        assert [at.evaluate(), at.evaluate()] == [[], ["firing"]]
        assert at.desk.problem == f"{ledger.parent} cannot be written: Is a directory"

    def test_the_ledger_that_was_lost_is_an_alert_for_ten_minutes(self, directory: Path) -> None:
        settings = config.parse(f'version = 1\n[observer]\ndata_dir = "{directory}/data"\n')
        ledger = directory / "data" / DIRECTORY / FILE
        ledger.parent.mkdir(parents=True)
        ledger.write_bytes(b"{")
        (directory / "run").mkdir()
        pipeline = Pipeline(settings, directory / "run", WALL_NS)
        try:
            assert pipeline.problems()[-1].startswith(f"alerts: {ledger} is damaged (")
            for number in range(2):
                pipeline.turn(number * EVALUATE_NS, WALL_NS + number * EVALUATE_NS)
            assert pipeline.desk is not None
            (alert,) = pipeline.desk.ledger.active()
        finally:
            pipeline.close(WALL_NS)
        assert (alert.finding.cause, alert.finding.labels) == (Cause.LOSSY, {"what": "alerts"})
        assert f"the observer does not know what fired before its start: {ledger} is damaged" in alert.finding.summary


def test_a_disk_that_is_full_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = At(directory, slo=[finding()])
    ledger = directory / "data" / DIRECTORY / FILE

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        at.evaluate()
    assert at.desk.problem == f"{ledger.parent} cannot be written: No space left on device"
    at.evaluate()
    assert at.desk.problem == ""
