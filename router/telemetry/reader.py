"""Reads the router's segments back as values: ids resolved to names, stamps turned into durations.

Everything here maps the segments read-only and never waits for the router. ``directory`` is always that of one
generation, ``RUN/INSTANCE/GENERATION``. Layouts: :mod:`router.telemetry.records`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntFlag
from pathlib import Path
from typing import Any, Final, Literal, Self

from ringbuffer import AppendReader, BroadcastReader, Corrupt, Header, RingError, TableReader
from router.errors import ErrorKind
from router.routing import PolicyId, Reason
from router.stamps import EARLY_WINDOW_NS, STAMPS, e2e_ns, router_overhead_ns, stages, tpot_ns, ttft_ns
from router.telemetry import records as rec

POLL_MAX: Final = 1024
"""Records taken in one poll unless told otherwise: one MiB of ``done.ring``."""


TIME_NS_MAX: Final = (1 << 63) - 1
"""No clock shows more before the year 2262: a greater time is damage. Sums and differences of two times below it can be
written as JSON and as calendar times."""
_TIMES: Final = {
    "requests": (struct.Struct("<3Q"), ("recv_ns", "body_ns", "pub_ns")),
    "done": (struct.Struct(f"<8x{len(STAMPS)}Q"), STAMPS),
    "tokens": (struct.Struct("<Q"), ("t_ns",)),
}
"""Where the times stand in the payloads of each ring; ``inflight.tab`` has those of ``done``."""

Join = Literal["latest", "oldest"] | int
"""Where a reader begins: with the next record, with the oldest one still there, or at a sequence."""


def require_slots(header: Header, path: Path, slot_size: int) -> None:
    """Raise :class:`ringbuffer.Corrupt` when the slots of a segment are smaller than its records."""
    if header.slot_size < slot_size:
        raise Corrupt(f"{path} has slots of {header.slot_size} bytes, its records have {slot_size}")


def flaw(what: str, payload: bytes) -> str | None:
    """Return what cannot be true in a payload of the ring ``what``, with value and limit; None when nothing is seen."""
    layout, names = _TIMES[what]
    times_ns = layout.unpack_from(payload)
    if max(times_ns) <= TIME_NS_MAX:
        return None
    name, t_ns = next(each for each in zip(names, times_ns, strict=True) if each[1] > TIME_NS_MAX)
    return f"{name} is {t_ns} ns, the limit is {TIME_NS_MAX}"


class Damage:
    """Counts the records that cannot be true, and keeps what is wrong with the latest."""

    def __init__(self, what: str, file: str) -> None:
        self.count = 0
        self._what = what
        self._file = file
        self._latest = ""

    def sort_out(self, records: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Yield (sequence or row, payload) of those that may be true."""
        for number, payload in records:
            found = flaw(self._what, payload)
            if found is None:
                yield number, payload
            else:
                self.count += 1
                self._latest = f"number {number}: {found}"

    @property
    def text(self) -> str:
        """What was left out, in words; empty for nothing."""
        if not self.count:
            return ""
        records = "1 damaged record is" if self.count == 1 else f"{self.count:,} damaged records are"
        return f"{self._file}: {records} left out, {self._latest}"


class Names:
    """Turns ids into the text that ``names.tab`` holds; reads on by itself when it meets an unknown id.

    Without a ``directory``, for a router whose table cannot be read, every id is ``#ID``.
    """

    def __init__(self, directory: Path | None) -> None:
        self._table = None if directory is None else _attach_names(directory / "names.tab")
        self._read_count = 0
        self._texts: dict[tuple[int, int], str] = {}
        self._refresh()

    def _refresh(self) -> None:
        if self._table is None:
            return
        rows = self._table.read_from(self._read_count)
        self._read_count += len(rows)
        for row in rows:
            kind, value_id, text = rec.decode_name(row)
            self._texts[kind, value_id] = text

    def text(self, kind: int, value_id: int) -> str:
        """Return the text of an id; empty for 0 (not given), ``#ID`` for one that is not in the table."""
        if value_id in {0, rec.OTHER_ID}:
            return rec.OTHER_VALUE if value_id else ""
        if (kind, value_id) not in self._texts:
            self._refresh()
        return self._texts.get((kind, value_id), f"#{value_id}")

    def host(self, host_id: int) -> str:
        """Return the name of a host; empty for 0, no host."""
        return self.text(rec.NAME_HOST, host_id)

    def model(self, model_id: int) -> str:
        """Return the name of a model; empty for 0, no model."""
        return self.text(rec.NAME_MODEL, model_id)

    def tags(self, tag_ids: Sequence[int]) -> dict[str, str]:
        """Return the values of the tags that were given, by the names of the tags."""
        return {
            self._tag_name(position): self.text(position, value_id)
            for position, value_id in enumerate(tag_ids)
            if value_id
        }

    def _tag_name(self, position: int) -> str:
        if position < len(rec.TAGS):
            return rec.TAGS[position]
        if position < rec.OWN_TAG_FIRST:
            return f"#{position}"  # of a newer minor version, or damage
        return self.text(rec.NAME_OWN_TAG, position - rec.OWN_TAG_FIRST + 1)

    def close(self) -> None:
        """Unmap the table."""
        if self._table is not None:
            self._table.close()


def _attach_names(path: Path) -> AppendReader:
    table = AppendReader.attach(path, record_schema=rec.RECORD_SCHEMA)
    require_slots(table.header, path, rec.NAME_ROW_BYTES)
    return table


def _flag_names(flags: IntFlag) -> list[str]:
    return [flag.name.lower() for flag in type(flags) if flag in flags and flag.name]


def _word(kind: type[Any], value: int) -> str:
    """Return the name of an enum's member in lower case; ``#VALUE`` for one of a newer minor version."""
    try:
        return str(kind(value).name).lower()
    except ValueError:
        return f"#{value}"


def resolve(record: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Replace the ids of :func:`router.telemetry.records.decode_done` by text and add the durations of DESIGN's stages.

    Durations are nanoseconds, ``None`` where they have no meaning: ``ttft_ns`` when no first token reached the client,
    ``e2e_ns`` when no last one did. ``early_tps`` is tokens per second over the two seconds after the first token, or
    over the answer when that was shorter; ``visible_2s`` counts tokens with the client two seconds after its request.
    """
    out = dict(record)
    stamps = dict(zip(STAMPS, out["stamps"], strict=True))
    out["stamps"] = stamps
    out["host"], out["model"] = names.host(out["host"]), names.model(out["model"])
    out["asked_model"] = names.model(out["asked_model"]) if out["asked_model"] else ""
    out["key"] = names.text(rec.NAME_KEY, out["key"]) if out["key"] else ""
    out["endpoint"] = _word(rec.Endpoint, out["endpoint"]) if out["endpoint"] else ""
    out["outcome"], out["phase"] = _word(rec.Outcome, out["outcome"]), _word(rec.Phase, out["phase"])
    out["cache"] = _word(rec.CacheUse, out["cache"])
    out["policy"] = _word(PolicyId, out["policy"]) if out["policy"] else ""
    out["error"] = _word(ErrorKind, out["error"])
    out["flags"] = _flag_names(rec.DoneFlag(out["flags"]))
    out["tags"] = names.tags(out.pop("tag_ids"))
    out["candidates"] = [
        {"host": names.host(host), "reason": _word(Reason, reason), "score": score}
        for host, reason, score in out["candidates"]
    ]
    out["failed_attempts"] = [
        {**attempt, "host": names.host(attempt["host"]), "error": _word(ErrorKind, attempt["error"])}
        for attempt in out["failed_attempts"]
    ]
    return out | _durations(out, stamps)


def resolve_request(record: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Replace the ids of :func:`router.telemetry.records.decode_request` by text."""
    endpoint = record["endpoint"]
    return dict(record) | {
        "model": names.model(record["model"]),
        "endpoint": _word(rec.Endpoint, endpoint) if endpoint else "",
        "stream": bool(record["stream"]),
    }


def resolve_token(record: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Replace the ids of :func:`router.telemetry.records.decode_token` by text."""
    return dict(record) | {
        "kind": _word(rec.Kind, record["kind"]),
        "flags": _flag_names(rec.TokenFlag(record["flags"])),
        "host": names.host(record["host"]),
    }


def _durations(record: Mapping[str, Any], stamps: Mapping[str, int]) -> dict[str, Any]:
    stage_ns = stages(list(stamps.values()))
    delivered, decode_ns = stamps["out1"] > 0, stage_ns["decode"]
    overhead_ns = router_overhead_ns(stage_ns)
    if "folded" in record["flags"]:
        overhead_ns -= decode_ns  # out1 = outN there: the egress stage spans the host's decoding
    early_ns = min(EARLY_WINDOW_NS, decode_ns)
    return {
        "stages_ns": stage_ns,
        "ttft_ns": ttft_ns(stage_ns) if delivered else None,
        "tpot_ns": tpot_ns(stamps["tok1"], stamps["tokN"], record["n_out"], record["n_first"]),
        "e2e_ns": e2e_ns(stage_ns) if stamps["outN"] else None,
        "router_overhead_ns": overhead_ns if delivered else None,
        "early_tps": record["early_tokens"] / (early_ns / 1e9) if early_ns else None,
        "visible_2s": record["visible_tokens"],
    }


class _RingReader:
    """Polls a lossy ring of one generation; with a ``name``, ``stats`` shows this reader's position and lag.

    Registering a name needs the right to write into ``readers/``; without it the reader works all the same, unseen
    (``registered`` false). Raises :class:`ringbuffer.RingError` when there is no ring that can be read. Records that
    cannot be true are left out and counted by ``damage``. ``names`` are those of the directory unless given.
    """

    _WHAT: str
    _SLOT_BYTES: int

    def __init__(
        self, directory: Path, join: Join = "latest", name: str | None = None, *, names: Names | None = None
    ) -> None:
        self.names = Names(directory) if names is None else names
        path, schema = directory / f"{self._WHAT}.ring", rec.RECORD_SCHEMA
        position = directory / "readers" / name if name is not None else None
        self.registered = position is not None
        try:
            self._ring = BroadcastReader.attach(path, join, position, record_schema=schema)
        except (RingError, OSError):
            if position is None:
                raise
            self.registered = False
            self._ring = BroadcastReader.attach(path, join, record_schema=schema)
        try:
            require_slots(self._ring.header, path, self._SLOT_BYTES)
        except RingError:
            self._ring.close()  # withdraws the position
            raise
        self.damage = Damage(self._WHAT, path.name)

    @property
    def position(self) -> int:
        """Sequence of the next record."""
        return self._ring.position

    @property
    def lost_count(self) -> int:
        """Records that were overwritten before this reader came to them, exactly."""
        return self._ring.lost

    @property
    def slot_count(self) -> int:
        """Records the ring can hold."""
        return self._ring.header.slot_count

    @property
    def published_count(self) -> int:
        """Records that the router has written into this ring."""
        return self._ring.position + self._ring.lag

    def close(self) -> None:
        """Unmap the segments and withdraw the position."""
        self._ring.close()
        self.names.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DoneReader(_RingReader):
    """Reads ``done.ring``: finished requests as :func:`resolve` describes them."""

    _WHAT = "done"
    _SLOT_BYTES = rec.DONE_SLOT_BYTES

    def poll(self, limit: int = POLL_MAX) -> list[dict[str, Any]]:
        """Return the next finished requests, at most ``limit``; empty when there is none. Never waits."""
        records = self.damage.sort_out(self._ring.poll(limit))
        return [resolve(rec.decode_done(payload), self.names) for _, payload in records]

    def wall_ns(self, t_ns: int) -> int:
        """Return a stamp as nanoseconds of the calendar clock (since 1970, UTC)."""
        return self._ring.header.wall_ns(t_ns)


class TokenReader(_RingReader):
    """Reads ``tokens.ring``: one dict for each event, with ``kind``, ``host`` and ``flags`` as text."""

    _WHAT = "tokens"
    _SLOT_BYTES = rec.TOKENS_SLOT_BYTES

    def poll(self, limit: int = POLL_MAX) -> list[dict[str, Any]]:
        """Return the next events, at most ``limit``; empty when there is none. Never waits."""
        records = self.damage.sort_out(self._ring.poll(limit))
        return [resolve_token(rec.decode_token(payload), self.names) for _, payload in records]


class InflightReader:
    """Reads ``inflight.tab``: what waits or runs now, or ran when the router died."""

    def __init__(self, directory: Path, names: Names | None = None) -> None:
        self._names = Names(directory) if names is None else names
        path = directory / "inflight.tab"
        self._table = TableReader.attach(path, record_schema=rec.RECORD_SCHEMA)
        require_slots(self._table.header, path, rec.DONE_SLOT_BYTES)
        self.damage = Damage("done", path.name)

    def read(self) -> list[dict[str, Any]]:
        """Return the requests in flight as :func:`resolve` describes them; what is not known yet is 0 or ``None``.

        ``damage`` counts the rows of this look that cannot be true.
        """
        self.damage.count = 0
        rows = self.damage.sort_out(self._table.rows())
        return [resolve(rec.decode_done(payload), self._names) for _, payload in rows]

    def close(self) -> None:
        """Unmap the table."""
        self._table.close()
