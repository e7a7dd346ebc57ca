"""What ``server-timing`` tells of a request: both ways alike, and what each stage is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ingress.heads import plain_server_timing, server_timing
from router.request import new_request

STAMPS = ("recv", "deq", "admitted", "routed", "conn_ns", "sent_ns", "hfb", "tok1", "tok_n")
BACKENDS = [plain_server_timing, *([server_timing] if server_timing is not plain_server_timing else [])]


@given(stamps=st.tuples(*[st.just(0) | st.integers(0, 1 << 62)] * len(STAMPS)))
def test_both_tell_the_same(stamps: tuple[int, ...]) -> None:
    request, other = new_request(), SimpleNamespace()
    for name, value in zip(STAMPS, stamps, strict=True):
        setattr(request, name, value)
        setattr(other, name, value)
    assert server_timing(request) == plain_server_timing(request)
    assert server_timing(other) == plain_server_timing(request)  # type: ignore[arg-type]


@pytest.mark.parametrize("show", BACKENDS)
def test_each_stage_in_milliseconds(show: Any) -> None:
    request = new_request()
    request.recv, request.deq, request.admitted, request.routed = 1_000, 2_499, 2_002_499, 2_002_499
    assert show(request) == b"ingress;dur=0.001, queue;dur=2.000, route;dur=0.000"
    request.conn_ns, request.sent_ns, request.hfb = 3_000_000, 4_000_000, 12_345_678
    assert show(request).endswith(b", connect;dur=0.998, host;dur=8.346")
    request.sent_ns, request.tok1 = 0, 1_003_000_000
    assert show(request).endswith(b", host;dur=1000.000")


@pytest.mark.parametrize("show", BACKENDS)
def test_what_is_no_time_is_an_error(show: Any) -> None:
    request = new_request()
    request.recv = "now"  # type: ignore[assignment]
    request.deq = 5
    with pytest.raises(TypeError):
        show(request)
    with pytest.raises(AttributeError):
        show(object())
