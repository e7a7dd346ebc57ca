"""What a host is told of the trace that its work is part of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from router.ingress.submission import trace_headers
from router.telemetry import trace_ids
from router.telemetry.tags import TagReader
from router.tracing import Tracer

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LIFE = trace_ids.life_of("main", 77)
SPAN = trace_ids.attempt_span_id(LIFE, 5, 1234).hex()


def request(headers: dict[bytes, bytes] | None = None, **given: Any) -> Any:
    lines = trace_headers(headers) if headers else b""
    return SimpleNamespace(**({"seq": 5, "routed": 1234, "trace_headers": lines} | given))


def lines(headers: dict[bytes, bytes] | None = None, ratio: float = 1.0, **given: Any) -> list[str]:
    text = Tracer("main", 77, ratio).lines(request(headers, **given)).decode()
    assert text.endswith("\r\n")
    return text.split("\r\n")[:-1]


@pytest.mark.parametrize("flags", ["00", "01", "03"])
def test_the_trace_and_its_flags_are_the_callers_and_the_span_is_the_attempts(flags: str) -> None:
    given = {b"traceparent": f"00-{TRACE}-{CALLER}-{flags}".encode(), b"tracestate": b"a=b,c=d"}
    assert lines(given, ratio=0.0) == [f"traceparent: 00-{TRACE}-{SPAN}-{flags}", "tracestate: a=b,c=d"]


def test_a_later_version_of_the_header_is_understood_as_far_as_it_is_known() -> None:
    given = {b"traceparent": f"cc-{TRACE}-{CALLER}-01-more".encode()}
    assert lines(given) == [f"traceparent: 00-{TRACE}-{SPAN}-01"]


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{CALLER}-1",
        f"00-{TRACE}-{CALLER}-01-more",
        f"ff-{TRACE}-{CALLER}-01",
        "0" * 600,
    ],
)
def test_what_is_no_traceparent_is_not_passed_on(traceparent: str) -> None:
    own = trace_ids.trace_id(LIFE, 5).hex()
    assert lines({b"traceparent": traceparent.encode(), b"tracestate": b"a=b"}) == [f"traceparent: 00-{own}-{SPAN}-01"]


@pytest.mark.parametrize("version", ["00", "01", "cc", "ff"])
@pytest.mark.parametrize("more", ["", "-", "-more"])
def test_a_record_and_a_host_are_told_of_the_same_callers(version: str, more: str) -> None:
    header = f"{version}-{TRACE}-{CALLER}-01{more}".encode()
    tags = TagReader(()).read({b"traceparent": header}, "m", "r", None, None)
    assert (tags.trace[0].hex() == TRACE) is (TRACE in lines({b"traceparent": header})[0])


def test_a_trace_of_its_own_is_flagged_as_sampled_for_a_share_of_all() -> None:
    flags = [lines(ratio=0.3, seq=seq)[0][-2:] for seq in range(1000)]
    assert set(flags) == {"00", "01"}
    assert 250 <= flags.count("01") <= 350
    for seq, flag in enumerate(flags):
        assert (flag == "01") is trace_ids.is_within(trace_ids.trace_id(LIFE, seq), 0.3), "as the observer decides"


def test_attempts_differ() -> None:
    assert lines(routed=1)[0] != lines(routed=2)[0]
