"""The observer's process: reads the rings ten times a second, and answers HTTP in between.

One thread and one loop, as in the router, except for two slow things that work on copies: the text of ``/metrics`` and
the journal's hourly file. A turn that fails is logged and counted, and the next one goes on: the observer is no use to
anybody when it is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

import router
from ringbuffer import RingError
from router.config import Config, split_address
from router.config.slo import slo_warnings
from router.errors import ConfigError
from router.log import log_unhandled, set_up
from router.observer import prometheus
from router.observer.alerts.courier import Courier, TestReply
from router.observer.alerts.desk import AlertsPage
from router.observer.follow import RouterView
from router.observer.pipeline import Pipeline
from router.observer.positions import FollowError
from router.observer.prometheus import Reading
from router.observer.rows import RequestRow
from router.observer.segments import JOURNAL
from router.observer.slo.accounts import no_objectives
from router.observer.slo.status import SloPage
from router.observer.slowest import longest_stage
from router.observer.state import SCHEMA, Health, SlowRequest, Source, State
from router.observer.traces import find
from router.observer.traces.page import OBSERVER, TooManySearchesError, TracePage, page_of
from router.observer.view import View
from router.observer.web import Condition, WebServer

TURN_S: Final = 0.1
"""Between two looks at the rings. At 200,000 events a second 20,000 come in it, a thirteenth of what the ring holds."""
READ_ON_NS: Final = 700_000_000
"""How long a stop reads on: long enough to learn that a router has just ended, and what of."""
FINISH_NS: Final = 4_000_000_000
"""The longest that a stop waits for costs, which settle a second after a request's end."""
DELIVER_S: Final = 1.0
"""The longest that a stop waits for alerts to be delivered."""
SLOWEST_SHOWN: Final = 10
KEPT_FROM_S: Final = 600.0
"""Windows this long take a while to read, so what was read is told again for a :data:`KEPT_SHARE` of the window."""
KEPT_SHARE: Final = 1 / 120
EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
_SECOND_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000


_SEARCHES_MAX: Final = 8
"""Traces that are looked for on disk at once, those that wait for it included: each may read all of a journal."""


class Observer:
    """One observer. :meth:`run` returns when it was told to stop and has written what it had."""

    def __init__(self, config: Config, pipeline: Pipeline, log: Any) -> None:
        self.slice_names = pipeline.slice_names
        self._config = config
        self._pipeline = pipeline
        self._log = log
        self._stop = asyncio.Event()
        self._web = WebServer(self, config.observer.http)
        self._searching = asyncio.Lock()
        self._search_count = 0
        self._started_ns = time.monotonic_ns()
        self._turn_max_ns = 0
        self._fault_count = 0
        self._states: dict[tuple[float, str], State] = {}
        self._courier = self._make_courier()
        self._providers = {host.name: host.kind for host in config.hosts if host.kind != "auto"}

    def _make_courier(self) -> Courier | None:
        """Return what delivers alerts; raises ConfigError for a sink that cannot be."""
        desk = self._pipeline.desk
        if desk is None:
            return None
        alerts = self._config.observer.alerts
        base_url = alerts.external_url.rstrip("/") or _base_url(self._config.observer.http)
        courier = Courier(alerts, desk.directory, base_url, self._log)
        courier.follow(desk.ledger.active)
        desk.tell, desk.sinks = courier.tell, courier.sights
        return courier

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        """Observe until a signal says stop; raises :class:`ConfigError` when the address cannot be had."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: log_unhandled(self._log, context))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        address = await self._web.listen()
        self._log.info(
            "observing",
            http=address,
            rings=str(self._pipeline.run_dir),
            data=str(self._pipeline.data_dir),
            pid=os.getpid(),
        )
        delivering = None if self._courier is None else asyncio.create_task(self._courier.run())
        try:
            while not self._stop.is_set():
                await self._wait(self._timed(self._pipeline.turn))
            self._log.info("stopping")
            await self._finish()
        finally:
            await self._web.close()
            if delivering is not None:
                await self._stop_delivering(delivering)
            self._pipeline.close(time.time_ns())

    async def _stop_delivering(self, delivering: asyncio.Task[None]) -> None:
        """Let what can be delivered at once be delivered; the rest is on disk for the next observer."""
        if self._courier is not None and not delivering.done():
            await self._courier.flush(DELIVER_S)
        delivering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await delivering

    async def _finish(self) -> None:
        """Read what a router that has just ended left, and wait for the costs of what was read."""
        begin_ns = time.monotonic_ns()
        while time.monotonic_ns() - begin_ns < READ_ON_NS:
            await asyncio.sleep(self._timed(self._pipeline.turn))
        while self._pipeline.cost.pending_count and time.monotonic_ns() - begin_ns < FINISH_NS:
            await asyncio.sleep(self._timed(self._pipeline.settle))

    async def _wait(self, seconds: float) -> None:
        """Wait, for a stop no longer than for the next turn."""
        if not seconds:
            await asyncio.sleep(0)  # HTTP has its turn even when the rings are fuller than one turn can read
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _timed(self, turn: Callable[[int, int], None]) -> float:
        """Take a turn and return how long to wait until the next one."""
        begin_ns = time.monotonic_ns()
        try:
            turn(begin_ns, time.time_ns())
        except Exception as error:  # whatever it is, what comes next is to be read
            self._fault_count += 1
            log_unhandled(self._log, {"message": "a turn failed", "exception": error})
        took_ns = time.monotonic_ns() - begin_ns
        self._turn_max_ns = max(self._turn_max_ns, took_ns)
        return 0.0 if self._pipeline.is_behind else max(0.0, TURN_S - took_ns / _SECOND_NS)

    # ------------------------------------------------------------ answers
    def state(self, window_s: float, by: str) -> State:
        """Return the numbers of the last ``window_s`` seconds, with the slices of ``by`` (empty: the first entry)."""
        by = by or next(iter(self.slice_names), "")
        now_ns = time.time_ns()
        known = self._states.get((window_s, by))
        if known is None or not 0 <= now_ns - known.wall_ns < window_s * KEPT_SHARE * _SECOND_NS:
            known = self._counted(window_s, by, now_ns)
            if window_s >= KEPT_FROM_S:
                self._states[window_s, by] = known
        return self._with_present(known)

    def _counted(self, window_s: float, by: str, now_ns: int) -> State:
        """Return a state without what is only true now."""
        window_ns = int(window_s * _SECOND_NS)
        view = View(self._pipeline.aggregate, now_ns, window_ns)
        slowest = self._pipeline.slowest.top(SLOWEST_SHOWN, window_ns, time.monotonic_ns())
        return State(
            schema=SCHEMA,
            wall_ns=now_ns,
            window_s=window_s,
            covered_s=min(window_s, view.covered_ns / _SECOND_NS),
            currency=self._config.observer.currency,
            observer=self._own(),
            sources=[],
            traffic=view.traffic(0, 0),
            metrics=view.metrics(),
            stages=view.stages(),
            hosts=view.hosts(running_by_host(self._pipeline.follower.routers())),
            slice_names=list(self.slice_names),
            slices=view.slices(by) if by else None,
            slowest=[_slow_request(row) for row in slowest],
        )

    def _with_present(self, state: State) -> State:
        routers = self._pipeline.follower.routers()
        running_counts = running_by_host(routers)
        return replace(
            state,
            observer=self._own(),
            sources=[_source(each) for each in routers],
            traffic=replace(
                state.traffic,
                running_count=sum(running_counts.values()),
                waiting_count=sum(each.loads.waiting_count for each in routers),
            ),
            hosts=[replace(host, running_count=running_counts.get(host.name, 0)) for host in state.hosts],
        )

    def _own(self) -> Health:
        pipeline = self._pipeline
        return Health(
            pid=os.getpid(),
            version=router.__version__,
            up_s=(time.monotonic_ns() - self._started_ns) / _SECOND_NS,
            row_count=pipeline.follower.row_count,
            event_count=pipeline.follower.event_count,
            lost_request_count=pipeline.follower.lost_request_count,
            lost_event_count=pipeline.follower.lost_event_count,
            turn_max_ms=self._turn_max_ns / _MS_NS,
            fault_count=self._fault_count,
            journal=pipeline.journal_state,
        )

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the body of ``/metrics`` and its content type; the text is made in a thread, from a copy."""
        routers = self._pipeline.follower.routers()
        readings = [
            *prometheus.router_readings({each.instance: each.counters for each in routers}),
            *self._pipeline.readings(),
            *self._own_readings(),
            *(() if self._courier is None else self._courier.readings()),
        ]
        page = prometheus.capture(self._pipeline.aggregate, readings, time.time_ns())
        return await asyncio.to_thread(prometheus.render, page, accept, self._providers)

    def _own_readings(self) -> Iterator[Reading]:
        prefix, turn_s = prometheus.PREFIX, self._turn_max_ns / _SECOND_NS
        yield Reading(f"{prefix}observer_faults", "counter", "Turns of the observer that failed", (), self._fault_count)
        yield Reading(f"{prefix}observer_turn_seconds_max", "gauge", "The longest turn of the observer", (), turn_s)

    def alerts(self, fingerprint: str) -> AlertsPage | None:
        """Return what fires and what did, with ``fingerprint`` only that; ``None`` without alerts."""
        if self._pipeline.desk is None or self._courier is None:
            return None
        return self._pipeline.desk.page(time.time_ns(), self._courier.states(), fingerprint)

    async def test_alert(self, sink: str) -> list[TestReply]:
        """Send a test alert to all sinks or to one; raises ValueError for one that there is not."""
        names = [] if self._courier is None else self._courier.names
        if self._courier is None or (sink and sink not in names):
            raise ValueError(f"sink={sink[:80]}: expected one of {', '.join(names) or 'no sinks'}")
        return await self._courier.test(sink)

    def slo(self, name: str) -> SloPage:
        """Return how the objectives fare, with ``name`` only that one; raises ValueError for one that there is not."""
        accounts, wall_ns = self._pipeline.slo, time.time_ns()
        if accounts is None:
            return no_objectives(wall_ns, name)
        return accounts.page(wall_ns, name)

    async def trace(self, identity: str) -> TracePage | None:
        """Return the requests with a request id or a trace id, with their spans; ``None`` where none is found.

        What is not in memory is looked for on disk and in the rings, in a thread, one question at a time. So are the
        further requests of a caller's trace: not all of it need have been kept. Raises
        :class:`TooManySearchesError` when many wait already.
        """
        traces, source = self._pipeline.traces, OBSERVER
        identity = find.as_recorded(identity)
        rows = traces.find(identity)
        if not rows or find.may_be_more(identity, rows):
            if self._search_count >= _SEARCHES_MAX:
                raise TooManySearchesError
            self._search_count += 1
            try:
                async with self._searching:
                    found, where = await asyncio.to_thread(self._search, identity)
            finally:
                self._search_count -= 1
            both = find.merged([*found, *rows])
            if len(both) > len(rows):
                rows, source = both, where
        return page_of(identity, source, rows, traces.naming, traces.breaches) if rows else None

    def _search(self, identity: str) -> tuple[list[RequestRow], str]:
        pipeline = self._pipeline
        rows = find.in_journal(identity, pipeline.data_dir / JOURNAL)
        if rows:
            return rows, find.JOURNAL
        instances = [pipeline.run_dir / each.instance for each in pipeline.follower.routers()]
        return find.in_rings(identity, instances), find.RINGS

    def health(self) -> Condition:
        """Return how the observer is doing."""
        reasons = self._pipeline.problems()
        if self._courier is not None:
            reasons += self._courier.problems(time.time_ns())
        if self._fault_count:
            reasons.append(f"{self._fault_count:,} turns failed since the start: the log says where")
        return Condition("degraded" if reasons else "ok", reasons)


def _base_url(address: str) -> str:
    """Return where the observer can be reached, as far as its address says; empty for a unix socket or any port."""
    place = split_address(address, "observer.http")
    return "" if isinstance(place, str) or not place[1] else f"http://{address}"


def running_by_host(routers: Sequence[RouterView]) -> dict[str, int]:
    """Return how many requests all routers together have running at each host."""
    counts: Counter[str] = Counter()
    for each in routers:
        counts.update(each.loads.running_by_host)
    return dict(counts)


def _source(view: RouterView) -> Source:
    return Source(
        instance=view.instance,
        generation=str(view.generation),
        state=view.state,
        running_count=sum(view.loads.running_by_host.values()),
        waiting_count=view.loads.waiting_count,
        lag_records=view.lag_records,
        bad_request_count=view.counters.get("requests_bad"),
    )


def _slow_request(row: RequestRow) -> SlowRequest:
    stage, stage_ns = longest_stage(row)
    return SlowRequest(
        request_id=row.request_id,
        ended_wall_ns=row.end_wall_ns,
        model=row.model,
        host=row.host,
        outcome=row.outcome,
        ttft_ns=row.ttft_ns,
        e2e_ns=row.duration_ns if row.e2e_ns is None else row.e2e_ns,
        longest_stage=stage,
        longest_stage_ns=stage_ns,
        tokens_out=row.n_out,
        tags=row.tags,
    )


def serve(config: Config, run_dir: Path) -> int:
    """Run an observer in the foreground; return the exit status. Start-up errors are one line, never a trace."""
    log = set_up(config.log)
    for line in slo_warnings(config.slo):
        log.warning("objective", note=line)
    try:
        pipeline = Pipeline(config, run_dir, time.time_ns())
        asyncio.run(Observer(config, pipeline, log).run())
    except (ConfigError, FollowError, RingError, OSError) as error:
        log.error("cannot start", reason=str(error))
        return EXIT_USAGE
    return EXIT_OK
