"""What must be up: hosts, routers, the observer's own eyes and the sinks; and what was changed lately."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router import config
from router.observer.alerts.changes import KEPT_MAX, LEARN_NS, Changes
from router.observer.alerts.model import Cause, Finding, Severity
from router.observer.alerts.watch import (
    FAILED_MIN,
    LOST_FOR_EVALUATIONS,
    MINUTE_EVALUATIONS,
    ObserverSight,
    RouterSight,
    SinkSight,
    Watch,
)
from router.routing import Reason
from router.telemetry.change_log import DIRECTORY, FILE, FILE_BYTES_MAX, TEXTS_MAX, ChangeLog, read_changes
from router.telemetry.host_rows import HostModels, HostRow
from tests.support.request_rows import attempt, row

PERIOD_NS = 10_000_000_000
WELL = ObserverSight(0, 0, 0, "on")
HOST = '[[hosts]]\nname = "a"\nurl = "http://h:1"\n'


def host(name: str, bar: int = 0, text: str = "healthy", **given: Any) -> HostRow:
    values = {"host_id": 1, "is_removed": False, "running": 0, "slots": 1, "slot_count": 1, "t_ns": 1} | given
    return HostRow(name=name, bar=bar, text=text, **values)


def router(
    *hosts: HostRow,
    instance: str = "main",
    state: str = "alive",
    has_said_stop: bool = False,
    models: dict[str, list[str]] | None = None,
    configured: list[str] | None = None,
) -> RouterSight:
    return RouterSight(instance, state, has_said_stop, hosts, HostModels(models or {}, configured or []))


class Looks:
    def __init__(self) -> None:
        self.watch = Watch(PERIOD_NS)
        self.wall_ns = 0

    def __call__(
        self, *routers: RouterSight, observer: ObserverSight = WELL, sinks: tuple[SinkSight, ...] = ()
    ) -> list[Finding]:
        self.wall_ns += PERIOD_NS
        return self.watch.findings(routers, observer, sinks, self.wall_ns)

    def answer(self, name: str, count: int, error: str = "", status: int = 0) -> None:
        outcome = "failed" if error else "ok"
        self.watch.add([
            row(outcome="ok", attempts=(attempt(name, 1, 2, outcome=outcome, error=error, status=status),))
            for _ in range(count)
        ])  # fmt: skip


class TestHosts:
    def test_a_host_is_down_when_every_living_router_says_so(self) -> None:
        look = Looks()
        down = host("a", Reason.UNHEALTHY, "unhealthy: connection refused")
        assert look(router(down, host("b")), router(host("a"), instance="two")) == []
        dead = router(host("a"), instance="two", state="dead", has_said_stop=True)
        (found,) = look(router(down, host("b")), dead)
        assert (found.cause, found.severity, found.labels) == (Cause.HOST_DOWN, Severity.TICKET, {"host": "a"})
        why = "its probes fail (unhealthy: connection refused), says router main"
        assert found.summary == f"host a is down: {why}; 1 of 2 hosts still serve"
        (again,) = look(router(down, host("b")), dead)
        assert again.since_wall_ns == found.since_wall_ns

    def test_the_last_host_pages(self) -> None:
        (found,) = Looks()(router(host("a", Reason.BREAKER_OPEN, "breaker open"), host("b", 0, "", is_removed=True)))
        assert found.severity is Severity.PAGE
        assert found.summary.endswith("its breaker is open (breaker open), says router main; no other host serves")

    def test_the_last_host_of_a_model_pages_and_the_model_is_named(self) -> None:
        look = Looks()
        rows = host("a", Reason.UNHEALTHY), host("b"), host("c")
        models = {"a": ["large", "small"], "b": ["small"], "c": ["embed"]}
        (found,) = look(router(*rows, models=models))
        assert found.severity is Severity.PAGE
        assert found.summary.endswith("; 2 of 3 hosts still serve; model large has no host left")
        (found,) = look(router(*rows, models=models | {"b": ["small", "large"]}))
        assert found.severity is Severity.TICKET
        assert found.summary.endswith("; 2 of 3 hosts still serve")

    def test_a_host_that_drains_serves_no_model(self) -> None:
        rows = host("a", Reason.UNHEALTHY), host("b", Reason.DRAINING), host("c")
        (found,) = Looks()(router(*rows, models={"a": ["m"], "b": ["m"], "c": ["n"]}))
        assert found.severity is Severity.PAGE
        assert found.summary.endswith("; 1 of 3 hosts still serve; model m has no host left")
        (found,) = Looks()(router(*rows[:2]))
        assert found.severity is Severity.PAGE
        assert Looks()(router(*rows[1:], models={"b": ["m"], "c": ["n"]})) == [], "somebody wanted it so"

    def test_a_model_is_lost_at_one_router_although_another_has_it(self) -> None:
        rows = host("a", Reason.UNHEALTHY), host("b")
        two = router(host("b"), instance="two", models={"b": ["m"]})
        (found,) = Looks()(router(*rows, models={"a": ["m"], "b": ["n"]}), two)
        assert found.severity is Severity.PAGE
        dead = router(*rows, instance="two", state="dead", has_said_stop=True, models={"a": ["x"]})
        (found,) = Looks()(router(*rows, models={"a": ["m"], "b": ["m"]}), dead)
        assert found.severity is Severity.TICKET, "a router that is gone serves nobody"

    def test_a_model_of_the_configuration_may_be_at_a_host_that_was_never_up(self) -> None:
        rows = host("a", Reason.UNHEALTHY), host("b")
        sight = router(*rows, models={"a": [], "b": ["n"]}, configured=["m", "n"])
        (found,) = Looks()(sight)
        assert found.severity is Severity.PAGE
        assert found.summary.endswith("; 1 of 2 hosts still serve; model m has no host left")
        (found,) = Looks()(router(*rows, models={"a": [], "b": ["n"]}))
        assert found.severity is Severity.TICKET, "nobody knows that it had any"
        (found,) = Looks()(router(*rows, host("c"), models={"a": [], "b": ["n"], "c": []}, configured=["m"]))
        assert found.severity is Severity.TICKET, "it may be at another one that was not asked yet"

    def test_of_many_models_some_are_named_and_the_rest_counted(self) -> None:
        models = [f"m{number}" for number in range(7)]
        (found,) = Looks()(router(host("a", Reason.UNHEALTHY), host("b"), models={"a": models}))
        assert found.summary.endswith("; models m0, m1, m2, m3, m4 and 2 more have no host left")

    @pytest.mark.parametrize("bar", [Reason.DRAINING, Reason.EJECTED])
    def test_a_host_that_is_left_out_for_another_reason_is_not_down(self, bar: Reason) -> None:
        assert Looks()(router(host("a", bar))) == []

    def test_a_host_all_of_whose_answers_fail_is_down_whatever_the_router_thinks(self) -> None:
        look = Looks()
        look.answer("a", FAILED_MIN - 1, "host_status", 500)
        assert look(router(host("a"), host("b"))) == []
        look.answer("a", 1, "connect_failed")
        look.answer("a", 99, "host_status", 429)
        (found,) = look(router(host("a"), host("b")))
        assert "all 5 answers of the last minute failed" in found.summary
        look.answer("a", 1)
        assert look(router(host("a"), host("b"))) == []
        for _ in range(MINUTE_EVALUATIONS):
            look(router(host("a"), host("b")))
        look.answer("a", FAILED_MIN, "no_finish")
        assert look(router(host("a"))), "what it answered a minute ago no longer counts"


def test_a_router_that_dies_or_hangs_is_told_and_one_that_stops_is_not() -> None:
    look = Looks()
    assert look(router(state="dead", has_said_stop=True), router(state="gone", instance="two")) == []
    (dead,) = look(router(state="dead"))
    assert (dead.cause, dead.severity, dead.labels) == (Cause.ROUTER_DOWN, Severity.PAGE, {"router": "main"})
    assert dead.summary == "router main is dead: it ended without having been told to"
    (hung,) = look(router(state="hung"))
    assert hung.summary == "router main is hung: it lives and makes no progress"


def test_losses_are_told_for_ten_minutes_and_a_disk_for_as_long_as_it_is_full() -> None:
    look = Looks()
    (found,) = look(observer=ObserverSight(7, 0, 0, "on"))
    assert (found.cause, found.labels) == (Cause.LOSSY, {"what": "requests"})
    assert "7 requests were overwritten" in found.summary
    for _ in range(LOST_FOR_EVALUATIONS - 1):
        assert look(observer=ObserverSight(7, 0, 0, "on"))
    assert look(observer=ObserverSight(7, 0, 0, "on")) == []
    assert [each.labels["what"] for each in look(observer=ObserverSight(8, 1, 1, "no space"))] == [
        "requests", "events", "rows", "journal",
    ]  # fmt: skip
    assert Looks()(observer=ObserverSight(0, 0, 0, "off")) == []


def test_a_ledger_that_was_lost_is_told_for_ten_minutes() -> None:
    look = Looks()
    lost = ObserverSight(0, 0, 0, "on", "ledger.json is damaged")
    for _ in range(LOST_FOR_EVALUATIONS):
        (found,) = look(observer=lost)
        assert (found.severity, found.labels) == (Severity.TICKET, {"what": "alerts"})
    assert look(observer=lost) == []


def test_a_sink_is_told_after_a_minute() -> None:
    look = Looks()
    fails = SinkSight("pager", PERIOD_NS, "status 500", 3, 12)
    assert [look(sinks=(fails,)) for _ in range(MINUTE_EVALUATIONS)] == [[]] * MINUTE_EVALUATIONS
    (found,) = look(sinks=(fails,))
    assert (found.cause, found.labels) == (Cause.SINK_DOWN, {"sink": "pager"})
    assert found.summary == "alerts cannot be delivered to pager: status 500; 12 wait, 3 were dropped"
    assert look(sinks=(SinkSight("pager", None, "", 3, 0),)) == []


# ---------------------------------------------------------------- what was changed
class TestRouters:
    def life(self, run_dir: Path, number: int, text: str = HOST, before: int | None = None) -> ChangeLog:
        path = run_dir / "main" / str(number)
        path.mkdir(parents=True)
        log = ChangeLog(path)
        earlier = None if before is None else run_dir / "main" / str(before)
        log.begin(config.parse(f"version = 1\n{text}", need_keys=False), earlier, "1.0", number)
        return log

    def test_starts_reloads_and_refusals_are_told_with_what_differs(self, tmp_path: Path) -> None:
        first = self.life(tmp_path, 100)
        first.note("reload", ["limits.waiting: 1024 -> 64"], 150)
        first.note("refused", ["reload refused"], 160)
        first.keep(config.parse(f"version = 1\n{HOST}[limits]\nwaiting = 64\n"))
        self.life(tmp_path, 200, f"{HOST}slots = 9\n[limits]\nwaiting = 64\n", before=100)
        changes = Changes(tmp_path)
        changes.read(tmp_path, ["main", "gone"], offset_ns=1000)
        changes.read(tmp_path, ["main"], offset_ns=1003)  # clocks drift; nothing is told twice
        found = [(each.wall_ns, each.instance, each.text) for each in changes.recent(2000)]
        assert sorted(found) == [
            (1100, "main", "router 1.0 started"), (1150, "main", "limits.waiting: 1024 -> 64"),
            (1160, "main", "reload refused"), (1200, "main", "hosts.a.slots: (absent) -> 9"),
            (1200, "main", "router 1.0 started"),
        ]  # fmt: skip
        assert changes.recent(2000)[0].text == "hosts.a.slots: (absent) -> 9", "it says more than that it started"
        assert changes.recent(10**13) == [], "an hour later it is old"

    def test_a_router_that_is_reloaded_all_the_time_fills_no_memory_and_the_newest_are_told(
        self, tmp_path: Path
    ) -> None:
        log = self.life(tmp_path, 0)
        changes = Changes(tmp_path)
        for number in range(1, 2 * KEPT_MAX + 1):
            log.note("reload", [f"key.{number}"], number)
            if number % 50 == 0:
                changes.read(tmp_path, ["main"], offset_ns=0)
        assert len(changes._of_routers) <= KEPT_MAX, "nobody asked for them"
        wanted = [f"key.{number}" for number in range(2 * KEPT_MAX, KEPT_MAX, -1)]
        for _ in range(3):
            changes.read(tmp_path, ["main"], offset_ns=0)
            assert [each.text for each in changes.recent(1000)] == wanted

    def test_only_a_router_that_was_told_to_stop_has_said_so(self, tmp_path: Path) -> None:
        log = self.life(tmp_path, 100)
        changes = Changes(tmp_path)
        assert not changes.has_said_stop(tmp_path / "main" / "100")
        log.note("stop", ["router stopped"], 101)
        assert changes.has_said_stop(tmp_path / "main" / "100")
        assert not changes.has_said_stop(tmp_path / "main" / "999")

    def test_the_file_is_bounded_and_what_is_damaged_in_it_left_out(self, tmp_path: Path) -> None:
        log = self.life(tmp_path, 100)
        path = tmp_path / "main" / "100"
        log.note("reload", [f"key.{number}" for number in range(TEXTS_MAX + 3)], 101)
        assert read_changes(path)[-1].text == "and 3 more changes"
        for number in range(700):
            log.note("reload", ["x" * 290], number)
        file = path / DIRECTORY / FILE
        assert FILE_BYTES_MAX // 3 < file.stat().st_size <= FILE_BYTES_MAX
        with file.open("ab") as opened:
            opened.write(b'{"t_ns": 1, "kind": "start", "text": "caf\xc3"}\n{"t_ns": 1, "kin')
        assert read_changes(path)[-1].t_ns == 699

    def test_no_secret_is_written_and_a_secret_that_changes_is_told(self, tmp_path: Path) -> None:
        sink = '[[observer.alerts.sinks]]\nname = "s"\nkind = "webhook"\nurl = "http://h/{0}"\n'
        sink += 'headers = {{ Authorization = "{0}" }}\n'
        self.life(tmp_path, 100, HOST + sink.format("hunter2"))
        self.life(tmp_path, 200, HOST + sink.format("hunter3"), before=100)
        for path in tmp_path.rglob("*.json*"):
            assert "hunter" not in path.read_text()
        assert [each.text for each in read_changes(tmp_path / "main" / "200")][:-1] == [
            "observer.alerts.sinks.s.url: (not shown) -> (not shown)",
            "observer.alerts.sinks.s.headers.Authorization: (not shown) -> (not shown)",
        ]

    def test_a_directory_that_cannot_be_written_stops_no_router(self, tmp_path: Path) -> None:
        log = ChangeLog(tmp_path / "gone")
        log.begin(config.parse(f"version = 1\n{HOST}"), None, "1.0", 1)
        log.note("stop", ["router stopped"], 2)


class TestTraffic:
    def traffic(self, *versions: str) -> list[Any]:
        return [
            row(model="m", host="a", start_wall_ns=5, tags={"feature_name": "search", "prompt_version": version})
            for version in versions
        ]

    def texts(self, changes: Changes, wall_ns: int) -> list[str]:
        return [each.text for each in changes.recent(wall_ns)]

    def test_a_value_that_was_never_seen_before_is_a_change(self, tmp_path: Path) -> None:
        changes = Changes(tmp_path)
        changes.add(self.traffic("v7"), 1)
        changes.add(self.traffic("v8"), LEARN_NS)
        assert self.texts(changes, 2) == [], "nobody knows whether it is new"
        changes.add([], LEARN_NS + 2)
        changes.add(self.traffic("v7", "v8", "v9", "v9"), LEARN_NS + 3)
        assert self.texts(changes, 9) == ["prompt_version search/v9 first seen"]
        assert changes.recent(9)[0].wall_ns == 5, "when its request came"

    def test_what_was_seen_is_known_over_a_restart(self, tmp_path: Path) -> None:
        changes = Changes(tmp_path)
        changes.add(self.traffic("v7"), 1)
        changes.save()
        assert list(tmp_path.iterdir()) == [], "before all is known, the next observer must learn too"
        changes.add(self.traffic("v7"), LEARN_NS + 2)
        changes.save()
        again = Changes(tmp_path)
        again.add(self.traffic("v7", "v8"), LEARN_NS + 3)
        assert self.texts(again, 9) == ["prompt_version search/v8 first seen"]

    def test_tags_without_end_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("router.observer.alerts.changes.SEEN_MAX", 100)
        changes = Changes(tmp_path)
        changes.add(self.traffic("first"), 1)
        for number in range(200):
            changes.add(self.traffic("first", f"v{number}"), LEARN_NS + 2 + number)
        changes.save()
        seen = json.loads((tmp_path / "seen.json").read_text())["values"]
        assert len(seen) == 100
        assert "prompt_version search/first" in seen, "the busy ones stay"
