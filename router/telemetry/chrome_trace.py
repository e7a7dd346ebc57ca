"""Requests, their stages and their tokens as Chrome trace events, for chrome://tracing and ui.perfetto.dev. Pure.

The format: JSON objects with ``ph`` (the type), ``ts`` in microseconds, ``pid`` and ``tid`` (rows of the drawing)::

    process 1, the router     one row (thread) for each request that runs at the same time as others
        X  request            from its first byte to its end …
        X    its stages       … cut up without a gap: upload, queue, host_first_token, decode, …
        i    its tokens       one instant for every record of the token ring
        b e  egress           the first token on its way to the client; apart, since decoding goes on meanwhile
    process 2 …, one per host  the attempts made there, one row for each that ran at the same time as others

Slices of one row never overlap unless one contains the other, which is what the format asks for.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ringbuffer import DistinctError
from router.stamps import STAGES, STAMPS, normalise

Event = dict[str, Any]

ROUTER_PID: Final = 1
_ROW_STAGES: Final = tuple(stage for stage in STAGES if stage != "egress")
_SHOWN: Final = (
    "request_seq",
    "request_id",
    "endpoint",
    "model",
    "host",
    "outcome",
    "error",
    "status",
    "phase",
    "flags",
    "n_in",
    "n_out",
    "ttft_ns",
    "tpot_ns",
    "e2e_ns",
    "router_overhead_ns",
    "attempt_count",
    "tags",
)
"""What a request's slice says when it is clicked; the whole record is in the JSON lines."""
_TOKEN_SHOWN: Final = (
    "event_index",
    "bytes",
    "gap_ns",
    "n_tokens",
    "choice",
    "flags",
    "host",
    "client_unsent_bytes",
)


class _Attempt(NamedTuple):
    begin_ns: int
    end_ns: int
    name: str
    args: Mapping[str, Any]


class Trace:
    """The events of one snapshot.

    ``requests``: finished ones and those in flight, as :func:`router.telemetry.reader.resolve` gives them; ``tokens``
    as ``resolve_token`` does. Both are gone through more than once. What has not ended ends at ``end_ns``; times count
    from ``origin_ns``. All are nanoseconds of the records' clock.
    """

    def __init__(
        self,
        requests: Iterable[Mapping[str, Any]],
        tokens: Iterable[Mapping[str, Any]],
        errors: Iterable[DistinctError],
        *,
        origin_ns: int,
        end_ns: int,
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        self._errors = errors
        self._origin_ns = origin_ns
        self._end_ns = end_ns
        self._spans = self._measure()
        self._rows = rows(self._spans)
        self._attempts: defaultdict[str, list[_Attempt]] = defaultdict(list)

    def events(self, title: str) -> Iterator[Event]:
        """Yield every event; ``title`` names the router's process."""
        yield _name("process_name", ROUTER_PID, 0, title)
        for row in range(1 + max(self._rows.values(), default=-1)):
            yield _name("thread_name", ROUTER_PID, row, f"requests {row + 1}")
        known = set()
        for request in self._requests:
            known.add(request["request_seq"])
            yield from self._request(request)
        for seq in sorted(self._spans.keys() - known):
            yield self._slice(f"#{seq} (record overwritten)", "request", seq, *self._spans[seq], {"request_seq": seq})
        for token in self._tokens:
            yield self._token(token)
        for pid, (host, attempts) in enumerate(sorted(self._attempts.items()), ROUTER_PID + 1):
            yield from self._host(pid, host, attempts)
        for error in self._errors:
            yield from self._error(error)

    def _measure(self) -> dict[int, tuple[int, int]]:
        """Return begin and end of every request: by its record, and by its tokens, which may be all that is left."""
        spans = {each["request_seq"]: (each["stamps"]["recv"], self._end_of(each)) for each in self._requests}
        for token in self._tokens:
            seq, t_ns = token["request_seq"], token["t_ns"]
            begin_ns, end_ns = spans.get(seq, (t_ns, t_ns))
            if not begin_ns <= t_ns <= end_ns or seq not in spans:
                spans[seq] = min(begin_ns, t_ns), max(end_ns, t_ns)
        return spans

    def _end_of(self, request: Mapping[str, Any]) -> int:
        """Return when a request ended; of one that has not, the end of the drawing, or later if it got that far."""
        at = normalise(list(request["stamps"].values()))
        return at[-1] if request["stamps"]["done"] else max(at[-1], self._end_ns)

    def _request(self, request: Mapping[str, Any]) -> Iterator[Event]:
        seq, stamps = request["request_seq"], request["stamps"]
        at = dict(zip(STAMPS, normalise(list(stamps.values())), strict=True))
        begin_ns, end_ns = self._spans[seq]
        what = " ".join(part for part in (request["endpoint"], request["model"], f"#{seq}") if part)
        name = what if stamps["done"] else f"{what} (in flight: {request['phase']})"
        yield self._slice(name, "request", seq, begin_ns, end_ns, {key: request[key] for key in _SHOWN})
        begin = at["recv"]
        for stage, stamp in zip(_ROW_STAGES, (*STAMPS[1:11], "tokN", "outN"), strict=True):
            if at[stamp] > begin:
                yield self._slice(stage, "stage", seq, begin, at[stamp], {})
                begin = at[stamp]
        if end_ns > begin and (request["outcome"] != "ok" or not stamps["done"]):
            rest = "until it ended" if stamps["done"] else f"still in {request['phase']}"
            yield self._slice(rest, "stage", seq, begin, end_ns, {})
        if at["out1"] > at["tok1"]:
            common = {"cat": "egress", "name": "egress", "id": str(seq), "pid": ROUTER_PID, "tid": self._rows[seq]}
            yield common | {"ph": "b", "ts": self._us(at["tok1"]), "args": {"request_seq": seq}}
            yield common | {"ph": "e", "ts": self._us(at["out1"]), "args": {}}
        self._note_attempts(request, at, end_ns)

    def _note_attempts(self, request: Mapping[str, Any], at: Mapping[str, int], end_ns: int) -> None:
        seq = request["request_seq"]
        failed_routed_ns = 0
        for failed in request["failed_attempts"]:
            failed_routed_ns = failed["routed"]
            args = {"request_seq": seq, "error": failed["error"], "status": failed["status"]}
            end = max(failed["ended"], failed_routed_ns)
            self._attempts[failed["host"]].append(_Attempt(failed_routed_ns, end, f"#{seq}: {failed['error']}", args))
        routed_ns = request["stamps"]["routed"]
        if request["host"] and routed_ns > failed_routed_ns:  # the last attempt is not one of those that failed
            end = at["tokN"] if request["outcome"] == "ok" else end_ns
            self._attempts[request["host"]].append(_Attempt(at["routed"], end, f"#{seq}", {"request_seq": seq}))

    def _host(self, pid: int, host: str, attempts: list[_Attempt]) -> Iterator[Event]:
        yield _name("process_name", pid, 0, f"host {host}")
        row_of = rows({index: (each.begin_ns, each.end_ns) for index, each in enumerate(attempts)})
        for row in range(1 + max(row_of.values())):
            yield _name("thread_name", pid, row, f"attempts {row + 1}")
        for index, each in enumerate(attempts):
            span = self._span(each.begin_ns, each.end_ns)
            common = {"name": each.name, "cat": "attempt", "ph": "X", "pid": pid, "tid": row_of[index]}
            yield common | span | {"args": each.args}

    def _token(self, token: Mapping[str, Any]) -> Event:
        return {
            "name": token["kind"],
            "cat": "token",
            "ph": "i",
            "s": "t",
            "ts": self._us(token["t_ns"]),
            "pid": ROUTER_PID,
            "tid": self._rows[token["request_seq"]],
            "args": {"request_seq": token["request_seq"]} | {key: token[key] for key in _TOKEN_SHOWN if token[key]},
        }

    def _error(self, error: DistinctError) -> Iterator[Event]:
        times = {"first": error.first_ns} | ({"last": error.last_ns} if error.count > 1 else {})
        for which, t_ns in times.items():
            args = {"count": error.count, "which": which}
            where = {"ph": "i", "s": "g", "ts": self._us(t_ns), "pid": ROUTER_PID, "tid": 0}
            yield {"name": error.text, "cat": "error"} | where | {"args": args}

    def _slice(self, name: str, cat: str, seq: int, begin_ns: int, end_ns: int, args: Mapping[str, Any]) -> Event:
        common = {"name": name, "cat": cat, "ph": "X", "pid": ROUTER_PID, "tid": self._rows[seq]}
        return common | self._span(begin_ns, end_ns) | {"args": args}

    def _span(self, begin_ns: int, end_ns: int) -> Event:
        begin_ns, end_ns = max(begin_ns, self._origin_ns), max(end_ns, self._origin_ns)
        return {"ts": self._us(begin_ns), "dur": (end_ns - begin_ns) / 1000}

    def _us(self, t_ns: int) -> float:
        return max(0, t_ns - self._origin_ns) / 1000  # what a damaged record puts before the start is drawn there


def rows(spans: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Put spans, (begin, end) by key, into as few rows as they need so that none overlap in one; return row by key."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    row_of: dict[int, int] = {}
    for key, (begin, end) in sorted(spans.items(), key=lambda each: each[1]):
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, row))
        row_of[key] = row
    return row_of


def _name(what: str, pid: int, tid: int, name: str) -> Event:
    return {"name": what, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}
