"""The byte layouts of every record the router writes into shared memory.

A slot is ``[sequence word u64][payload]``; the offsets below are those of the payload. All integers are
little-endian, all times ``CLOCK_MONOTONIC`` nanoseconds, 0 = did not happen.

Request record, ``requests.ring``, seven words behind the sequence word::

    w1 recv_ns   w2 body_ns   w3 pub_ns   w4 model u16 | endpoint u8 << 16 | flags u8 << 24 | connection u32 << 32
    w5 body_bytes u32 | max_tokens u32 << 32   w6 CRC-32 of the request id   w7 0

Token record, ``tokens.ring``, one per event of a host's stream and per turn of a request's life::

    w1 t_ns   w2 request_seq   w3 kind u8 | flags u8 << 8 | host u16 << 16 | choice u16 << 32 | n_tokens u16 << 48
    w4 event_index u32 | bytes u32 << 32   w5 gap_ns   w6 client_unsent_bytes   w7 0

Done record, ``done.ring``, and row of ``inflight.tab`` (the same payload while it is in the making; only the head and
the identity are filled there), 1,016 bytes::

       0  request_seq u64                          ┐
       8  15 stamps u64 (router.stamps.STAMPS)     │ head
     128  ttfc u64, ttfo u64, stall_max_ns u64     │
     152  early_tokens u32, visible_tokens u32     │
     160  outcome u8, error u8, status u16, flags  │
          u32, host u16, model u16, endpoint u8,   │
          policy u8, attempt_count u8, phase u8    ┘
     176  n_in n_out n_cached n_reasoning n_first n_events n_content n_choices, u32 each
     208  bytes_in u64, bytes_out u64
     224  max_tokens u32, temperature f32, waiting_ahead u32, tokens_saved u32
     240  left_ns u64 (the client was seen to have left), cancel_latency_ns u64
     256  prompt_ms predicted_ms queue_ms ttft_ms f32, cache_n prompt_n predicted_n u32, timing_source u32
     288  rtt_us rttvar_us min_rtt_us retrans total_retrans snd_cwnd unacked u32, tcp_valid u32
     320  4 candidates: host u16, reason u16, score f32
     352  3 failed attempts: host u16, error u8, 0 u8, status u16, 0 u16, routed conn sent hfb ended u64
     496  message, 128 bytes of UTF-8, zero padded
     624  24 tag value ids u16                     ┐
     672  user_id session_id request_id batch_id,  │ identity
          64 bytes of UTF-8 each, zero padded      │
     928  trace_id 16 bytes, span_id 8 bytes,      │
          trace_flags u64                          ┘
     960  deadline_ns u64, predicted_ttft_us u32,  ┐
          prefix_tokens u32                        │ decision (since 1.2;
     976  asked_max_tokens u32, asked_temperature  │ all 0 where nothing
          f32, key u16, asked_model u16,           │ of it was decided)
          workload u8, levers u8, tool_count u16   │
     992  cache u8, 0 u8, cache_hits u16,          │
          cache_misses u16, 0 u16, saved_us u32,   │
          tool_bytes u32, 8 bytes reserved         ┘
    1016

The decision: ``deadline_ns`` is the time by which the first token was due; ``predicted_ttft_us`` what the model of the
host foretold and ``prefix_tokens`` how much of the prompt it was thought to hold; ``asked_max_tokens`` and
``asked_temperature`` what the client had asked for where ``levers`` (:class:`Lever`) changed it, 0 and -1 where it had
said nothing; ``key`` and ``asked_model`` ids of names, the latter where another model answered than was asked for;
``workload`` the class in which it waited, 1 realtime, 2 interactive, 3 batch; ``tool_count`` and ``tool_bytes`` what
was spliced in; ``cache`` (:class:`CacheUse`) how a cache answered, ``cache_hits`` and ``cache_misses`` of how many
texts, ``saved_us`` how much sooner than a host would have.

Name record, ``names.tab``, 88 bytes: ``kind u16, value_id u16, length u16, 0 u16, text 80 bytes``. ``kind`` is the
position of the tag in :data:`TAGS`, or :data:`NAME_HOST`, :data:`NAME_MODEL`, :data:`NAME_OWN_TAG` (the name of one of
the user's own tags), :data:`NAME_KEY`.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag
from typing import Any, Final

from router.stamps import STAMPS

RECORD_SCHEMA: Final = (1, 2)
"""(major, minor) of every payload here. A reader refuses another major and tolerates a higher minor."""

TOKENS_SLOT_BYTES: Final = 64
DONE_SLOT_BYTES: Final = 1024
DONE_PAYLOAD_BYTES: Final = DONE_SLOT_BYTES - 8
NAME_ROW_BYTES: Final = 96
NAME_TEXT_BYTES: Final = 80
TEXT_BYTES: Final = 64
"""Longest value of a free-text tag, in bytes of UTF-8; a longer one is cut and counted."""
MESSAGE_BYTES: Final = 128
CANDIDATE_COUNT: Final = 4
FAILED_ATTEMPT_COUNT: Final = 3

TAGS: Final = (
    "feature_name",
    "prompt_version",
    "model_name",
    "dataset_id",
    "channel",
    "device_type",
    "network_type",
    "workload_class",
    "node_id",
    "realtime",
    "experiment",
    "variant",
)
"""Tags whose values are interned into ids, by position; positions 16 to 23 are the user's own eight."""
OWN_CLASSES: Final = frozenset({"cache", "tools", "warm"})
"""Values of the tag ``workload_class`` of requests that routers make themselves: nobody waits for them, so they are in
no metric of what users saw (docs/caches.md)."""
TEXT_TAGS: Final = ("user_id", "session_id", "request_id", "batch_id")
"""Tags kept as text, never interned: their values are without bound."""
OWN_TAG_FIRST: Final = 16
OWN_TAG_COUNT: Final = 8
TAG_SLOT_COUNT: Final = OWN_TAG_FIRST + OWN_TAG_COUNT
VALUES_PER_TAG_MAX: Final = 4096
"""Distinct values kept per tag; later ones share the id of :data:`OTHER_VALUE`."""
OTHER_VALUE: Final = "__other__"
OTHER_ID: Final = 0xFFFF
"""The value id behind which everything over the bound is folded. 0 = the tag was not given."""

NAME_HOST: Final = 0x100
NAME_MODEL: Final = 0x101
NAME_OWN_TAG: Final = 0x102
NAME_KEY: Final = 0x103

assert len(TAGS) <= OWN_TAG_FIRST


class Kind(IntEnum):
    """What a token record tells."""

    OPEN = 1
    """The loop took the request off the ring."""
    DISPATCHED = 2
    """It was written to a host."""
    HEAD = 3
    """A host event without content: role-only, an empty delta, prefill progress."""
    TEXT = 4
    REASONING = 5
    TOOL_CALL = 6
    FINISH = 7
    """A host event with a finish_reason and no content."""
    USAGE = 8
    KEEPALIVE = 9
    """An SSE comment of the host."""
    ERROR = 10
    ATTEMPT_FAILED = 11
    CANCEL = 12
    BLOCKED = 13
    """The client's socket stopped taking bytes."""
    DRAINED = 14
    DONE = 15
    """The request ended; exactly one for each request."""
    SENTINEL = 16
    """The host's ``data: [DONE]``."""


class TokenFlag(IntFlag):
    """Flags of a token record."""

    HOST_EVENT = 1
    """The record mirrors an event of the host's stream; every such event has exactly one record."""
    FINISH = 2
    """The event also carries a finish_reason."""
    USAGE = 4
    """The event also carries usage."""
    REMOVED = 8
    """The event was not asked for by the client and not sent to it."""


class Endpoint(IntEnum):
    """Which API was called."""

    CHAT = 1
    COMPLETION = 2
    EMBEDDINGS = 3
    RESPONSES = 4
    MESSAGES = 5
    """Anthropic's messages."""
    RERANK = 6
    """Reranking and scoring."""
    TOKENIZE = 7
    """Tokens of a text, texts of tokens, counts of tokens."""
    OTHER = 8
    """Any other path that passes through."""


class Phase(IntEnum):
    """Where a request in ``inflight.tab`` is."""

    NONE = 0
    WAITING = 1
    CONNECTING = 2
    PREFILL = 3
    DECODE = 4
    DONE = 5


class Outcome(IntEnum):
    """How a request ended."""

    NONE = 0
    OK = 1
    REJECTED = 2
    """Refused before a host was asked: no room, no healthy host, a deadline."""
    HOST_ERROR = 3
    """Every attempt failed, or the stream broke."""
    CLIENT_GONE = 4
    CLIENT_STALLED = 5
    TIMEOUT = 6
    BAD_REQUEST = 7
    """The host answered with a 4xx."""
    ABORTED = 8
    """The router was stopped."""


class DoneFlag(IntFlag):
    """Flags of a done record."""

    STREAM = 1
    """The client was answered by a stream."""
    FOLDED = 2
    """A stream of the host was folded into a plain answer; ``out1 = outN``."""
    N_OUT_ESTIMATED = 4
    """No usage was reported: ``n_out`` is the number of content events."""
    HEARTBEAT = 8
    """The router committed its own head and a comment before the host's first content."""
    USAGE_ADDED = 16
    """``stream_options.include_usage`` was added by the router."""
    CALLS_TOOLS = 32
    """A whole answer ended in calls of tools; of a stream ``tokens.ring`` tells."""


class Lever(IntFlag):
    """What the router changed of a request."""

    MAX_TOKENS = 1
    TEMPERATURE = 2
    MODEL = 4


class CacheUse(IntEnum):
    """How a cache took part in an answer."""

    NONE = 0
    HIT = 1
    """All of the answer came from it."""
    PARTIAL = 2
    MISS = 3
    """It was looked at, and all came from a host."""


# ---------------------------------------------------------------- done record
_FIELDS: Final = (
    ("request_seq", "Q", 1),
    ("stamps", "Q", len(STAMPS)),
    ("ttfc_ns", "Q", 1),
    ("ttfo_ns", "Q", 1),
    ("stall_max_ns", "Q", 1),
    ("early_tokens", "I", 1),
    ("visible_tokens", "I", 1),
    ("outcome", "B", 1),
    ("error", "B", 1),
    ("status", "H", 1),
    ("flags", "I", 1),
    ("host", "H", 1),
    ("model", "H", 1),
    ("endpoint", "B", 1),
    ("policy", "B", 1),
    ("attempt_count", "B", 1),
    ("phase", "B", 1),
)
_REST_FIELDS: Final = (
    ("n_in", "I", 1),
    ("n_out", "I", 1),
    ("n_cached", "I", 1),
    ("n_reasoning", "I", 1),
    ("n_first", "I", 1),
    ("n_events", "I", 1),
    ("n_content", "I", 1),
    ("n_choices", "I", 1),
    ("bytes_in", "Q", 1),
    ("bytes_out", "Q", 1),
    ("max_tokens", "I", 1),
    ("temperature", "f", 1),
    ("waiting_ahead", "I", 1),
    ("tokens_saved", "I", 1),
    ("left_ns", "Q", 1),
    ("cancel_latency_ns", "Q", 1),
    ("prompt_ms", "f", 1),
    ("predicted_ms", "f", 1),
    ("queue_ms", "f", 1),
    ("host_ttft_ms", "f", 1),
    ("cache_n", "I", 1),
    ("prompt_n", "I", 1),
    ("predicted_n", "I", 1),
    ("timing_source", "I", 1),
    ("rtt_us", "I", 1),
    ("rttvar_us", "I", 1),
    ("min_rtt_us", "I", 1),
    ("retrans", "I", 1),
    ("total_retrans", "I", 1),
    ("snd_cwnd", "I", 1),
    ("unacked", "I", 1),
    ("tcp_valid", "I", 1),
)
DECISION_FIELDS: Final = (
    ("deadline_ns", "Q", 1),
    ("predicted_ttft_us", "I", 1),
    ("prefix_tokens", "I", 1),
    ("asked_max_tokens", "I", 1),
    ("asked_temperature", "f", 1),
    ("key", "H", 1),
    ("asked_model", "H", 1),
    ("workload", "B", 1),
    ("levers", "B", 1),
    ("tool_count", "H", 1),
    ("cache", "Bx", 1),
    ("cache_hits", "H", 1),
    ("cache_misses", "Hxx", 1),
    ("saved_us", "I", 1),
    ("tool_bytes", "I", 1),
)
_IDENTITY_TEXTS: Final = TEXT_TAGS


def _format(fields: tuple[tuple[str, str, int], ...]) -> str:
    return "<" + "".join(f"{count}{code}" if count > 1 else code for _, code, count in fields)


HEAD: Final = struct.Struct(_format(_FIELDS))
"""The fields from ``request_seq`` to ``phase``; also the changing part of an in-flight row."""
REST: Final = struct.Struct(_format(_REST_FIELDS))
CANDIDATES: Final = struct.Struct("<" + "HHf" * CANDIDATE_COUNT)
FAILED_ATTEMPT: Final = struct.Struct("<HBxHxxQQQQQ")
MESSAGE: Final = struct.Struct(f"<{MESSAGE_BYTES}s")
IDENTITY: Final = struct.Struct(f"<{TAG_SLOT_COUNT}H{TEXT_BYTES}s{TEXT_BYTES}s{TEXT_BYTES}s{TEXT_BYTES}s16s8sQ")
DECISION: Final = struct.Struct(f"{_format(DECISION_FIELDS)}8x")

REST_OFFSET: Final = HEAD.size
CANDIDATES_OFFSET: Final = REST_OFFSET + REST.size
ATTEMPTS_OFFSET: Final = CANDIDATES_OFFSET + CANDIDATES.size
MESSAGE_OFFSET: Final = ATTEMPTS_OFFSET + FAILED_ATTEMPT_COUNT * FAILED_ATTEMPT.size
IDENTITY_OFFSET: Final = MESSAGE_OFFSET + MESSAGE.size
DECISION_OFFSET: Final = IDENTITY_OFFSET + IDENTITY.size

assert HEAD.size == 176
assert CANDIDATES_OFFSET == 320
assert ATTEMPTS_OFFSET == 352
assert MESSAGE_OFFSET == 496
assert IDENTITY_OFFSET == 624
assert DECISION_OFFSET == 960
assert DECISION_OFFSET + DECISION.size == DONE_PAYLOAD_BYTES

TOKENS: Final = struct.Struct("<5I")
"""``n_in`` to ``n_first``."""
HOST_TIMES: Final = struct.Struct("<4f4I")
"""``prompt_ms`` to ``timing_source``."""


def _sources(form: struct.Struct, offset: int, names: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return for each field of a layout the attribute that it is taken from, its code and its offset."""
    codes: list[str] = []
    for count, code in _CODES.findall(form.format):
        codes += [f"{count}s"] if code == "s" else [code] * int(count or 1)
    sources = []
    for name, code in zip(names, codes, strict=True):
        sources.append((name, code, offset))
        offset += struct.calcsize("<" + code)
    return sources


_CODES: Final = re.compile(r"([0-9]*)([A-Za-z])")
_HEAD_SOURCE: Final = _sources(HEAD, 0, (
    "seq",
    "recv", "body_ns", "pub", "deq", "admitted", "routed1", "routed", "conn_ns", "sent_ns", "hfb",
    "tok1", "out1", "tok_n", "out_n", "done_ns",
    "ttfc", "ttfo", "stall_max_ns", "early_tokens", "visible_tokens",
    "outcome", "error", "status", "flags", "host", "model_id", "endpoint", "policy", "attempt_count", "phase",
))  # fmt: skip
_REST_SOURCE: Final = _sources(
    struct.Struct(f"<{TOKENS.size}s3I2QIfII2Q{HOST_TIMES.size}s32s"), REST_OFFSET, (
    "packed_tokens", "event_index", "content_count", "choice_count", "body_bytes", "bytes_out",
    "max_tokens", "temperature", "waiting_ahead", "tokens_saved", "left_ns", "cancel_latency_ns",
    "packed_times", "packed_tcp",
))  # fmt: skip
_IDENTITY_SOURCE: Final = ("identity", f"{IDENTITY.size}s", IDENTITY_OFFSET)
INFLIGHT_SOURCE: Final = [*_HEAD_SOURCE, _IDENTITY_SOURCE]
"""Of which attribute of a request each field of its in-flight row is, as :mod:`router.telemetry.packing` takes it."""
DONE_SOURCE: Final = [
    *_HEAD_SOURCE,
    *_REST_SOURCE,
    ("packed_candidates", f"{CANDIDATES.size}s", CANDIDATES_OFFSET),
    ("packed_attempts", f"{FAILED_ATTEMPT_COUNT * FAILED_ATTEMPT.size}s", ATTEMPTS_OFFSET),
    ("packed_message", f"{MESSAGE_BYTES}s", MESSAGE_OFFSET),
    _IDENTITY_SOURCE,
    ("packed_decision", f"{DECISION.size}s", DECISION_OFFSET),
]
"""Likewise of its done record."""
assert _REST_SOURCE[-1][2] + 32 == CANDIDATES_OFFSET

NAME: Final = struct.Struct(f"<HHHxx{NAME_TEXT_BYTES}s")
assert NAME.size == NAME_ROW_BYTES - 8


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _unpack_fields(
    layout: struct.Struct, fields: tuple[tuple[str, str, int], ...], payload: bytes, at: int
) -> dict[str, Any]:
    values = layout.unpack_from(payload, at)
    out: dict[str, Any] = {}
    position = 0
    for name, _, count in fields:
        out[name] = values[position] if count == 1 else values[position : position + count]
        position += count
    return out


def decode_done(payload: bytes) -> dict[str, Any]:
    """Decode a payload of ``done.ring`` or ``inflight.tab`` into plain values; ids are not resolved to names.

    ``stamps`` is a tuple in the order of :data:`router.stamps.STAMPS`, ``candidates`` a list of
    ``(host, reason, score)`` and ``failed_attempts`` a list of dicts, both without unused places.
    """
    out = _unpack_fields(HEAD, _FIELDS, payload, 0)
    out.update(_unpack_fields(REST, _REST_FIELDS, payload, REST_OFFSET))
    flat = CANDIDATES.unpack_from(payload, CANDIDATES_OFFSET)
    out["candidates"] = [flat[i : i + 3] for i in range(0, len(flat), 3) if flat[i + 1]]
    out["failed_attempts"] = _failed_attempts(payload)
    out["message"] = _text(MESSAGE.unpack_from(payload, MESSAGE_OFFSET)[0])
    identity = IDENTITY.unpack_from(payload, IDENTITY_OFFSET)
    out["tag_ids"] = identity[:TAG_SLOT_COUNT]
    for name, raw in zip(_IDENTITY_TEXTS, identity[TAG_SLOT_COUNT:], strict=False):
        out[name] = _text(raw)
    trace_id, span_id, trace_flags = identity[TAG_SLOT_COUNT + len(_IDENTITY_TEXTS) :]
    out["trace_id"], out["span_id"], out["trace_flags"] = trace_id.hex(), span_id.hex(), trace_flags
    out.update(_unpack_fields(DECISION, DECISION_FIELDS, payload, DECISION_OFFSET))
    return out


def _failed_attempts(payload: bytes) -> list[dict[str, int]]:
    names = ("host", "error", "status", "routed", "conn", "sent", "hfb", "ended")
    out = []
    for index in range(FAILED_ATTEMPT_COUNT):
        values = FAILED_ATTEMPT.unpack_from(payload, ATTEMPTS_OFFSET + index * FAILED_ATTEMPT.size)
        if values[1]:
            out.append(dict(zip(names, values, strict=True)))
    return out


def decode_request(payload: bytes) -> dict[str, int]:
    """Decode the 56-byte payload of a slot of ``requests.ring``."""
    recv_ns, body_ns, pub_ns, w4, w5, id_crc, _ = struct.unpack_from("<7Q", payload)
    return {
        "recv_ns": recv_ns,
        "body_ns": body_ns,
        "pub_ns": pub_ns,
        "model": w4 & 0xFFFF,
        "endpoint": w4 >> 16 & 0xFF,
        "stream": w4 >> 24 & 1,
        "connection": w4 >> 32,
        "body_bytes": w5 & 0xFFFFFFFF,
        "max_tokens": w5 >> 32,
        "request_id_crc32": id_crc,
    }


def decode_token(payload: bytes) -> dict[str, int]:
    """Decode the 56-byte payload of a slot of ``tokens.ring``."""
    t_ns, request_seq, w3, w4, gap_ns, unsent, _ = struct.unpack_from("<7Q", payload)
    return {
        "t_ns": t_ns,
        "request_seq": request_seq,
        "kind": w3 & 0xFF,
        "flags": w3 >> 8 & 0xFF,
        "host": w3 >> 16 & 0xFFFF,
        "choice": w3 >> 32 & 0xFFFF,
        "n_tokens": w3 >> 48,
        "event_index": w4 & 0xFFFFFFFF,
        "bytes": w4 >> 32,
        "gap_ns": gap_ns,
        "client_unsent_bytes": unsent,
    }


def decode_name(payload: bytes) -> tuple[int, int, str]:
    """Decode a row of ``names.tab`` into ``(kind, value_id, text)``."""
    kind, value_id, length, raw = NAME.unpack_from(payload)
    return kind, value_id, raw[:length].decode("utf-8", "replace")
