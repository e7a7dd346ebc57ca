"""What both ways of waiting share: a session, its sockets, and the streams that were thrown away."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic_ns

from router.client import endpoint
from router.client.exchange import Exchange, Phase
from router.client.identity import Identity
from router.client.protocol import Request, with_key
from router.client.session import Session
from router.client.wire import Link, Wire


class Channel:
    """The connections of one client. The subclasses add waiting."""

    def __init__(self, endpoints: Sequence[str], connect_timeout_s: float, identity: Identity) -> None:
        if not connect_timeout_s > 0:
            raise ValueError(f"connect_timeout_s = {connect_timeout_s}: expected more than 0 seconds")
        self.endpoints = tuple(endpoint.check(each) for each in endpoints or (endpoint.default_endpoint(),))
        self.same_clock = all(map(endpoint.same_clock, self.endpoints))
        self.session = Session(self.endpoints, round(connect_timeout_s * 1e9), monotonic_ns(), endpoint.describe)
        self.wire = Wire(self.session, self.endpoints, self.opened, self.closing, identity.curve)
        self._key = identity.key
        self.is_closed = False
        self._abandoned: deque[Exchange] = deque()

    def submit(self, request: Request) -> Exchange:
        """Begin a request, with the key of this client."""
        keyed = with_key(request, self._key) if self._key else request
        return self.session.submit(keyed, monotonic_ns())

    def opened(self, link: Link) -> None:
        """Begin to wait for a socket."""
        raise NotImplementedError

    def closing(self, link: Link) -> None:
        """Wait for a socket no longer."""
        raise NotImplementedError

    def taken(self, exchange: Exchange, count: int) -> None:
        """Note that the user has read so many events."""
        if self.session.taken(exchange, count):
            self.send()

    def leave(self, exchange: Exchange) -> None:
        """End a request for which nobody waits any more."""
        if not self.is_closed:
            self.session.cancel(exchange)
            self.send()

    def abandon(self, exchange: Exchange) -> None:
        """Take note of a request whose stream was thrown away, from wherever the garbage collector is at work."""
        if exchange.phase is not Phase.ENDED or exchange.buffered:
            self._abandoned.append(exchange)

    def reap(self) -> None:
        """End the requests whose streams were thrown away."""
        while self._abandoned:
            self.session.cancel(self._abandoned.popleft())

    def send(self) -> None:
        """Send what there is for the routers."""
        self.wire.flush()

    def close(self) -> None:
        """Close the sockets; the routers cancel what still runs."""
        if not self.is_closed:
            self.is_closed = True
            self.session.shut(monotonic_ns())
            self.wire.close()
