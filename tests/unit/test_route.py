"""What a head says of its request, and that nothing kept with a head keeps it alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from router.http1 import Head, parse_request_head
from router.ingress.route import Route
from router.telemetry.records import Endpoint


def head_of(method: bytes, target: bytes, *lines: bytes) -> Head:
    return parse_request_head(b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), b"host: a", *lines, b"", b""]))


@pytest.mark.parametrize(
    ("method", "target", "endpoint"),
    [
        (b"POST", b"/v1/chat/completions", Endpoint.CHAT),
        (b"POST", b"/v1/chat/completions?a=b", Endpoint.CHAT),
        (b"POST", b"/v1/embeddings", Endpoint.EMBEDDINGS),
        (b"GET", b"/v1/chat/completions", None),
        (b"POST", b"/v1/chat/completion", None),
    ],
)
def test_the_endpoint_is_that_of_method_and_path(method: bytes, target: bytes, endpoint: Endpoint | None) -> None:
    route = Route(head_of(method, target))
    assert route.endpoint is endpoint
    assert route.path == target.partition(b"?")[0]


@pytest.mark.parametrize(
    ("given", "used"),
    [(b"abc-1", "abc-1"), (b"x" * 128, "x" * 128), (b"x" * 129, ""), (b"\xc3\xa9", ""), (b"a\tb", "")],
)
def test_only_a_usable_request_id_is_taken(given: bytes, used: str) -> None:
    assert Route(head_of(b"POST", b"/", b"x-request-id: " + given)).request_id == used


def test_a_head_that_nobody_holds_is_gone_at_once() -> None:
    class Watched(Head):
        __slots__ = ("__weakref__",)

    head = Watched()
    head.url, head.method = b"/v1/chat/completions", b"POST"
    head.route = Route(head)
    watched = weakref.ref(head)
    gc.disable()
    try:
        del head
        assert watched() is None, "not a matter for the garbage collector"
    finally:
        gc.enable()
