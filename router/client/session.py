"""What a client knows of its requests and routers: messages in, deliveries and messages out; no socket and no clock.

One :class:`Session` serves all endpoints of a client. Whoever has the sockets calls, in each turn,
:meth:`Session.look`, :meth:`Session.received` for each message and :meth:`Session.tick`, and sends what
:meth:`Session.take_output` returns.

    QUEUED ──sent──▶ SENT ──accepted──▶ ACCEPTED ──done, error──▶ ENDED
       ▲               │ connection lost    │
       └───────────────┘                    └──connection lost──▶ ENDED, ConnectionLost

Whoever leaves a request makes it CLOSING: its cancel is sent, and its id stays taken until the router has ended it.

Flow control. ``outstanding`` counts the events that came and were not granted back, ``buffered`` those the user has
not taken. What is taken is granted at half a stream's credit, and everything that was taken when 2,048 events are
outstanding in all: the streams of a client share 4,096 events at the router. What is not taken is not granted, so that
back-pressure reaches the host; but if streams that nobody reads hold most of what is shared while somebody waits for
another one, what they have is granted ahead, or that one would starve.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from router.client import protocol
from router.client.errors import ConnectionLost, NotConnected, RouterError
from router.client.exchange import NEVER_NS, Arrival, Done, Exchange, Phase, Pong
from router.client.failures import (
    connection_lost,
    not_accepted,
    not_connected,
    not_sent_again,
    protocol_error,
    timed_out,
)
from router.client.protocol import CONTENT_CODES, Request
from router.stamps import STAMPS

SILENCE_NS: Final = 3_000_000_000
"""A router that runs a request and says nothing for this long is lost; it sends something every 1.25 s."""
LOOK_NS: Final = 500_000_000
"""A turn comes at least this often while something runs, so that a longer pause is the client's own."""
_PAUSE_NS: Final = 2 * LOOK_NS
REQUESTS_MAX: Final = 4096
"""Open requests of one client: as many as a router has in flight by default."""
OUTSTANDING_MAX: Final = 2048
"""Half of what a router lets all streams of a client have under way: then all that was taken is granted."""
AHEAD_AT: Final = 3072
"""Three quarters of it: then, if somebody waits for a stream, what others have not taken is granted ahead."""
BUFFERED_MAX: Final = 262_144
"""Events that wait in a client for their user, some 64 MiB; above, the stream with most of them is given up."""
SENDS_MAX: Final = 3
"""How often a request is sent: one whose connection broke so often without being accepted may be what breaks it."""
RESEND_BYTES_MAX: Final = 32 << 20
"""A larger body is sent once: over its limit a router closes the connection, and all that runs on it is lost."""


@dataclass(slots=True, eq=False)
class _Link:
    endpoint: str
    connected: bool = False
    heard_ns: int = 0
    exchanges: dict[str, Exchange] = field(default_factory=dict)
    complaint: str = ""
    """What the router said last of a message that it could not lay to a request."""


class Session:
    """The requests of one client. Times are nanoseconds of any steady clock, the same in all calls.

    ``describe`` says in an error what an endpoint is that no router answers at.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        connect_timeout_ns: int,
        now_ns: int,
        describe: Callable[[str], str] = str,
    ) -> None:
        self.due_ns = NEVER_NS
        """When :meth:`tick` has to be called at the latest."""
        self._links = [_Link(endpoint) for endpoint in endpoints]
        self._connect_timeout_ns = connect_timeout_ns
        self._describe = describe
        self._looked_ns = now_ns
        self._exchanges: dict[str, Exchange] = {}
        self._queue: deque[Exchange] = deque()
        self._last_link = len(endpoints) - 1
        self._output: list[tuple[int, list[bytes]]] = []
        self._grants: dict[tuple[int, str], int] = {}
        self._condemned: list[tuple[int, str]] = []
        self._outstanding = 0
        self._buffered = 0
        self._waiting_count = 0
        self._handlers: dict[str, Callable[[_Link, list[Any], Sequence[bytes], int], None]] = {
            "accepted": self._on_accepted,
            "events": self._on_events,
            "done": self._on_done,
            "error": self._on_error,
            "pong": self._on_pong,
        }

    @property
    def busy(self) -> bool:
        """Whether any request is open."""
        return bool(self._exchanges)

    # ------------------------------------------------------------ for the user of the client
    def submit(self, request: Request, now_ns: int) -> Exchange:
        """Begin a request; raises :class:`ValueError` for an id in use, :class:`RouterError` for one too many."""
        if request.request_id in self._exchanges:
            raise ValueError(f"request_id = {request.request_id!r}: expected one that no running request has")
        if len(self._exchanges) >= REQUESTS_MAX:
            message = f"this client has {REQUESTS_MAX} requests open; end some, or use another client"
            raise RouterError(message, status=429, code="overloaded", request_id=request.request_id)
        exchange = Exchange(request, now_ns, now_ns + self._connect_timeout_ns)
        self._exchanges[exchange.id] = exchange
        self._queue.append(exchange)
        self._dispatch(now_ns)
        self.due_ns = min(self.due_ns, exchange.deadline_ns(), now_ns + LOOK_NS)
        return exchange

    def taken(self, exchange: Exchange, count: int) -> bool:
        """Note that the user has taken so many events; true when there is something to send because of it."""
        exchange.buffered -= count
        self._buffered -= count
        grantable = exchange.outstanding - exchange.buffered
        if grantable * 2 < exchange.request.credit or exchange.phase is not Phase.ACCEPTED:
            return False
        self._grant(exchange, grantable)
        return True

    def wait(self, exchange: Exchange) -> bool:
        """Note that somebody waits for a stream from now on; true when there is something to send because of it."""
        if not exchange.request.streamed:
            return False
        self._waiting_count += 1
        if self._outstanding < OUTSTANDING_MAX:
            return False
        self._relieve()
        return True

    def stop_waiting(self, exchange: Exchange) -> None:
        """Take :meth:`wait` back."""
        self._waiting_count -= exchange.request.streamed

    def cancel(self, exchange: Exchange) -> None:
        """End a request for which nobody waits any more; forget what came and was not taken. Harmless at any time."""
        self._buffered -= exchange.buffered
        exchange.buffered = 0
        exchange.inbox.clear()
        exchange.over = True
        if exchange.phase not in {Phase.CLOSING, Phase.ENDED}:
            self._withdraw(exchange)

    def shut(self, now_ns: int) -> None:
        """End every request because the client is closed."""
        for exchange in list(self._exchanges.values()):
            error = ConnectionLost("the client was closed", code="client_closed", request_id=exchange.id)
            self._end(exchange, now_ns, error=error)
        self._queue.clear()

    # ------------------------------------------------------------ for the owner of the sockets
    def look(self, now_ns: int) -> None:
        """Begin a turn. After a pause of the client itself nobody can tell whether the router was silent."""
        if now_ns - self._looked_ns > _PAUSE_NS:
            for link in self._links:
                link.heard_ns = now_ns
        self._looked_ns = now_ns

    def connected(self, index: int, now_ns: int) -> None:
        """Note that an endpoint's socket can be used."""
        link = self._links[index]
        link.connected, link.heard_ns, link.complaint = True, now_ns, ""
        self._dispatch(now_ns)

    def lost(self, index: int, reason: str, now_ns: int) -> None:
        """Note that an endpoint's socket is gone, after everything that it had received was given to :meth:`received`.

        What was accepted ends, what was not is sent again. ``reason`` completes "the router at ...".
        """
        link = self._links[index]
        link.connected = False
        again = []
        for exchange in list(link.exchanges.values()):
            if exchange.phase is Phase.CLOSING:
                self._end(exchange, now_ns)
            elif exchange.phase is Phase.ACCEPTED:
                self._end(exchange, now_ns, error=connection_lost(exchange, link.endpoint, reason))
            elif exchange.send_count >= SENDS_MAX or sum(map(len, exchange.request.frames)) > RESEND_BYTES_MAX:
                self._end(exchange, now_ns, error=not_sent_again(exchange, link.endpoint, reason))
            else:
                again.append(exchange)
        link.exchanges.clear()
        for exchange in reversed(again):
            exchange.phase = Phase.QUEUED
            self._queue.appendleft(exchange)
        self._grants = {key: count for key, count in self._grants.items() if key[0] != index}
        self._output = [output for output in self._output if output[0] != index]
        self._dispatch(now_ns)

    def received(self, index: int, frames: Sequence[bytes], now_ns: int) -> None:
        """Take one message of a router; ``now_ns`` is when it was read."""
        link = self._links[index]
        link.heard_ns = now_ns
        try:
            header = protocol.decode_header(frames[0])
            handler = self._handlers.get(header[1])
            if handler is not None:
                handler(link, header, frames, now_ns)
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError) as error:
            self._distrust(link, str(error), now_ns)

    def tick(self, now_ns: int) -> None:
        """Find what took too long. Call it after what has come was given to :meth:`received`."""
        if now_ns < self.due_ns:
            return
        for link in self._links:
            if link.exchanges and now_ns - link.heard_ns >= SILENCE_NS:
                self._condemn(link, f"was silent for {SILENCE_NS / 1e9:g} s")
        for exchange in list(self._exchanges.values()):
            self._check_time(exchange, now_ns)
        self.due_ns = NEVER_NS
        if self._exchanges:
            deadlines_ns = [exchange.deadline_ns() for exchange in self._exchanges.values()]
            self.due_ns = min(now_ns + LOOK_NS, *deadlines_ns, *self._silent_ns())

    def take_output(self) -> list[tuple[int, list[bytes]]]:
        """Return the messages to send now, each with the index of its endpoint, and forget them."""
        if self._grants:
            grants, self._grants = self._grants, {}
            for index in {index for index, _ in grants}:
                own = [(name, count) for (at, name), count in grants.items() if at == index]
                self._output += [(index, message) for message in protocol.credit_messages(own)]
        output, self._output = self._output, []
        return output

    def take_condemned(self) -> list[tuple[int, str]]:
        """Return the endpoints whose sockets are to be closed and given to :meth:`lost`, with the reason."""
        condemned, self._condemned = self._condemned, []
        return condemned

    # ------------------------------------------------------------ messages
    def _on_accepted(self, link: _Link, header: list[Any], _: Sequence[bytes], __: int) -> None:
        exchange = link.exchanges.get(header[2])
        if exchange is None:
            return
        exchange.request_seq, exchange.generation = int(header[3]), int(header[4])
        if exchange.phase is Phase.SENT:
            exchange.phase = Phase.ACCEPTED
            exchange.request = exchange.request._replace(frames=[])  # never sent again: a body may be large

    def _on_events(self, link: _Link, header: list[Any], frames: Sequence[bytes], now_ns: int) -> None:
        exchange = link.exchanges.get(header[2])
        if exchange is None or exchange.phase is Phase.CLOSING:
            return
        first_index, events = header[3], header[4]
        count = len(events)
        if exchange.phase is not Phase.ACCEPTED:
            self._break_off(exchange, "events before the request was accepted", now_ns)
        elif first_index != exchange.event_count:
            self._break_off(exchange, f"event {first_index} came where {exchange.event_count} was due", now_ns)
        elif sum([event[2] for event in events]) != len(frames[1]):
            self._break_off(exchange, f"{count} events that are not as long as their sizes say", now_ns)
        elif count:
            content_ns = [t_ns for code, t_ns, _ in events if code in CONTENT_CODES]
            if content_ns and not exchange.content_count:
                exchange.first_token = content_ns[0], now_ns
            exchange.content_count += len(content_ns)
            exchange.inbox.append(Arrival(events, frames[1], now_ns))
            self._count_in(exchange, count)
            exchange.notify()

    def _on_done(self, link: _Link, header: list[Any], frames: Sequence[bytes], now_ns: int) -> None:
        exchange = link.exchanges.get(header[2])
        if exchange is None:
            return
        facts = header[3]
        status = int(facts["status"])
        stamps = facts.get("stamps") or [0] * len(STAMPS)
        sent_count = facts.get("events", 0)
        if exchange.request.streamed and sent_count != exchange.event_count:
            what = f"the end after {exchange.event_count} of {sent_count} events"
            self._end(exchange, now_ns, error=protocol_error(exchange, link.endpoint, what))
        elif len(stamps) != len(STAMPS):
            what = f"{len(stamps)} stamps where {len(STAMPS)} were due"
            self._end(exchange, now_ns, error=protocol_error(exchange, link.endpoint, what))
        else:
            body = frames[1] if len(frames) > 1 else b""
            usage = protocol.usage_of(facts.get("usage"))
            levers = tuple(str(lever) for lever in facts.get("levers") or ())
            result = Done(status, facts.get("host") or "", usage, stamps, body, levers)
            self._end(exchange, now_ns, result=result)

    def _on_error(self, link: _Link, header: list[Any], frames: Sequence[bytes], now_ns: int) -> None:
        fields = protocol.error_fields(frames[1])
        exchange = link.exchanges.get(header[2])
        if exchange is None:
            if not header[2]:
                link.complaint = fields["message"]
            return
        facts = header[3]
        status, retry_after_s = int(facts["status"]), float(facts.get("retry_after_s") or 0)
        fields |= {"request_id": exchange.id, "delivered": exchange.event_count}
        self._end(exchange, now_ns, error=RouterError(status=status, retry_after_s=retry_after_s, **fields))

    def _on_pong(self, link: _Link, header: list[Any], _: Sequence[bytes], now_ns: int) -> None:
        exchange = link.exchanges.get(header[2])
        if exchange is not None:
            facts = header[3]
            pong = Pong(str(facts["version"]), int(facts["generation"]), int(facts["t_ns"]))
            self._end(exchange, now_ns, result=pong)

    # ------------------------------------------------------------ credit
    def _count_in(self, exchange: Exchange, count: int) -> None:
        exchange.event_count += count
        exchange.outstanding += count
        exchange.buffered += count
        self._outstanding += count
        self._buffered += count
        if self._outstanding >= OUTSTANDING_MAX:
            self._relieve()

    def _relieve(self) -> None:
        """Grant everything that was taken; if somebody starves all the same, what was not taken too."""
        for exchange in self._exchanges.values():
            self._grant(exchange, exchange.outstanding - exchange.buffered)
        if self._outstanding < AHEAD_AT or not self._waiting_count:
            return
        if self._buffered >= BUFFERED_MAX:
            self._give_up(max(self._exchanges.values(), key=lambda exchange: exchange.buffered))
        for exchange in self._exchanges.values():
            self._grant(exchange, exchange.outstanding)

    def _give_up(self, exchange: Exchange) -> None:
        """End a stream that nobody reads, for the sake of those that are read."""
        message = (
            f"{self._buffered:,} events wait in this client for their readers, {exchange.buffered:,} of them for this "
            "one: read streams as they come, e.g. each in a task of its own"
        )
        self._buffered -= exchange.buffered
        exchange.buffered = 0
        exchange.inbox.clear()
        error = RouterError(message, code="not_read", request_id=exchange.id, delivered=exchange.event_count)
        self._fail(exchange, error, self._looked_ns)

    def _grant(self, exchange: Exchange, count: int) -> None:
        if count <= 0 or exchange.phase is not Phase.ACCEPTED:
            return
        key = exchange.link, exchange.id
        self._grants[key] = self._grants.get(key, 0) + count
        exchange.outstanding -= count
        self._outstanding -= count

    # ------------------------------------------------------------ life of a request
    def _dispatch(self, now_ns: int) -> None:
        """Send what waits, each request to the next endpoint that is connected."""
        while self._queue:
            index = self._next_link()
            if index is None:
                return
            exchange, link = self._queue.popleft(), self._links[index]
            if not link.exchanges:
                link.heard_ns = now_ns
            link.exchanges[exchange.id] = exchange
            exchange.link, exchange.phase = index, Phase.SENT
            exchange.send_count += 1
            self._output.append((index, exchange.request.frames))

    def _next_link(self) -> int | None:
        for step in range(1, len(self._links) + 1):
            index = (self._last_link + step) % len(self._links)
            if self._links[index].connected:
                self._last_link = index
                return index
        return None

    def _check_time(self, exchange: Exchange, now_ns: int) -> None:
        if exchange.phase is Phase.CLOSING:
            return
        request = exchange.request
        if exchange.phase in {Phase.QUEUED, Phase.SENT} and now_ns >= exchange.accept_by_ns:
            self._fail(exchange, self._not_connected(exchange), now_ns)
        elif request.timeout_ns and now_ns - exchange.asked_ns >= request.timeout_ns:
            self._fail(exchange, timed_out(exchange, "timeout_s", request.timeout_ns), now_ns)
        elif exchange.waits_for_token() and now_ns - exchange.asked_ns >= request.first_token_timeout_ns:
            error = timed_out(exchange, "first_token_timeout_s", request.first_token_timeout_ns)
            self._fail(exchange, error, now_ns)

    def _silent_ns(self) -> list[int]:
        """Return when each endpoint that runs something will have been silent for too long."""
        return [link.heard_ns + SILENCE_NS for link in self._links if link.exchanges]

    def _not_connected(self, exchange: Exchange) -> NotConnected:
        limit_ns = self._connect_timeout_ns
        if exchange.phase is Phase.QUEUED:
            where = ", ".join(self._describe(link.endpoint) for link in self._links)
            return not_connected(exchange, where, limit_ns)
        link = self._links[exchange.link]
        return not_accepted(exchange, link.endpoint, limit_ns, link.complaint)

    def _fail(self, exchange: Exchange, error: RouterError, now_ns: int) -> None:
        """End a request for its user, with an error of the client's own, and cancel it at the router."""
        exchange.error, exchange.over, exchange.ended_ns = error, True, now_ns
        self._withdraw(exchange)
        exchange.notify()

    def _break_off(self, exchange: Exchange, what: str, now_ns: int) -> None:
        self._fail(exchange, protocol_error(exchange, self._links[exchange.link].endpoint, what), now_ns)

    def _withdraw(self, exchange: Exchange) -> None:
        self._outstanding -= exchange.outstanding
        exchange.outstanding = 0
        if exchange.phase is Phase.QUEUED:
            self._queue.remove(exchange)
            self._forget(exchange)
            return
        exchange.phase = Phase.CLOSING
        self._output.append((exchange.link, protocol.cancel(exchange.id)))

    def _end(
        self, exchange: Exchange, now_ns: int, result: Done | Pong | None = None, error: RouterError | None = None
    ) -> None:
        """End a request that is not to come back from the router. Who has left it already hears nothing of it."""
        if exchange.phase is not Phase.CLOSING:
            exchange.result, exchange.error, exchange.over, exchange.ended_ns = result, error, True, now_ns
        self._outstanding -= exchange.outstanding
        exchange.outstanding = 0
        self._forget(exchange)
        exchange.notify()

    def _forget(self, exchange: Exchange) -> None:
        exchange.phase = Phase.ENDED
        del self._exchanges[exchange.id]
        self._grants.pop((exchange.link, exchange.id), None)
        if exchange.link >= 0:
            self._links[exchange.link].exchanges.pop(exchange.id, None)

    def _distrust(self, link: _Link, what: str, now_ns: int) -> None:
        """End everything on a connection whose messages cannot be understood."""
        for exchange in list(link.exchanges.values()):
            self._end(exchange, now_ns, error=protocol_error(exchange, link.endpoint, what))
        self._condemn(link, f"broke the protocol: {what}")

    def _condemn(self, link: _Link, reason: str) -> None:
        link.connected = False
        self._condemned.append((self._links.index(link), reason))
