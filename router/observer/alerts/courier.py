"""Delivers alerts: for each sink a task that takes its messages from a spool, in order, until the sink has taken them.

A sink that fails is tried again after a pause that doubles up to ``retry_s``, with jitter. What fires is told to an
Alertmanager again and again, as its clients must; to the others once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from router.config import AlertsConfig, AlertSink
from router.observer.alerts.ledger import Step, fingerprint
from router.observer.alerts.model import Alert, Cause, Finding, Severity
from router.observer.alerts.sinks import Reply, Sink, make_sink, with_severity
from router.observer.alerts.spool import Message, Spool
from router.observer.alerts.watch import SinkSight
from router.observer.prometheus import PREFIX, Reading

SPOOL: Final = "spool"
FIRST_PAUSE_S: Final = 1.0
PAUSE_DOUBLINGS_MAX: Final = 16
ALERTS_PER_POST: Final = 64
DEAD_AFTER_NS: Final = 60_000_000_000
"""A sink that fails for longer is told by ``/healthz``."""
TEST_ENDS_NS: Final = 300_000_000_000
DEFAULT_SINK: Final = AlertSink(name="log", kind="log")
"""What alerts go to where no sink is configured."""
_RANK: Final = {"info": 0, "ticket": 1, "page": 2}


class SinkState(msgspec.Struct, frozen=True, kw_only=True):
    """How a sink fares; counts are since the observer's start."""

    name: str
    kind: str
    target: str
    """Host and port; the rest of a URL may be a secret."""
    waiting_count: int
    """Messages that it has not taken yet."""
    waiting_bytes: int
    delivered_count: int
    failed_count: int
    """Deliveries that failed and were or will be tried again."""
    refused_count: int
    """Messages that it did not want."""
    dropped_count: int
    """Messages that had no room left while it failed."""
    failing_since_wall_ns: int | None
    error: str
    """What went wrong the last time; empty after a delivery."""


class TestReply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back of a test alert."""

    __test__ = False  # pytest takes the name for a test's
    name: str
    kind: str
    target: str
    is_taken: bool
    text: str


class _Route:
    """One sink with its spool, and how it fares."""

    def __init__(self, sink: Sink, spool: Spool, retry_s: float, resend_s: float) -> None:
        self.sink = sink
        self.spool = spool
        self.wake = asyncio.Event()
        self.firing: Callable[[], Sequence[Alert]] = tuple
        self.delivered_count = self.failed_count = self.refused_count = 0
        self.failing_since_wall_ns: int | None = None
        self.error = ""
        self._retry_s = retry_s
        self._resend_s = resend_s if sink.config.kind == "alertmanager" else None
        self._resent_s = float("-inf")  # what fired before the observer's restart is told at once
        self._in_a_row = 0

    # ------------------------------------------------------------ what it is told
    def tell(self, steps: Iterable[Step]) -> None:
        """Put what steps mean for this sink into its spool, and all of it on disk."""
        for step in steps:
            for message in self._messages(step):
                if self._concerns(message.alert):
                    self.spool.add(message)
        self.spool.flush()
        self.wake.set()

    def _concerns(self, alert: Alert) -> bool:
        """Say whether it is severe enough to be told here, and not that this very sink fails."""
        finding = alert.finding
        if finding.cause is Cause.SINK_DOWN and finding.labels.get("sink") == self.sink.config.name:
            return False
        return _RANK[finding.severity] >= _RANK[self.sink.config.severity]

    def _messages(self, step: Step) -> Iterator[Message]:
        if step.event == "escalated" and step.before is not None and self.sink.config.kind == "alertmanager":
            # The severity is one of its labels, so that to Alertmanager it is another alert.
            ended = replace(with_severity(step.alert, step.before), ends_wall_ns=step.alert.updated_wall_ns)
            yield Message("resolved", ended)
        yield Message(step.event, step.alert)

    # ------------------------------------------------------------ telling it
    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self.wake.clear()
            try:
                await self._deliver()
            except Exception as error:  # a fault of ours at one alert must not end the delivery of all others
                self._note(Reply(is_taken=False, is_refused=False, text=f"internal error ({type(error).__name__})"))
            if self._in_a_row:
                await asyncio.sleep(self._pause_s())

    async def _deliver(self) -> None:
        """Deliver the oldest message, or tell again what fires, or wait for something to do."""
        first = self.spool.first()
        if first is None:
            if not await self._resend():
                await self._idle()
            return
        number, message = first
        reply = await self.sink.send(message.event, [message.alert])
        self._note(reply)
        if reply.is_taken or reply.is_refused:
            self.spool.remove(number)
            self.delivered_count += reply.is_taken
            self.refused_count += reply.is_refused

    async def _resend(self) -> bool:
        """Tell an Alertmanager what fires, if it is time; return whether anything was sent."""
        if self._resend_s is None or time.monotonic() - self._resent_s < self._resend_s:
            return False
        firing = [alert for alert in self.firing() if self._concerns(alert)]
        for begin in range(0, len(firing), ALERTS_PER_POST):
            reply = await self.sink.send("firing", firing[begin : begin + ALERTS_PER_POST])
            self._note(reply)
            if not reply.is_taken and not reply.is_refused:
                return True  # all of it again, after a pause
        self._resent_s = time.monotonic()
        return bool(firing)

    async def _idle(self) -> None:
        left_s = None if self._resend_s is None else max(0.0, self._resent_s + self._resend_s - time.monotonic())
        try:
            await asyncio.wait_for(self.wake.wait(), left_s)
        except TimeoutError:
            return

    def _note(self, reply: Reply) -> None:
        if reply.is_taken:
            self._in_a_row, self.failing_since_wall_ns, self.error = 0, None, ""
            return
        self.error = reply.text
        if reply.is_refused:  # it works, and does not want this one
            self._in_a_row, self.failing_since_wall_ns = 0, None
            return
        self.failed_count += 1
        self._in_a_row += 1
        if self.failing_since_wall_ns is None:
            self.failing_since_wall_ns = time.time_ns()

    def _pause_s(self) -> float:
        doubled = FIRST_PAUSE_S * 2.0 ** min(self._in_a_row - 1, PAUSE_DOUBLINGS_MAX)
        return min(self._retry_s, doubled) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret

    # ------------------------------------------------------------ how it fares
    def state(self) -> SinkState:
        config = self.sink.config
        return SinkState(
            name=config.name,
            kind=config.kind,
            target=self.sink.target,
            waiting_count=len(self.spool),
            waiting_bytes=self.spool.byte_count,
            delivered_count=self.delivered_count,
            failed_count=self.failed_count,
            refused_count=self.refused_count,
            dropped_count=self.spool.dropped_count,
            failing_since_wall_ns=self.failing_since_wall_ns,
            error=self.error or self.spool.problem,
        )


class Courier:
    """All sinks. Raises :class:`router.errors.ConfigError` for one that cannot be, OSError for a directory."""

    def __init__(self, config: AlertsConfig, directory: Path, base_url: str, log: Any) -> None:
        self._routes: dict[str, _Route] = {}
        for each in config.sinks or [DEFAULT_SINK]:
            spool = Spool(directory / SPOOL / each.name, config.spool_count, config.spool_bytes)
            sink = make_sink(each, base_url, config.resend_s, log)
            self._routes[each.name] = _Route(sink, spool, config.retry_s, config.resend_s)

    def follow(self, firing: Callable[[], Sequence[Alert]]) -> None:
        """Tell Alertmanagers again what ``firing`` returns."""
        for route in self._routes.values():
            route.firing = firing

    def tell(self, steps: Sequence[Step]) -> None:
        """Take what is to be told. It is on disk when this returns, with one sync for each sink; a sink's own failure
        is not told to it. What a disk did not take the last time is tried again.
        """
        for route in self._routes.values():
            route.tell(steps)

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for route in self._routes.values():
                    tasks.create_task(route.run())
        finally:
            for route in self._routes.values():
                await route.sink.close()

    async def flush(self, seconds: float) -> None:
        """Wait until all is delivered, but no longer; the rest is on disk."""
        deadline_s = time.monotonic() + seconds
        while any(len(route.spool) for route in self._routes.values()) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)

    async def test(self, only: str = "") -> list[TestReply]:
        """Send a test alert to each sink, or to ``only`` one; raises KeyError for one that there is not."""
        routes = [self._routes[only]] if only else list(self._routes.values())
        return list(await asyncio.gather(*(_test(route.sink) for route in routes)))

    @property
    def names(self) -> list[str]:
        """Return the names of all sinks."""
        return list(self._routes)

    def states(self) -> list[SinkState]:
        """Return how each sink fares."""
        return [route.state() for route in self._routes.values()]

    def sights(self) -> list[SinkSight]:
        """Return what findings about sinks are made of."""
        return [
            SinkSight(each.name, each.failing_since_wall_ns, each.error, each.dropped_count, each.waiting_count)
            for each in self.states()
        ]

    def problems(self, wall_ns: int) -> list[str]:
        """Return which sinks are dead and what was dropped, a line each."""
        found = []
        for each in self.states():
            since_ns = each.failing_since_wall_ns
            if since_ns is not None and wall_ns - since_ns >= DEAD_AFTER_NS:
                found.append(f"alerts: {each.name} at {each.target} fails: {each.error}; {each.waiting_count:,} wait")
            elif since_ns is None and each.error:  # its disk, or it did not want the last message
                found.append(f"alerts: {each.name} at {each.target}: {each.error}")
            if each.dropped_count:
                found.append(f"alerts: {each.dropped_count:,} messages to {each.name} were dropped")
        return found

    def readings(self) -> Iterator[Reading]:
        """Yield the numbers of all sinks, for ``/metrics``."""
        states = self.states()
        for field, kind, meaning in (
            ("delivered", "counter", "Alerts that a sink has taken"),
            ("failed", "counter", "Deliveries of alerts that failed and are tried again"),
            ("refused", "counter", "Alerts that a sink did not want"),
            ("dropped", "counter", "Alerts dropped because a sink failed for too long"),
            ("waiting", "gauge", "Alerts that a sink has not taken yet"),
        ):
            for each in states:
                value = getattr(each, f"{field}_count")
                name = f"{PREFIX}alerts_{field}"
                yield Reading(name, "gauge" if kind == "gauge" else "counter", meaning, (("sink", each.name),), value)
        for each in states:
            is_up = each.failing_since_wall_ns is None
            meaning = "1 while a sink takes alerts, as far as was tried"
            yield Reading(f"{PREFIX}alert_sink_up", "gauge", meaning, (("sink", each.name),), is_up)


def test_alert(wall_ns: int) -> Alert:
    """Return an alert that says that nothing is wrong."""
    finding = Finding(
        cause=Cause.TEST,
        severity=Severity.INFO,
        labels={"test": "true"},
        summary="Test alert of ringrouter: nothing is wrong, this only shows that alerts arrive.",
        since_wall_ns=wall_ns,
    )
    return Alert(fingerprint=fingerprint(finding), finding=finding, starts_wall_ns=wall_ns, updated_wall_ns=wall_ns)


async def _test(sink: Sink) -> TestReply:
    """Send a test alert, and to a webhook its end. An Alertmanager that hears of the end at once would tell nobody, so
    it is told that the alert ends by itself.
    """
    alert = test_alert(time.time_ns())
    if sink.config.kind == "alertmanager":
        alert = replace(alert, ends_wall_ns=alert.starts_wall_ns + TEST_ENDS_NS)
    reply = await sink.send("firing", [alert])
    if sink.config.kind == "webhook" and reply.is_taken:
        ended = await sink.send("resolved", [replace(alert, ends_wall_ns=time.time_ns())])
        reply = ended._replace(text=f"firing {reply.text}, resolved {ended.text}")
    return TestReply(
        name=sink.config.name, kind=sink.config.kind, target=sink.target, is_taken=reply.is_taken, text=reply.text
    )
