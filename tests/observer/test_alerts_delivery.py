"""Delivery of alerts over real sockets: what each sink is told, and what dead, slow, refusing and half-open ones do."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from msgspec.structs import replace
from structlog.testing import capture_logs

from router import config
from router.config import AlertsConfig
from router.errors import ConfigError
from router.observer.alerts import courier as courier_module
from router.observer.alerts.courier import Courier
from router.observer.alerts.ledger import Step
from router.observer.alerts.model import Alert, Cause, Severity
from router.observer.alerts.spool import DAMAGED, FILE, Message, Spool
from tests.support.alert_sink import AlertReceiver
from tests.support.alerts import WALL_NS, alert, finding
from tests.support.waiting import free_port

BASE = "http://observer:8401"
ENDED_NS = WALL_NS + 60_000_000_000
LABEL_SET = {"type": "object", "additionalProperties": {"type": "string"}}
TIME = {"type": "string", "format": "date-time"}
POSTABLE_ALERTS = {  # as in api/v2/openapi.yaml of prometheus/alertmanager at 07d03b6c2c7e; nothing beside is sent
    "type": "array",
    "items": {
        "type": "object",
        "required": ["labels"],
        "properties": {
            "startsAt": TIME,
            "endsAt": TIME,
            "annotations": LABEL_SET,
            "labels": LABEL_SET,
            "generatorURL": {"type": "string", "format": "uri"},
        },
        "additionalProperties": False,
    },
}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
WEBHOOK = {
    "version": str, "groupKey": str, "truncatedAlerts": int, "status": str, "receiver": str, "groupLabels": dict,
    "commonLabels": dict, "commonAnnotations": dict, "externalURL": str, "alerts": list,
}  # fmt: skip


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on an event loop of its own."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


class Log:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, event, fields))


def settings(*sinks: str, more: str = "") -> AlertsConfig:
    """Return the configuration of sinks, each ``kind url`` with further keys behind."""
    text = f"version = 1\n[observer.alerts]\nretry_s = 0.02\n{more}\n"
    for index, sink in enumerate(sinks):
        kind, url, *rest = sink.split(" ", 2)
        address = f'url = "{url}"' if url != "-" else ""
        text += f'[[observer.alerts.sinks]]\nname = "s{index}"\nkind = "{kind}"\n{address}\n' + "\n".join(rest) + "\n"
    return config.parse(text).observer.alerts


@asynccontextmanager
async def delivering(alerts: AlertsConfig, directory: Path, log: Log | None = None) -> AsyncIterator[Courier]:
    courier = Courier(alerts, directory, BASE, log or Log())
    running = asyncio.create_task(courier.run())
    try:
        yield courier
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def fires(about: Alert | None = None) -> Step:
    return Step("firing", about or alert())


def ends(about: Alert | None = None) -> Step:
    return Step("resolved", replace(about or alert(), ends_wall_ns=ENDED_NS, updated_wall_ns=ENDED_NS))


async def until(predicate: Callable[[], object]) -> None:
    """Wait for what has no event of its own."""
    async with asyncio.timeout(60):
        while not predicate():
            await asyncio.sleep(0.002)


def check_postable(body: list[dict[str, Any]]) -> None:
    """Assert what Alertmanager's OpenAPI says of ``postableAlerts``, and what it checks beyond."""
    formats = FormatChecker(())
    formats.checks("date-time")(lambda text: RFC3339.fullmatch(text) is not None)
    formats.checks("uri")(lambda text: urlsplit(text).scheme in {"http", "https"})
    validator = Draft202012Validator(POSTABLE_ALERTS, format_checker=formats)
    assert [error.message for error in validator.iter_errors(body)] == []
    for each in body:
        assert all(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) for name in (*each["labels"], *each["annotations"]))
        assert all(each["labels"].values()), "a label without a value is no label"
        assert each["labels"]["alertname"]
        assert datetime.fromisoformat(each["startsAt"]) <= datetime.fromisoformat(each["endsAt"])


def check_webhook(body: dict[str, Any], status: str) -> None:
    for name, kind in WEBHOOK.items():
        assert isinstance(body[name], kind), name
    assert body["version"] == "4"
    assert body["status"] == status
    (each,) = body["alerts"]
    assert set(each) == {"status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"}
    assert each["status"] == status
    assert (each["endsAt"] == "0001-01-01T00:00:00Z") is (status == "firing")


# ---------------------------------------------------------------- what is told
@in_loop
async def test_an_alertmanager_is_told_that_it_fires_and_that_it_is_over(tmp_path: Path) -> None:
    async with AlertReceiver() as receiver, delivering(settings(f"alertmanager {receiver.url}"), tmp_path) as courier:
        courier.tell([fires()])
        (first,) = await receiver.until(1)
        courier.tell([ends()])
        _, last = await receiver.until(2)
    assert (first.method, first.path) == ("POST", "/api/v2/alerts")
    assert first.headers["content-type"] == "application/json"
    check_postable(first.body)
    check_postable(last.body)
    (fired,), (ended,) = first.body, last.body
    assert fired["labels"] == {"alertname": "RingrouterSloBurn", "severity": "page", "slo": "chat-ttft"}
    assert fired["labels"] == ended["labels"], "labels identify it"
    assert fired["startsAt"] == "2026-01-01T00:00:00.000Z"
    assert ended["endsAt"] == "2026-01-01T00:01:00.000Z"
    assert fired["generatorURL"] == f"{BASE}/alerts.json?fingerprint={alert().fingerprint}"
    said = fired["annotations"]
    assert said["summary"] == alert().evidence.sentence  # type: ignore[union-attr]
    for words in (
        "burns 20× over 1h (200 of 1,000 bad), 38× over 5m (38 of 100 bad); fires at 14.4× (14.4 % bad)",
        "25 % of the budget is left, for 1.5h at this rate",
        "97 % of the bad requests: feature_name search, host gpu-1, 38 of 100 bad (1 % before)",
        "+410 ms in host_first_token (40 ms before)",
        "cost per response 0.0021 USD (0.0008 before)",
        "host gpu-1: running 4, failed 50 %, median TTFT 450 ms",
        "00:00:00Z limits.waiting: 1024 -> 64 (main)",
        "worst request r-1 (trace 00000000000000000000000000000r-1), ok at gpu-1, TTFT 700 ms, 20 tokens, 0.002 USD",
        "0.002 USD: host_first_token 690 ms, queue 1 ms",
    ):
        assert words in said["description"]


@in_loop
async def test_what_fires_is_told_to_an_alertmanager_again_and_again(tmp_path: Path) -> None:
    async with (
        AlertReceiver() as receiver,
        delivering(settings(f"alertmanager {receiver.url}", more="resend_s = 1"), tmp_path) as courier,
    ):
        courier.follow(lambda: [alert(), alert(finding(labels={"slo": "b"}, severity=Severity.INFO))])
        one, two = await receiver.until(2)
    assert len(one.body) == len(two.body) == 2, "at once after a start, and then each resend_s"
    check_postable(two.body)
    assert one.body[0]["endsAt"] < two.body[0]["endsAt"], "it fires on"


@in_loop
async def test_an_alertmanager_that_is_back_is_not_told_again_and_again_that_it_fails(tmp_path: Path) -> None:
    async with (
        AlertReceiver() as receiver,
        delivering(settings(f"alertmanager {receiver.url}", more="resend_s = 1"), tmp_path) as courier,
    ):
        courier.follow(lambda: [alert(finding(cause=Cause.SINK_DOWN, labels={"sink": "s0"})), alert()])
        (told,) = await receiver.until(1)
    assert [each["labels"]["alertname"] for each in told.body] == ["RingrouterSloBurn"], "its end is not told to it"


@in_loop
async def test_a_severity_that_rises_is_another_alert_to_an_alertmanager(tmp_path: Path) -> None:
    async with AlertReceiver() as receiver, AlertReceiver() as hook:
        alerts = settings(f"alertmanager {receiver.url}", f"webhook {hook.url}")
        async with delivering(alerts, tmp_path) as courier:
            courier.tell([Step("escalated", alert(), Severity.TICKET)])
            ended, fired = await receiver.until(2)
            (told,) = await hook.until(1)
    assert [each.body[0]["labels"]["severity"] for each in (ended, fired)] == ["ticket", "page"]
    assert ended.body[0]["endsAt"] == "2026-01-01T00:00:00.000Z"
    check_webhook(told.body, "firing")


@in_loop
async def test_a_webhook_gets_the_body_of_version_4_and_all_evidence(tmp_path: Path) -> None:
    async with (
        AlertReceiver() as receiver,
        delivering(settings(f"webhook {receiver.url}/hook?room=1"), tmp_path) as courier,
    ):
        courier.tell([fires(), ends()])
        first, last = await receiver.until(2)
    assert first.path == "/hook?room=1"
    check_webhook(first.body, "firing")
    check_webhook(last.body, "resolved")
    assert first.body["ringrouter"]["evidence"]["examples"][0]["request_id"] == "r-1"
    assert first.body["alerts"][0]["fingerprint"] == last.body["alerts"][0]["fingerprint"] == alert().fingerprint


@in_loop
async def test_without_sinks_alerts_are_lines_of_the_log(tmp_path: Path) -> None:
    log = Log()
    async with delivering(settings(), tmp_path, log) as courier:
        ticket = alert(finding(severity=Severity.TICKET))
        courier.tell([fires(), fires(ticket), ends()])
        await until(lambda: len(log.lines) == 3)
    assert [(level, event) for level, event, _ in log.lines] == [
        ("error", "alert firing"), ("warning", "alert firing"), ("info", "alert resolved"),
    ]  # fmt: skip
    assert log.lines[0][2]["what"] == alert().evidence.sentence  # type: ignore[union-attr]
    assert log.lines[0][2]["alert"] == "RingrouterSloBurn"
    json.dumps(log.lines)


@in_loop
async def test_a_sink_is_told_of_what_is_severe_enough_and_not_of_its_own_failure(tmp_path: Path) -> None:
    async with AlertReceiver() as one, AlertReceiver() as other:
        alerts = settings(f'webhook {one.url} severity = "page"', f"webhook {other.url}")
        own = alert(finding(cause=Cause.SINK_DOWN, labels={"sink": "s1"}))
        async with delivering(alerts, tmp_path) as courier:
            courier.tell([fires(alert(finding(severity=Severity.TICKET, labels={"slo": "t"}))), fires(own), fires()])
            told = [*(await one.until(2)), *(await other.until(2))]
    names = [(each.body["commonLabels"]["alertname"], each.body["commonLabels"]["severity"]) for each in told]
    assert names == [
        ("RingrouterSinkDown", "page"), ("RingrouterSloBurn", "page"),
        ("RingrouterSloBurn", "ticket"), ("RingrouterSloBurn", "page"),
    ]  # fmt: skip


# ---------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("fault", [500, 503, 429, 401, 404, 302, "close", "hang"])
@in_loop
async def test_what_is_not_taken_is_sent_again_in_order(tmp_path: Path, fault: int | str) -> None:
    timeout_s = 0.5 if fault == "hang" else 30
    async with (
        AlertReceiver(fault, fault) as receiver,
        delivering(settings(f"webhook {receiver.url} timeout_s = {timeout_s}"), tmp_path) as courier,
    ):
        courier.tell([fires(), ends()])
        told = await receiver.until(4)
        await until(lambda: courier.states()[0].waiting_count == 0)
        (state,) = courier.states()
    assert [each.body["status"] for each in told] == ["firing"] * 3 + ["resolved"]
    assert {each.path for each in told} == {"/"}, "redirects would carry the headers elsewhere"
    assert (state.delivered_count, state.failed_count, state.dropped_count) == (2, 2, 0)
    assert state.failing_since_wall_ns is None
    assert state.error == ""


@in_loop
async def test_what_a_sink_does_not_want_holds_up_nothing(tmp_path: Path) -> None:
    async with (
        AlertReceiver(400, says='{"message": "bad label"}') as receiver,
        delivering(settings(f"alertmanager {receiver.url}"), tmp_path) as courier,
    ):
        courier.tell([fires()])
        await until(lambda: courier.states()[0].refused_count == 1)
        assert courier.problems(WALL_NS) == [f'alerts: s0 at {receiver.url}: 400: {{"message": "bad label"}}']
        courier.tell([ends()])
        await until(lambda: courier.states()[0].delivered_count == 1)
        assert courier.problems(WALL_NS) == []
        (state,) = courier.states()
    assert (state.refused_count, state.failed_count, state.waiting_count) == (1, 0, 0)


@in_loop
async def test_a_fault_of_ours_at_one_sink_is_told_and_ends_no_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def fail(*_: object) -> bytes:
            raise KeyError("not what it should be")

        patched.setattr("router.observer.alerts.bodies.webhook", fail)
        async with AlertReceiver() as receiver, delivering(settings(f"webhook {receiver.url}"), tmp_path) as courier:
            courier.tell([fires()])
            await until(lambda: courier.states()[0].failed_count >= 2)
            assert courier.states()[0].error == "internal error (KeyError)"
            patched.undo()
            await receiver.until(1)


@in_loop
async def test_a_dead_sink_and_a_restart_lose_nothing(tmp_path: Path) -> None:
    port = free_port()
    alerts = settings(f"webhook http://127.0.0.1:{port}")
    async with delivering(alerts, tmp_path) as courier:
        courier.tell([fires(), ends()])
        await until(lambda: courier.states()[0].failed_count >= 2)
        (state,) = courier.states()
        assert state.error == "connection refused"
        assert state.failing_since_wall_ns is not None
        assert state.waiting_count == 2
    async with AlertReceiver(port=port) as receiver, delivering(alerts, tmp_path) as courier:
        told = await receiver.until(2)
        await until(lambda: courier.states()[0].waiting_count == 0)
    assert [each.body["status"] for each in told] == ["firing", "resolved"]
    assert list(tmp_path.rglob("*.json")) == []


@in_loop
async def test_a_dead_sink_is_told_by_health_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_module, "DEAD_AFTER_NS", 0)
    secret = "c2VjcmV0"
    async with delivering(settings(f"webhook http://u:{secret}@127.0.0.1:{free_port()}/{secret}"), tmp_path) as courier:
        assert courier.problems(WALL_NS) == []
        courier.tell([fires()])
        await until(lambda: courier.states()[0].failed_count)
        (problem,) = courier.problems(2 * WALL_NS)
        assert problem.startswith("alerts: s0 at http://127.0.0.1:")
        assert problem.endswith(" fails: connection refused; 1 wait")
        values = {each.name: each.value for each in courier.readings()}
        assert values["ringrouter_alert_sink_up"] == 0
        assert values["ringrouter_alerts_waiting"] == 1
        assert secret not in repr((courier.states(), courier.problems(2 * WALL_NS), list(courier.readings())))


@in_loop
async def test_secrets_go_to_the_sink_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_TOKEN", "Bearer one")
    path = tmp_path / "token"
    path.write_text("two\n")
    headers = "headers = { x-org = 'team' }\nheaders_env = { Authorization = 'ALERT_TOKEN' }\n"
    headers += f"headers_file = {{ x-key = '{path}' }}"
    async with (
        AlertReceiver(500) as receiver,
        delivering(settings(f"webhook {receiver.url} {headers}"), tmp_path) as courier,
    ):
        courier.tell([fires()])
        await receiver.until(1)
        path.write_text("three\n")
        first, second = await receiver.until(2)
    assert (first.headers["authorization"], first.headers["x-org"]) == ("Bearer one", "team")
    assert (first.headers["x-key"], second.headers["x-key"])[1] == "three", "it is read each time"


@in_loop
async def test_a_header_that_is_not_to_be_had_is_told(tmp_path: Path) -> None:
    missing = settings("webhook http://127.0.0.1:1 headers_env = { Authorization = 'NOT_SET_ANYWHERE' }")
    with pytest.raises(ConfigError, match=r"sinks \(s0\).headers_env.Authorization: expected the name of an env"):
        Courier(missing, tmp_path, BASE, Log())
    gone = settings(f"webhook http://127.0.0.1:1 headers_file = {{ x-key = '{tmp_path}/gone' }}")
    async with delivering(gone, tmp_path) as courier:
        courier.tell([fires()])
        await until(lambda: courier.states()[0].failed_count)
        assert courier.states()[0].error == "the file of header x-key cannot be read: No such file or directory"


@in_loop
async def test_a_test_alert_says_what_came_back_of_each_sink(tmp_path: Path) -> None:
    async with AlertReceiver() as receiver, AlertReceiver() as manager:
        alerts = settings(
            f'webhook {receiver.url} severity = "page"', f"alertmanager {manager.url}",
            f"webhook http://127.0.0.1:{free_port()}", "log -",
        )  # fmt: skip
        async with delivering(alerts, tmp_path) as courier:
            replies = await courier.test()
            only = await courier.test("s3")
    assert [(each.name, each.is_taken) for each in replies] == [
        ("s0", True), ("s1", True), ("s2", False), ("s3", True),
    ]  # fmt: skip
    assert replies[0].text.startswith("firing 200 in "), replies[0].text
    assert replies[2].text == "connection refused"
    assert [each.name for each in only] == ["s3"]
    assert [each.body["status"] for each in receiver.told] == ["firing", "resolved"], "whatever its severity"
    check_postable(manager.told[0].body)
    assert manager.told[0].body[0]["labels"] == {"alertname": "RingrouterTest", "severity": "info", "test": "true"}
    assert list(tmp_path.rglob("*.json")) == [], "a test is never kept"


# ---------------------------------------------------------------- the spool
def told(number: int, event: str = "firing") -> Message:
    return Message(event, alert(finding(labels={"slo": str(number)}), evidence=None))  # type: ignore[arg-type]


def filled(directory: Path, count: int, first: int = 0) -> Spool:
    """Return a spool with further messages, each turn one."""
    spool = Spool(directory, 100, 1 << 20)
    for number in range(first, first + count):
        spool.add(told(number))
        spool.flush()
    return spool


def numbers(spool: Spool) -> list[str]:
    found = []
    while (first := spool.first()) is not None:
        found.append(first[1].alert.finding.labels["slo"])
        spool.remove(first[0])
    return found


def test_a_full_spool_drops_the_oldest_resolved_first_and_then_the_oldest(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3, 1 << 20)
    for number, event in enumerate(("firing", "resolved", "firing", "resolved", "firing")):
        spool.add(told(number, event))
    assert spool.dropped_count == 2
    spool.add(told(5))
    assert spool.dropped_count == 3
    assert numbers(spool) == ["2", "4", "5"]
    assert spool.byte_count == 0


def test_a_spool_is_bounded_in_bytes_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    size = len(msgspec.json.encode(told(1)))
    spool = Spool(tmp_path, 100, 3 * size + 9)
    for number in range(1, 5):
        spool.add(told(number))
    assert spool.dropped_count == 1
    spool.flush()
    assert spool.byte_count == 3 * size
    assert (tmp_path / FILE).stat().st_size == 3 * (size + 1), "a line each"
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["2", "3", "4"]
    for number in range(5, 99):
        spool.add(told(number))
        spool.flush()
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 5 * size, "what is gone has its bound too"
    assert numbers(Spool(tmp_path, 2, 1 << 20)) == ["97", "98"], "another bound holds at once"


def test_what_was_taken_is_not_sent_again_by_the_next_observer(tmp_path: Path) -> None:
    spool = filled(tmp_path, 4)
    for _ in range(2):
        spool.remove(spool.first()[0])  # type: ignore[index]
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["2", "3"]
    spool = filled(tmp_path, 2)
    numbers(spool)
    assert (tmp_path / FILE).stat().st_size == 0
    spool.add(told(7))
    spool.flush()
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["7"]


def test_a_message_that_made_room_on_its_way_takes_no_other_with_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 9, len(msgspec.json.encode(told(0))))
    spool.add(told(0))
    number, _ = spool.first()  # type: ignore[misc]
    spool.add(told(1000))
    assert len(spool) == 0, "one that finds no room at all"
    spool.add(told(1))
    spool.remove(number)
    assert numbers(spool) == ["1"]


@in_loop
async def test_all_alerts_of_a_turn_are_on_disk_with_one_sync_for_each_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fdatasync(descriptor)

    monkeypatch.setattr("os.fdatasync", counted)
    courier = Courier(settings("webhook http://127.0.0.1:9", "log -"), tmp_path, BASE, Log())
    for _ in range(2):
        synced.clear()
        courier.tell([fires(told(number).alert) for number in range(500)])
        files = [tmp_path / "spool" / name / FILE for name in courier.names]
        assert synced == [each.stat().st_size for each in files], "after the last byte"
    courier.tell([])
    assert len(synced) == 2, "nothing new, nothing written"


def test_wherever_a_write_was_cut_what_was_there_before_goes_on(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    before_bytes = (tmp_path / FILE).stat().st_size
    filled(tmp_path, 2, first=2)
    raw = (tmp_path / FILE).read_bytes()
    second_bytes = raw.index(b"\n", before_bytes) + 1
    for size in range(before_bytes, len(raw) + 1):
        (tmp_path / FILE).write_bytes(raw[:size])
        spool = Spool(tmp_path, 100, 1 << 20)
        assert spool.dropped_count == 0, "nobody was told that it was accepted"
        spool.add(told(9))
        spool.flush()
        whole = ["0", "1"] + ["2"] * (size >= second_bytes) + ["3"] * (size == len(raw))
        assert numbers(Spool(tmp_path, 100, 1 << 20)) == [*whole, "9"]


@pytest.mark.parametrize("at", ["append", "write anew"])
def test_an_observer_that_is_killed_between_write_and_sync_loses_nothing_that_it_accepted(
    tmp_path: Path, at: str
) -> None:
    filled(tmp_path, 3)
    child = os.fork()
    if not child:
        try:
            spool = Spool(tmp_path, 100, 1 << 20)
            spool._is_whole = at == "append"
            os.fdatasync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            spool.add(told(3))
            spool.flush()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    expected = ["0", "1", "2", "3"] if at == "append" else ["0", "1", "2"]
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == expected


def test_what_is_damaged_is_put_aside_and_said_and_the_rest_is_sent(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff" + lines[1][1:]
    (tmp_path / FILE).write_bytes(b"".join(lines))
    with capture_logs() as told_lines:
        spool = Spool(tmp_path, 100, 1 << 20)
    assert spool.dropped_count == 1
    (line,) = told_lines
    assert (line["event"], line["error"]) == ("alert_messages_not_understood", "1 messages cannot be understood")
    assert (tmp_path / DAMAGED).read_bytes() == b"".join(lines)
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["0", "2"]


def test_a_directory_in_its_place_is_put_aside_and_a_file_that_was_removed_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / FILE / "inside").mkdir(parents=True)
    spool = Spool(tmp_path, 100, 1 << 20)
    assert (tmp_path / DAMAGED / "inside").exists()
    for number in range(3):
        spool.add(told(number))
        spool.flush()
        assert spool.problem == ""
        (tmp_path / FILE).unlink()
    spool.add(told(3))
    spool.flush()
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["0", "1", "2", "3"]


def test_a_message_that_is_larger_than_the_spool_goes_without_its_evidence(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100, 1500)
    spool.add(Message("firing", alert()))
    first = spool.first()
    assert first is not None
    assert first[1].alert.evidence is None


def test_a_disk_that_cannot_be_written_is_told_and_the_message_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, 100, 1 << 20)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", refuse)
    spool.add(told(0))
    spool.flush()
    assert spool.problem == f"{tmp_path} cannot be written: No space left on device"
    monkeypatch.undo()
    spool.flush()
    assert spool.problem == "", "tried again"
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == ["0"]
    monkeypatch.setattr("os.fdatasync", refuse)
    spool.add(told(1))
    spool.flush()
    assert spool.problem
    assert numbers(spool) == ["0", "1"]
    monkeypatch.undo()
    spool.flush()
    assert spool.problem == "", "what was delivered meanwhile holds it up no longer"
    assert numbers(Spool(tmp_path, 100, 1 << 20)) == []


# ---------------------------------------------------------------- the configuration
@pytest.mark.parametrize(
    ("sink", "says"),
    [
        ("webhook -", "sinks[0].url (not shown): expected http:// or https:// with a host, for kind webhook"),
        ("webhook ftp://secret", "sinks[0].url (not shown): expected http:// or https://"),
        ("log http://secret", "sinks[0].url (not shown): a sink of kind log has none"),
        ("webhook http://h headers = { 'bad name' = 'secret' }", "headers: expected names of headers"),
        ("webhook http://h headers = { host = 'secret' }", "headers: expected names of headers"),
        ("webhook http://h headers = { x-a = 'secret\u00e9' }", "headers.x-a (not shown): expected printable ASCII"),
        ("webhook http://h headers = { x-a = '1' }\nheaders_env = { X-A = 'V' }", "headers_env.X-A: the header stands"),
        ("webhook http://h headers_env = { x-a = 'my secret' }", "headers_env.x-a (not shown): expected the name of"),
        ("webhook http://h headers_file = { x-a = 'secret' }", "headers_file.x-a (not shown): expected an absolute"),
        ("webhook http://h ca_file = '/ca.pem'", "sinks[0].ca_file"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_without_its_secrets(sink: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings(sink)
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)


def test_names_of_sinks_differ() -> None:
    text = '[[observer.alerts.sinks]]\nname = "a"\nkind = "log"\n'
    with pytest.raises(ConfigError, match=r"observer.alerts.sinks\[1\].name = \"a\": expected names that differ"):
        config.parse(f"version = 1\n{text}{text}")
