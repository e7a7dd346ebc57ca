"""What the head of an HTTP request says of the request, whatever its body: made once for heads that repeat; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.ingress.pinning import PIN_HEADER
from router.ingress.submission import trace_headers
from router.ingress.wishes import read_wishes
from router.telemetry.records import Endpoint

if TYPE_CHECKING:
    from router.errors import RequestError
    from router.http1 import Head
    from router.keys.account import Account

_REQUEST_ID_BYTES_MAX: Final = 128
_API: Final = {
    b"/v1/chat/completions": Endpoint.CHAT,
    b"/v1/completions": Endpoint.COMPLETION,
    b"/v1/embeddings": Endpoint.EMBEDDINGS,
}


class Route:
    """Holds no head: each would keep the other alive until the garbage collector comes.

    ``path`` is without its query. ``endpoint`` is set for a request that any host can take, ``None`` for whatever
    else the path and the method may mean. ``request_id`` is the client's own, empty if it gave none that is usable;
    ``host`` is the one that it wants to be answered by, empty for any. ``has_features``: features are configured.
    """

    __slots__ = (
        "account", "body_refusal", "endpoint", "has_key", "host", "identities", "is_plain", "is_special", "path",
        "refusal", "request_id", "timing_asked", "trace_headers", "wishes",
    )  # fmt: skip

    def __init__(self, head: Head, *, has_features: bool = False) -> None:
        headers = head.headers
        self.path = head.url.partition(b"?")[0]
        self.endpoint = _API.get(self.path) if head.method == b"POST" else None
        self.request_id = _usable(headers.get(b"x-request-id", b""))
        self.timing_asked = headers.get(b"x-ringrouter-timing") == b"1"
        self.trace_headers = trace_headers(headers) if b"traceparent" in headers else b""
        self.host = headers[PIN_HEADER].decode("utf-8", "replace") if PIN_HEADER in headers else ""
        self.is_special = bool(self.host)
        """Whether more is to be done for its requests than for most: they have a key, or ask for a host."""
        self.account: Account | None = None
        """The :class:`router.keys.account.Account` of its key."""
        self.has_key = False
        """Whether it shows a key, be it one that is known or not."""
        self.refusal: RequestError | None = None
        """Why no request with this head is served."""
        self.body_refusal: RequestError | None = None
        """Why none is that has a body: what is open to all has none."""
        self.wishes = read_wishes(headers, has_features=has_features)
        says_more = self.request_id or self.trace_headers or self.host or self.wishes is not None
        self.is_plain = self.endpoint is not None and not says_more
        """Whether it says nothing of its own of how its requests are to be served, be it that they have a key."""
        self.identities: dict[str, tuple[bytes, bytes]] = {}
        """By model: what stands before and behind the request's id in the identity of its records."""


def takes_post(path: bytes) -> bool:
    """Return whether requests to a path go to hosts, of those that every host has."""
    return path in _API


def _usable(request_id: bytes) -> str:
    if request_id and len(request_id) <= _REQUEST_ID_BYTES_MAX and request_id.isascii():
        text = request_id.decode("ascii")
        return text if text.isprintable() else ""
    return ""
