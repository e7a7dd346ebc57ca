"""``tokens.ring`` in numpy batches: the gaps, stalls and pauses of each request, in bounded memory.

One assembler serves one generation of one router. It keeps what it knows of every request that is still open and hands
it out, once, together with the request's done record:

* A gap is the time between two content events of the attempt that answered: a retry begins anew, as in the record.
  Events of one read of the host's socket are 0 apart, and count; the first content event of an attempt has no gap.
* A request is ``lossy`` exactly when its records were overwritten before they were read: the done record says how many
  events and how many content events there were, and that is compared with what was seen.
* Ended requests leave in the order in which the router ended them, which is also the order of the done records. So a
  done record also dismisses all that ended before it and whose own record is lost or was dealt with in an earlier life.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.observer.rows import NO_ICL, STALL_NS, IclSummary, RowStall
from router.telemetry.records import TOKENS_SLOT_BYTES, Kind, TokenFlag

Words = NDArray[np.uint64]
"""Slots of ``tokens.ring`` as rows of eight words; the first is the sequence of the record."""
Gaps = NDArray[np.int64]

WORDS_PER_EVENT: Final = TOKENS_SLOT_BYTES // 8
_KIND_MASK: Final = 0xFF
GAP_BYTES: Final = 8
GAPS_PER_REQUEST_MAX: Final = 65_536
"""Gaps kept of one request: half a MiB, and more than any sensible answer has. Of those behind, the number, the sum,
the largest and the stalls are still exact."""
KEPT_BYTES_MAX: Final = 128 << 20
"""Gaps kept of all open requests together: 4,096 requests with 4,096 tokens each."""
STALLS_TOLD_MAX: Final = 16
"""Stalls of one request that are told one by one, the longest: more would say no more."""
NO_GAPS: Final[Gaps] = np.empty(0, np.int64)
NO_TOKEN_SEQ: Final = -1
"""No token record of the request was seen."""

# As plain integers: numpy compares whole columns with them.
_TEXT, _TOOL_CALL, _DISPATCHED = int(Kind.TEXT), int(Kind.TOOL_CALL), int(Kind.DISPATCHED)
_BLOCKED, _DRAINED, _DONE = int(Kind.BLOCKED), int(Kind.DRAINED), int(Kind.DONE)
_HOST_EVENT: Final = int(TokenFlag.HOST_EVENT) << 8
_UINT16_COUNT: Final = 1 << 16


class Pace(NamedTuple):
    """What ``tokens.ring`` says of one request that has ended."""

    summary: IclSummary
    gaps: Gaps
    first_token_seq: int
    """A sequence of ``tokens.ring`` from which on all of its records are: where to begin to learn this anew.
    :data:`NO_TOKEN_SEQ` without a record."""


class OpenPace(NamedTuple):
    """What ``tokens.ring`` says of a request without a done record: its router died."""

    n_events: int
    n_content: int
    tok1_mono_ns: int
    tok_n_mono_ns: int
    last_mono_ns: int
    has_ended: bool
    """The router had told its end, but not yet written its record."""


class _Unkept:
    """The gaps beyond the bounds, added up."""

    __slots__ = ("gap_count", "max_ns", "stall_count", "stall_ns", "total_ns")

    def __init__(self) -> None:
        self.gap_count = self.total_ns = self.max_ns = self.stall_count = self.stall_ns = 0

    def add(self, gaps: Gaps) -> None:
        stalls = gaps[gaps > STALL_NS]
        self.gap_count += len(gaps)
        self.total_ns += int(gaps.sum())
        self.max_ns = max(self.max_ns, int(gaps.max()))
        self.stall_count += len(stalls)
        self.stall_ns += int(stalls.sum())


class _Open:
    """A request whose done record has not come."""

    __slots__ = (
        "blocked_ns",
        "blocked_since_ns",
        "content_seen",
        "events_seen",
        "first_token_seq",
        "gaps",
        "has_ended",
        "host_end_ns",
        "is_suspect",
        "last_kind",
        "last_ns",
        "tok1_ns",
        "tok_n_ns",
        "unkept",
    )

    def __init__(self, first_token_seq: int) -> None:
        self.first_token_seq = first_token_seq
        self.gaps = bytearray()
        self.unkept: _Unkept | None = None
        self.events_seen = 0
        self.content_seen = 0
        self.tok1_ns = 0
        self.tok_n_ns = 0
        self.host_end_ns = 0
        self.last_ns = 0
        self.last_kind = 0
        self.blocked_since_ns = 0
        self.blocked_ns = 0
        self.has_ended = False
        self.is_suspect = False

    def begin_attempt(self) -> None:
        """Forget the content of an attempt that failed, as the router does."""
        self.gaps = bytearray()
        self.unkept = None
        self.content_seen = 0
        self.tok1_ns = self.tok_n_ns = self.last_kind = 0

    def pause(self, kind: int, t_ns: int) -> None:
        """Take note that the client's socket stopped taking bytes, took them again, or needs to no more."""
        if kind == _BLOCKED:
            self.blocked_since_ns = t_ns
        elif self.blocked_since_ns:
            self.blocked_ns += t_ns - self.blocked_since_ns
            self.blocked_since_ns = 0


class _Grouped:
    """Token records by request: each group is one request's, oldest first."""

    def __init__(self, words: Words) -> None:
        self.words = words = words[_order(words[:, 2])]
        requests = words[:, 2]
        self.kinds = words[:, 3] & _KIND_MASK
        self.starts = np.flatnonzero(np.concatenate(([True], requests[1:] != requests[:-1])))
        self.ends = np.append(self.starts[1:], len(words))
        is_content = (self.kinds >= _TEXT) & (self.kinds <= _TOOL_CALL)
        self._content_through = np.cumsum(is_content)
        self.gaps: Gaps = words[is_content, 5].astype(np.int64)
        self.content_times = words[is_content, 1].astype(np.int64)
        self.content_kinds = self.kinds[is_content]

    def groups(self) -> zip[tuple[int, ...]]:
        """Return for each group: request, first and end place among the content events, number of host events, time of
        the last host event, time of the last event.
        """
        words, starts, ends = self.words, self.starts, self.ends
        content_ends = self._content_through[ends - 1]
        content_begins = np.concatenate(([0], content_ends[:-1]))
        is_host = words[:, 3] & _HOST_EVENT != 0
        host_counts = np.add.reduceat(is_host.astype(np.int64), starts)
        host_ends = np.maximum.reduceat(np.where(is_host, words[:, 1], 0), starts)
        columns = (
            words[starts, 2],
            content_begins,
            content_ends,
            host_counts,
            host_ends,
            words[ends - 1, 1],
        )
        return zip(*(column.tolist() for column in columns), strict=True)

    def attempt_begins(self) -> dict[int, int]:
        """Return for each request that was sent to a host where its attempt begins among the content events."""
        at = np.flatnonzero(self.kinds == _DISPATCHED)
        return dict(zip(self.words[at, 2].tolist(), self._content_through[at].tolist(), strict=True))

    def pauses(self) -> list[tuple[int, int, int]]:
        """Return (request, kind, time) of what says how the client's socket fares; the end is such a word, too."""
        at = np.flatnonzero((self.kinds >= _BLOCKED) & (self.kinds <= _DONE))
        return list(zip(self.words[at, 2].tolist(), self.kinds[at].tolist(), self.words[at, 1].tolist(), strict=True))

    def ended(self) -> list[int]:
        """Return the requests that have ended, in the order of their ends."""
        done = self.words[self.kinds == _DONE]
        ended: list[int] = done[np.argsort(done[:, 0]), 2].tolist()
        return ended


def _order(requests: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the order that puts equal requests together and leaves each one's records as they came.

    Of 16-bit numbers numpy's stable sort is a radix sort, several times as fast as that of longer ones.
    """
    lowest = requests.min()
    if requests.max() - lowest < _UINT16_COUNT:
        return np.argsort((requests - lowest).astype(np.uint16), kind="stable")
    return np.argsort(requests, kind="stable")


class Assembler:
    """Puts the token records of one generation together, request by request."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._ended: deque[int] = deque()
        self._kept_bytes = 0

    @property
    def open_count(self) -> int:
        """Requests whose done record has not been taken."""
        return len(self._open)

    @property
    def kept_bytes(self) -> int:
        """Memory that the gaps of open requests take."""
        return self._kept_bytes

    @property
    def first_open_seq(self) -> int | None:
        """A sequence of ``tokens.ring`` from which on all records of the open requests are; ``None`` without one."""
        return next(iter(self._open.values())).first_token_seq if self._open else None

    def add(self, words: Words) -> None:
        """Take token records, oldest first; what was lost between two of them is simply not there."""
        if not len(words):
            return
        grouped, known = _Grouped(words), self._open
        begun = grouped.attempt_begins()
        data = memoryview(grouped.gaps.tobytes())
        first_seq = int(words[0, 0])  # of the batch, so that the open requests stand in the order of theirs
        for request_seq, begin, content_end, host_count, host_end_ns, last_ns in grouped.groups():
            state = known.get(request_seq)
            if state is None:
                state = known[request_seq] = _Open(first_seq)
            content_begin = begun.get(request_seq, begin)
            if request_seq in begun:
                self._kept_bytes -= len(state.gaps)
                state.begin_attempt()
            state.last_ns = last_ns
            if host_count:
                state.events_seen += host_count
                state.host_end_ns = host_end_ns
            if content_end > content_begin:
                self._add_content(state, grouped, content_begin, content_end, data)
        for request_seq, kind, t_ns in grouped.pauses():
            known[request_seq].pause(kind, t_ns)
        for request_seq in grouped.ended():
            known[request_seq].has_ended = True
            self._ended.append(request_seq)

    def _add_content(self, state: _Open, grouped: _Grouped, begin: int, end: int, data: memoryview) -> None:
        """Add a request's content events between two places; ``data`` holds the bytes of all gaps."""
        is_first = not state.content_seen
        state.content_seen += end - begin
        state.tok_n_ns = int(grouped.content_times[end - 1])
        state.last_kind = int(grouped.content_kinds[end - 1])
        if is_first:
            state.tok1_ns = int(grouped.content_times[begin])
            if not grouped.gaps[begin]:  # else the first ones were lost, and this one does follow another
                begin += 1
        room = min(
            GAPS_PER_REQUEST_MAX - len(state.gaps) // GAP_BYTES, (KEPT_BYTES_MAX - self._kept_bytes) // GAP_BYTES
        )
        kept_end = min(end, begin + max(room, 0)) if state.unkept is None else begin
        if kept_end > begin:
            state.gaps += data[begin * GAP_BYTES : kept_end * GAP_BYTES]
            self._kept_bytes += (kept_end - begin) * GAP_BYTES
        if end > kept_end:
            state.unkept = state.unkept or _Unkept()
            state.unkept.add(grouped.gaps[kept_end:end])

    def take(self, request_seq: int, n_events: int, n_content: int) -> Pace:
        """Return what is known of a request and forget it, and all that ended before it.

        ``n_events`` and ``n_content`` are those of its done record.
        """
        state = self._open.get(request_seq)
        if state is None:
            return Pace(NO_ICL._replace(lossy=n_events > 0), NO_GAPS, NO_TOKEN_SEQ)
        self._forget_until(request_seq)
        self._forget(request_seq)
        is_lossy = state.events_seen != n_events or state.content_seen != n_content
        gaps = np.frombuffer(state.gaps, np.int64) if state.gaps else NO_GAPS
        return Pace(_summary(gaps, state, is_lossy=is_lossy), gaps, state.first_token_seq)

    def open_pace(self, request_seq: int) -> OpenPace:
        """Return how far a request has come; zeros for one without a token record."""
        state = self._open.get(request_seq)
        if state is None:
            return OpenPace(0, 0, 0, 0, 0, has_ended=False)
        return OpenPace(
            state.events_seen, state.content_seen, state.tok1_ns, state.tok_n_ns, state.last_ns, state.has_ended
        )

    def forget_strangers(self, alive: Container[int]) -> None:
        """Forget requests that have neither ended nor are alive, for the second time: records of theirs were lost.

        ``alive`` are the requests in the in-flight table; call it about once a second while records are being lost.
        """
        strangers = [seq for seq, state in self._open.items() if not (state.has_ended or seq in alive)]
        for request_seq in strangers:
            if self._open[request_seq].is_suspect:
                self._forget(request_seq)
            else:
                self._open[request_seq].is_suspect = True

    def _forget_until(self, request_seq: int) -> None:
        """Forget what ended before this request: done records come in the order of the ends."""
        if not self._open[request_seq].has_ended:
            return
        while (ended := self._ended.popleft()) != request_seq:
            self._forget(ended)

    def _forget(self, request_seq: int) -> None:
        state = self._open.pop(request_seq, None)
        if state is not None:
            self._kept_bytes -= len(state.gaps)


def _summary(gaps: Gaps, state: _Open, *, is_lossy: bool) -> IclSummary:
    unkept = state.unkept or _Unkept()
    gap_count = len(gaps) + unkept.gap_count
    summary = IclSummary(
        gap_count=gap_count,
        kept_count=len(gaps),
        stall_count=unkept.stall_count,
        stall_ns=unkept.stall_ns,
        blocked_ns=state.blocked_ns,
        host_end_mono_ns=state.host_end_ns,
        lossy=is_lossy,
        calls_tools=state.last_kind == _TOOL_CALL,
    )
    if not len(gaps):
        return summary
    ascending = np.sort(gaps)
    stalls = ascending[np.searchsorted(ascending, STALL_NS, "right") :]
    return summary._replace(
        mean_ns=(int(ascending.sum()) + unkept.total_ns) / gap_count,
        p50_ns=nearest_rank(ascending, 50),
        p95_ns=nearest_rank(ascending, 95),
        max_ns=max(int(ascending[-1]), unkept.max_ns),
        stall_count=len(stalls) + unkept.stall_count,
        stall_ns=int(stalls.sum()) + unkept.stall_ns,
        stalls=() if is_lossy or not len(stalls) else _stalls(gaps),
    )


def _stalls(gaps: Gaps) -> tuple[RowStall, ...]:
    """Return the longest stalls, each with when it ended, after the first content event; all gaps before it known."""
    at = np.flatnonzero(gaps > STALL_NS)
    longest = np.sort(at[np.argsort(-gaps[at], kind="stable")[:STALLS_TOLD_MAX]])
    after_ns = np.cumsum(gaps)[longest]
    return tuple(RowStall(*each) for each in zip(after_ns.tolist(), gaps[longest].tolist(), strict=True))


def nearest_rank(ascending: Gaps, percent: int) -> int:
    """Return the smallest of the values, at least one and ascending, that ``percent`` of a hundred are not above."""
    return int(ascending[-(-len(ascending) * percent // 100) - 1])
