"""Requests like earlier ones, which native code takes: which those are, and what stands in where there is none.

A shape is all of a request but its length, its messages and the id that the router gives it. What a request of it comes
to is known where that depends on nothing else: it gives no id and no trace, no class, deadline or host; it has no key;
and its model has no rules. All of these are decided about anew when the configuration changes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from router import native
from router.ingress.submission import RequestIds, id_prefix, record_words
from router.messages import shared_messages
from router.mould import slot_names
from router.request import Request, new_request
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from router.http1 import Head
    from router.ingress.http import ClientConnection
    from router.ingress.server import HttpServer
    from router.loop import Loop

_LENGTH: Final = re.compile(rb"\r\n(?i:content-length): ([0-9]{1,15})\r\n")
_HEAD_BYTES_MAX: Final = 2048
"""Of a head in a shape; 64 of them are kept at most."""
_OTHER_EACH_TIME: Final = (b"date", b"traceparent", b"x-request-id")


class NoIntake:
    """Knows no shape. As ``router._intake.Intake``, which is described there."""

    def __init__(self) -> None:
        self.next_id = RequestIds().next

    def take(self, connection: ClientConnection, data: bytes) -> bool:  # noqa: ARG002
        """Return false: no request is of a known shape."""
        return False

    def may_learn(self) -> bool:
        """Return false."""
        return False

    def forget(self, head_bytes_max: int, body_bytes_max: int) -> None:
        """Do nothing."""


def make_intake(loop: Loop, probe: ClientConnection) -> Any:
    """Return what takes requests of known shapes; ``probe`` is a connection that nobody else has."""
    if native.intake is None:
        return NoIntake()
    slots = tuple(slot_names(Request))
    add, json = loop.counters.add, native.scan.json
    return native.intake.Intake(
        probe, new_request(), slots, loop, loop.by_name, add, int(Counter.REQUESTS), json, id_prefix()
    )


def learn(server: HttpServer, connection: ClientConnection, head: Head, data: bytes, end: int) -> None:
    """Have requests like this one taken as it was, if what they come to is known; ``data`` has all of it, its head up
    to ``end``.

    It is the loop's by now, which may have changed it. So the pattern is made anew.
    """
    route, request = head.route, connection.request
    if request is None or not route.is_plain or route.is_special:
        return
    body = data[end:]
    messages = shared_messages(request.fields, body)
    length = _LENGTH.search(data, 0, end)
    if messages is None or length is None or end > _HEAD_BYTES_MAX or any(n in head.headers for n in _OTHER_EACH_TIME):
        return
    fields = request.fields
    model = server.loop.by_name.get(fields.model)
    if model is None or model.has_rules:
        return
    begin, messages_end = messages
    pattern = server.make(connection, head, route.endpoint, body)
    asks_hosts = not pattern.stream and model.config.fold == "auto" and not fields.logprobs
    pattern.egress, pattern.body, pattern.recv, pattern.body_ns, pattern.request_id = None, b"", 0, 0, ""  # type: ignore[assignment]
    word4, word5 = record_words(pattern, 0)
    server.intake.learn(
        pattern, model, fields.model, data[: length.start(1)], data[length.end(1) : end + begin],
        data[end + messages_end :], end - length.end(1), not head.keep_alive, head.minor > 0, asks_hosts, word4, word5,
    )  # fmt: skip
