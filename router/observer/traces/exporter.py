"""A thread that exports traces, for the exporter blocks; the observer's turn only puts them into a queue.

::

    offer() ──► queue, bounded ──► send ──► endpoint
                    │  it fails      ▲
                    └──► spool ──────┘  tried again, ever more rarely, the oldest first

While the endpoint fails, everything goes to the spool, so that memory holds little and a stop or a kill loses no more
than what came in the last second. Nothing is sent twice on purpose; what was under way when the observer was stopped
is, with the same ids.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Protocol

import structlog

from router.observer.traces.sampling import Kept
from router.observer.traces.spans import Span
from router.observer.traces.spool import BATCH_COUNT, TraceSpool

QUEUE_MAX: Final = 8192
"""Traces in memory; those beyond it, of a moment in which more are kept than can be sent, go to the spool."""
LINGER_S: Final = 1.0
"""How long a batch that is not full is waited for."""
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
PUT_AWAY_S: Final = 5.0
"""While the endpoint fails: how often what waits in memory is put on disk, so that there are not thousands of files."""
STOP_S: Final = 2.0
"""The longest that a stop waits for an export under way; it is in the spool then."""

_log = structlog.get_logger("traces")


class Sender(Protocol):
    """How spans are sent: :class:`router.observer.traces.otlp.OtlpSender`."""

    @property
    def is_refused(self) -> bool:
        """Whether the last batch will not be taken later either."""

    @property
    def problem(self) -> str:
        """Why the last batch was not taken."""

    def send(self, spans: Sequence[Span]) -> bool:
        """Send spans; return whether they were taken."""

    def interrupt(self) -> None:
        """Have a call of :meth:`send` end soon."""


class TraceExporter:
    """Exports what it is offered until it is closed. ``make_sender`` and ``spans_of`` are called in the thread."""

    def __init__(
        self,
        make_sender: Callable[[], Sender],
        spans_of: Callable[[Kept], list[Span]],
        spool: TraceSpool,
        *,
        linger_s: float = LINGER_S,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._make_sender = make_sender
        self._spans_of = spans_of
        self._spool = spool
        self._linger_s, self._retry_first_s = linger_s, retry_first_s
        self._queue: deque[Kept] = deque()
        self._under_way: list[Kept] = []
        self._lock = threading.Lock()
        """Of the queue, the spool and what is under way."""
        self._wake = threading.Event()
        self._stopping = False
        self._retry_s = 0.0
        self._retry_ns = 0
        self._jitter = Random()  # noqa: S311 - no secret
        self._sender: Sender | None = None
        self._unmade_count = 0
        self.exported_count = 0
        self.failed_count = 0
        """Exports that failed."""
        self.refused_count = 0
        """Traces that the endpoint refused for good."""
        self.problem = ""
        """What is wrong with the endpoint now, in one line; empty when nothing is."""
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def offer(self, kept: Sequence[Kept]) -> None:
        """Take traces to export; never waits for the endpoint."""
        if not kept:
            return
        with self._lock:
            self._queue.extend(kept)
            excess = len(self._queue) - QUEUE_MAX
            if excess > 0:
                self._spool.add([self._queue.popleft() for _ in range(excess)])
        if not self._retry_s or len(self._queue) >= BATCH_COUNT:
            self._wake.set()

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def dropped_count(self) -> int:
        """Traces that were given up: the spool was full or could not be written, or no spans could be made of a row."""
        return self._spool.dropped_count + self._unmade_count

    @property
    def waiting_count(self) -> int:
        """Traces that are not exported yet, as far as is known."""
        return len(self._queue) + len(self._under_way) + self._spool.trace_count

    @property
    def spool_bytes(self) -> int:
        """What waits on disk."""
        return self._spool.byte_count

    @property
    def spool_problem(self) -> str:
        """Why the disk does not take what waits."""
        return self._spool.problem

    def close(self) -> None:
        """Try once more to send what waits, and put into the spool what could not be sent."""
        self._stopping = True
        self._wake.set()
        self._thread.join(STOP_S)
        if self._thread.is_alive() and self._sender is not None:
            self._sender.interrupt()
        with self._lock:
            left = [*self._under_way, *self._queue]
            self._under_way, self._queue = [], deque()
            if left:
                self._spool.add(left)

    # ------------------------------------------------------------ in the thread
    def _run(self) -> None:
        while True:
            self._wake.wait(self._pause_s())
            is_last = self._stopping
            if not is_last and not self._retry_s and self._linger_s:
                self._gather()
            self._wake.clear()
            try:
                self._step()
            except Exception as error:  # a fault of ours must not end all export until the next start
                _log.exception("traces_fault")
                self._fail(f"{type(error).__name__}: {error}")
                with self._lock:
                    self._queue.extendleft(reversed(self._under_way))
                    self._under_way = []
            if is_last or (self._stopping and self._retry_s):
                return

    def _pause_s(self) -> float | None:
        if self._stopping:
            return 0.0
        if self._retry_s:
            return min(PUT_AWAY_S, max(0.0, (self._retry_ns - time.monotonic_ns()) / 1e9))
        return 0.0 if self._queue or len(self._spool) else None

    def _gather(self) -> None:
        """Wait a moment for a batch to become full."""
        end_ns = time.monotonic_ns() + int(self._linger_s * 1e9)
        while len(self._queue) < BATCH_COUNT and not self._stopping:
            self._wake.clear()
            left_s = (end_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0 or len(self._spool) or not self._wake.wait(left_s):
                return

    def _step(self) -> None:
        """Send until nothing is left or the endpoint fails."""
        if self._retry_s and time.monotonic_ns() < self._retry_ns and not self._stopping:
            self._put_away()
            return
        while self._send_spooled() and self._send_queued():
            pass

    def _send_spooled(self) -> bool:
        """Send what waits on disk, the oldest first; false when the endpoint fails."""
        while True:
            with self._lock:
                first = self._spool.first()
            if first is None:
                return True
            number, batch = first
            if not self._sent(batch):
                self._put_away()
                return False
            with self._lock:
                self._spool.remove(number)

    def _send_queued(self) -> bool:
        """Send a batch of what waits in memory; false when there is nothing, or the endpoint fails."""
        with self._lock:
            batch = [self._queue.popleft() for _ in range(min(BATCH_COUNT, len(self._queue)))]
            self._under_way = batch
        if not batch:
            return False
        is_sent = self._sent(batch)
        with self._lock:
            taken, self._under_way = self._under_way, []
            if not is_sent and taken:
                self._spool.add(taken)
        if not is_sent:
            self._put_away()
        return is_sent

    def _put_away(self) -> None:
        """Put what waits in memory on disk."""
        with self._lock:
            left, self._queue = self._queue, deque()
            self._spool.add(list(left))

    def _sent(self, batch: Sequence[Kept]) -> bool:
        """Send a batch; true also for one that the endpoint will never take."""
        try:
            sender = self._sender = self._sender or self._make_sender()
        except Exception as error:  # a file of certificates that is not there, most likely
            self._fail(f"{type(error).__name__}: {error}")
            return False
        spans, made_count = self._spans(batch)
        try:
            is_taken = not spans or sender.send(spans)
        except Exception as error:  # no fault of the network's: it would be in the way of all behind it
            self._unmade_count += len(batch)
            _log.error("traces_not_encoded", traces=len(batch), error=repr(error))
            return True
        if is_taken:
            self.exported_count += made_count
            self._recovered()
            return True
        if sender.is_refused:
            self.refused_count += len(batch)
            _log.error("traces_refused", endpoint=sender.problem, traces=len(batch))
            self._recovered()
            return True
        self._fail(sender.problem)
        return False

    def _spans(self, batch: Sequence[Kept]) -> tuple[list[Span], int]:
        """Return the spans of a batch, and of how many of its traces they are."""
        spans: list[Span] = []
        made_count = 0
        for kept in batch:
            try:
                spans += self._spans_of(kept)
                made_count += 1
            except Exception as error:  # a row that is not as rows are: it would be in the way of all behind it
                self._unmade_count += 1
                _log.error("no_spans", instance=kept.row.instance, request_seq=kept.row.request_seq, error=repr(error))
        return spans, made_count

    def _fail(self, problem: str) -> None:
        self.failed_count += 1
        self._retry_s = min(RETRY_MAX_S, self._retry_s * 2 or self._retry_first_s)
        self._retry_ns = time.monotonic_ns() + int(self._retry_s * self._jitter.uniform(0.5, 1.0) * 1e9)
        if problem != self.problem:
            self.problem = problem
            _log.warning("traces_not_exported", endpoint=problem, waiting=self.waiting_count)

    def _recovered(self) -> None:
        self._retry_s, self._retry_ns = 0.0, 0
        if self.problem:
            self.problem = ""
            _log.info("traces_exported_again")
