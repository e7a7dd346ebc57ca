"""The record layouts: what is packed comes back, and unused places stay out of sight."""

from __future__ import annotations

import struct

import pytest
from done_records import payload

from router.stamps import STAMPS
from router.telemetry import records as rec


def test_a_done_record_comes_back_as_it_was_packed() -> None:
    raw = payload(
        request_seq=7,
        stamps=tuple(range(1, len(STAMPS) + 1)),
        outcome=rec.Outcome.TIMEOUT,
        status=504,
        host=3,
        n_out=100,
        temperature=0.5,
        message="too late",
        request_id="abc",
        tag_ids={0: 5, 23: 6},
        trace_id=bytes(range(16)),
        deadline_ns=11,
        levers=rec.Lever.MAX_TOKENS,
        asked_temperature=1.5,
        cache=rec.CacheUse.PARTIAL,
        cache_misses=12,
        tool_bytes=13,
    )
    assert len(raw) == rec.DONE_PAYLOAD_BYTES
    done = rec.decode_done(raw)
    assert done["request_seq"] == 7
    assert done["stamps"] == tuple(range(1, len(STAMPS) + 1))
    assert (done["outcome"], done["status"], done["host"], done["n_out"]) == (rec.Outcome.TIMEOUT, 504, 3, 100)
    assert (done["temperature"], done["message"], done["request_id"]) == (0.5, "too late", "abc")
    assert done["tag_ids"][0] == 5
    assert done["tag_ids"][23] == 6
    assert done["trace_id"] == bytes(range(16)).hex()
    assert (done["deadline_ns"], done["levers"], done["asked_temperature"]) == (11, rec.Lever.MAX_TOKENS, 1.5)
    assert (done["cache"], done["cache_hits"], done["cache_misses"], done["saved_us"]) == (2, 0, 12, 0)
    assert done["tool_bytes"] == 13


def test_unused_places_of_candidates_and_attempts_are_left_out() -> None:
    done = rec.decode_done(payload(candidates=[(1, 1, 0.25)], failed_attempts=[(2, 13, 0, 1, 2, 3, 4, 5)]))
    assert done["candidates"] == [(1, 1, 0.25)]
    names = ("host", "error", "status", "routed", "conn", "sent", "hfb", "ended")
    assert done["failed_attempts"] == [dict(zip(names, (2, 13, 0, 1, 2, 3, 4, 5), strict=True))]
    empty = rec.decode_done(payload())
    assert empty["candidates"] == []
    assert empty["failed_attempts"] == []


def test_an_in_flight_row_has_head_and_identity_and_zeros_between() -> None:
    whole = payload(request_seq=9, phase=rec.Phase.PREFILL, request_id="r", n_out=5)
    row = whole[: rec.REST_OFFSET] + bytes(rec.IDENTITY_OFFSET - rec.REST_OFFSET) + whole[rec.IDENTITY_OFFSET :]
    assert len(row) == rec.DONE_PAYLOAD_BYTES
    shown = rec.decode_done(row)
    assert (shown["request_seq"], shown["phase"], shown["request_id"]) == (9, rec.Phase.PREFILL, "r")
    assert shown["n_out"] == 0


def test_text_that_is_no_utf8_is_shown_not_refused() -> None:
    raw = bytearray(payload())
    raw[rec.MESSAGE_OFFSET : rec.MESSAGE_OFFSET + 1] = b"\xff"
    assert rec.decode_done(bytes(raw))["message"] == "\ufffd"


@pytest.mark.parametrize("n_tokens", [0, 1, 0xFFFF])
def test_every_field_of_a_token_record_has_its_own_bits(n_tokens: int) -> None:
    w3 = rec.Kind.TEXT | 0xFF << 8 | 0xFFFE << 16 | 0xFFFD << 32 | n_tokens << 48
    raw = struct.pack("<7Q", 1, 2, w3, 0xFFFFFFFF | 0xFFFFFFFE << 32, 5, 6, 0)
    assert rec.decode_token(raw) == {
        "t_ns": 1,
        "request_seq": 2,
        "kind": rec.Kind.TEXT,
        "flags": 0xFF,
        "host": 0xFFFE,
        "choice": 0xFFFD,
        "n_tokens": n_tokens,
        "event_index": 0xFFFFFFFF,
        "bytes": 0xFFFFFFFE,
        "gap_ns": 5,
        "client_unsent_bytes": 6,
    }


def test_a_name_keeps_every_byte_of_its_text() -> None:
    text = "é" * (rec.NAME_TEXT_BYTES // 2)
    raw = rec.NAME.pack(rec.NAME_MODEL, 4096, len(text.encode()), text.encode())
    assert rec.decode_name(raw) == (rec.NAME_MODEL, 4096, text)
