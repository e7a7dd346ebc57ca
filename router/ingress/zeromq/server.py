"""The ROUTER socket: any number of clients, each with any number of requests at once.

The protocol is docs/zeromq.md. Three things decide the shape of this file:

* libzmq's descriptor is edge-triggered, and whatever touches the socket (a send, a look at EVENTS) can take the edge
  away. So this file owns the descriptor: :meth:`ZmqServer.drain` reads a bounded batch, looks at EVENTS again and comes
  back in the next turn while there is more; every send is followed by the same look.
* Nothing blocks. A client whose pipe is full has its streams held and is tried again every millisecond; one that
  libzmq says is gone has its requests cancelled.
* A stream sends no more events than its client has granted credit for. What comes beyond is held; from then on it is an
  egress that is blocked, like a socket that takes no bytes, and the rules for those hold: the host is paused when too
  much is held, and the client is dropped when it grants nothing for too long.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import zmq
from zmq.backend import Socket as RawSocket

import router
from router.errors import WIRE, ErrorKind, RequestError, error_object
from router.ingress.pinning import pin
from router.ingress.submission import is_refusal, make_request, submit, trace_headers
from router.ingress.unix_path import make_free
from router.ingress.wishes import read_wishes
from router.ingress.zeromq import messages
from router.ingress.zeromq.messages import (
    API_VERBS,
    CREDIT_MAX,
    FRAMES_MAX,
    NEAREST_VERB,
    OTHER_VERBS,
    Header,
    as_headers,
    id_of,
    read_header,
)
from router.ingress.zeromq.reply import Reply
from router.stamps import STAMPS
from router.telemetry.counters import Counter
from router.telemetry.records import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router.caches.nearest import NearestFront
    from router.ingress.zeromq.access import ZmqAccess
    from router.ingress.zeromq.curve import CurveKeys, Zap
    from router.keys.account import Account
    from router.loop import Loop
    from router.request import Request

SEND_HIGH_WATER: Final = 2 * CREDIT_MAX
"""Messages libzmq keeps for one client: more than its credit lets streams send, so that answers and errors fit too."""
HEARTBEAT_MS: Final = 1000
SILENT_MS: Final = 3 * HEARTBEAT_MS
"""A client that misses so many heartbeats is gone."""
_MESSAGE_SLACK_BYTES: Final = 1 << 20
"""A body so much over its limit is answered with an error; libzmq closes the connection at one that is longer."""
_RECEIVE_HIGH_WATER: Final = 64
"""Messages libzmq takes in ahead of us from one client: their bodies may be large."""
_RECEIVES_PER_TURN: Final = 64
_RETRY_S: Final = 0.001
_PROBE_S: Final = 0.005
"""A closed connection is reported before its pipe has gone; so long after that a send says whose it was."""
_CONTROL_MAX: Final = 1024
"""Messages without credit that wait for one client; one that lets more come together is not reading: it is dropped."""
_SOCKET_MODE: Final = 0o660
_LINGER_MS: Final = 500
_NS_PER_MS: Final = 1_000_000

_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN: Final = int(zmq.POLLIN)
_DISCONNECTED: Final = int(zmq.EVENT_DISCONNECTED)
_HANDSHAKES_FAILED: Final = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MONITOR_EVENT: Final = struct.Struct("=Hi")
"""Event and descriptor (zmq_socket_monitor(3))."""
_EVENTS: Final = int(zmq.EVENTS)


class ZmqClient:
    """One client, by the identity libzmq gave it, as long as it has requests or messages waiting for it."""

    __slots__ = ("blocked", "control", "full", "gone", "identity", "number", "replies", "sent_ns", "under_way")

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.number = int.from_bytes(identity[-4:], "big")
        """The same for all requests of a connection: libzmq numbers them in the last four bytes of its identities."""
        self.replies: dict[str, Reply] = {}
        self.blocked: dict[Reply, None] = {}
        """Those of them that hold something, in the order in which they began to."""
        self.control: deque[tuple[bytes, bytes | None]] = deque()
        """Messages without credit that its pipe had no room for."""
        self.under_way = 0
        """Events sent and not granted back, all streams together."""
        self.full = False
        """Its pipe has no room: nothing is sent until the next retry."""
        self.gone = False
        self.sent_ns = 0
        """When something was last sent to it."""


class ZmqServer:
    """Owns the ROUTER socket, its descriptor, and the clients that have something to wait for."""

    def __init__(
        self,
        loop: Loop,
        *,
        body_bytes_max: int,
        backlog: int,
        generation_ns: int,
        models: Callable[[Account | None], bytes],
        other_connections: Callable[[], int],
    ) -> None:
        self.loop = loop
        self.clients: dict[bytes, ZmqClient] = {}
        self._body_bytes_max = body_bytes_max
        self._generation_ns = generation_ns
        self._models = models
        self._counters = loop.counters
        self._paths: list[Path] = []
        """Socket files."""
        self._full: list[ZmqClient] = []
        self._bound: set[str] = set()
        """Paths and ports."""
        self._other_connections = other_connections
        self.connection_count = 0
        self._draining = False
        self._drain_due = False
        self._retry_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._event_loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._verbs: dict[str, Callable[[ZmqClient, Header], None]] = {
            "cancel": self._cancel,
            "credit": self._credit,
            "models": self._list_models,
            "ping": self._ping,
        }
        assert self._verbs.keys() == OTHER_VERBS
        self.nearest: NearestFront | None = None
        """Makes requests of questions for what is nearest, where that is configured."""
        self.access: ZmqAccess | None = None
        """Whose keys are whose, where keys are configured."""
        self._curve: Zap | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._set_options(backlog)
        # The methods of pyzmq's compiled class, without the Python frame of the class that users see: three sends
        # take 0.6 us instead of 3.
        self._send = partial(RawSocket.send, self._socket)
        self._receive: Callable[[int, bool], zmq.Frame] = partial(RawSocket.recv, self._socket)  # type: ignore[assignment]
        self._option: Callable[[int], int] = partial(RawSocket.get, self._socket)  # type: ignore[assignment]

    def _set_options(self, backlog: int) -> None:
        for option, value in (
            (zmq.BACKLOG, backlog),
            (zmq.ROUTER_MANDATORY, 1),  # a send to one who is gone fails instead of vanishing
            (zmq.SNDHWM, SEND_HIGH_WATER),
            (zmq.RCVHWM, _RECEIVE_HIGH_WATER),
            (zmq.MAXMSGSIZE, self._body_bytes_max + _MESSAGE_SLACK_BYTES),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENT_MS),
            (zmq.LINGER, _LINGER_MS),
        ):
            self._socket.setsockopt(option, value)

    # ------------------------------------------------------------ life
    def adopt(self, sock: socket.socket, endpoint: str) -> str:
        """Accept clients of a socket that listens already; return the endpoint. Raises :class:`OSError`.

        libzmq gets a descriptor of its own and closes that; the socket's file is left to whoever opened it.
        """
        if self._curve is not None:
            self._curve.set_options(self._socket, is_tcp=endpoint.startswith("tcp://"))
        self._socket.setsockopt(zmq.USE_FD, sock.dup().detach())
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, str(error)) from None
        finally:
            self._socket.setsockopt(zmq.USE_FD, -1)
        self._bound.add(endpoint[len("ipc://") :] if endpoint.startswith("ipc://") else endpoint.rpartition(":")[2])
        return endpoint

    def encrypt(self, keys: CurveKeys, access: ZmqAccess) -> None:
        """Let in over TCP only who has one of the CURVE keys that are known; before :meth:`bind`."""
        from router.ingress.zeromq.curve import Zap  # noqa: PLC0415 - only who has it configured loads it

        self._curve = Zap(self._context, self._event_loop, keys, access)

    def admit_users(self, uids: Iterable[int]) -> None:
        """Let only processes of these users connect to sockets of files; before :meth:`bind`."""
        for uid in uids:
            self._socket.setsockopt(zmq.IPC_FILTER_UID, uid)

    def bind(self, endpoint: str) -> str:
        """Listen at an endpoint; return it as libzmq has it, with the port it chose. Raises :class:`OSError`."""
        path = endpoint.removeprefix("ipc://") if endpoint.startswith("ipc://") else ""
        if self._curve is not None:
            self._curve.set_options(self._socket, is_tcp=not path)  # libzmq keeps them with each endpoint
        if path:
            make_free(path)  # libzmq would take it away from whoever listens there, or from a file
        self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))  # with it on, 127.0.0.1 becomes ::ffff:127.0.0.1
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, str(error)) from None
        if path:
            self._paths.append(Path(path))
            self._paths[-1].chmod(_SOCKET_MODE)
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._bound.add(path or bound.rpartition(":")[2])
        return bound

    def start(self) -> None:
        """Begin to read."""
        handshakes = _HANDSHAKES_FAILED if self._curve is not None else 0
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | handshakes)
        self._event_loop.add_reader(_descriptor(self._monitor), self._on_connections)
        self._event_loop.add_reader(_descriptor(self._socket), self.drain)
        self._on_connections()  # libzmq signals only to who has looked once and found nothing
        self.drain()

    def stop_listening(self) -> None:
        """Let nobody find the socket any more. Unbound it would lose the clients that are there, who go on."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    def close(self) -> None:
        """Send what is under way, for half a second at most, and close."""
        for timer in (self._retry_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._event_loop.remove_reader(_descriptor(self._socket))
        if self._monitor is not None:
            self._event_loop.remove_reader(_descriptor(self._monitor))
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close()
        if self._curve is not None:
            self._curve.close()
        self._context.term()

    def check(self, now: int) -> None:
        """Tell clients that wait that we live, which also finds those that are gone."""
        for client in list(self.clients.values()):
            if client.replies and now - client.sent_ns >= HEARTBEAT_MS * _NS_PER_MS:
                self._alive(client)

    # ------------------------------------------------------------ out
    def send(self, client: ZmqClient, header: bytes, body: bytes | None) -> bool:
        """Send a message; false if the client's pipe has no room. To one who is gone everything can be sent."""
        if client.full:
            return False
        send = self._send
        sent = True
        try:
            send(client.identity, _MORE)
            if body is None:
                send(header, _NOBLOCK)
            else:
                send(header, _MORE)
                send(body, _NOBLOCK)
        except zmq.Again:
            sent = False
            client.full = True
            self._full.append(client)
            if self._retry_timer is None:
                self._retry_timer = self._event_loop.call_later(_RETRY_S, self._retry)
        except zmq.ZMQError:  # EHOSTUNREACH; its requests end in a turn of their own, not within this write
            if not client.gone:
                client.gone = True
                self._event_loop.call_soon(self._drop, client)
        if not self._draining and not self._drain_due and self._option(_EVENTS) & _POLLIN:
            self._drain_soon()
        return sent

    def control(self, client: ZmqClient, header: bytes, body: bytes | None = None) -> None:
        """Send a message that needs no credit; it waits while the pipe has no room."""
        client.sent_ns = monotonic_ns()
        if not client.control and self.send(client, header, body):
            return
        client.control.append((header, body))
        self.clients[client.identity] = client
        if len(client.control) > _CONTROL_MAX and not client.gone:
            client.gone = True
            self._counters.add(Counter.ZEROMQ_DROPPED, len(client.control))
            client.control.clear()
            self._event_loop.call_soon(self._drop, client)

    def host_name(self, request: Request) -> str:
        """Return the name of the host that answers, empty while there is none."""
        return self.loop.host_of[request.host].name if request.host else ""

    def forget(self, client: ZmqClient, reply: Reply) -> None:
        """A request is over."""
        if client.replies.get(reply.request_id) is reply:
            del client.replies[reply.request_id]
        client.blocked.pop(reply, None)
        self._let_go(client)

    def _let_go(self, client: ZmqClient) -> None:
        if not client.replies and not client.control and self.clients.get(client.identity) is client:
            del self.clients[client.identity]

    def _retry(self) -> None:
        """Try the clients again whose pipes had no room."""
        self._retry_timer = None
        full, self._full = self._full, []
        for client in full:
            client.full = False
            while client.control and self.send(client, *client.control[0]):
                client.control.popleft()
            self._flush(client)
            self._let_go(client)

    def flush_soon(self, client: ZmqClient) -> None:
        """Let the held streams of a client go on, in a turn of its own: one of them may end by that."""
        self._event_loop.call_soon(self._flush, client)

    def _flush(self, client: ZmqClient) -> None:
        """Let the held streams of a client go on."""
        for reply in list(client.blocked):
            if client.full or client.gone:
                return
            reply.flush()

    def _alive(self, client: ZmqClient) -> None:
        client.sent_ns = monotonic_ns()
        if not client.full:  # one that does not read needs no further message in its pipe
            self.send(client, messages.ALIVE, None)

    def _on_connections(self) -> None:
        """Connections have come or gone, libzmq does not say whose: soon a send to each who waits will tell."""
        assert self._monitor is not None
        lost = False
        while self._monitor.poll(0):
            event, descriptor = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            if event == _DISCONNECTED:
                self.connection_count -= 1
                lost = True
                continue
            if event & _HANDSHAKES_FAILED:
                self._counters.add(Counter.CURVE_REFUSED)
                continue
            self.connection_count += 1
            if self.connection_count + self._other_connections() > self.loop.limits.connections:
                self._turn_away(descriptor)
        if lost and self._probe_timer is None:
            self._probe_timer = self._event_loop.call_later(_PROBE_S, self._probe)

    def _turn_away(self, descriptor: int) -> None:
        """End a connection that is one too many: libzmq aborts the process when it has no descriptor for the next."""
        try:
            twin = socket.socket(fileno=descriptor)
        except OSError:  # it has ended already
            return
        try:
            if _is_at(twin.getsockname(), self._bound):  # and its descriptor is not somebody else's by now
                twin.shutdown(socket.SHUT_RDWR)
                self._counters.add(Counter.CONNECTIONS_REFUSED)
        except OSError:
            pass
        finally:
            twin.detach()

    def _probe(self) -> None:
        self._probe_timer = None
        for client in list(self.clients.values()):
            self._alive(client)

    def _drop(self, client: ZmqClient) -> None:
        """A client is gone: whatever runs for it stops."""
        requests = [reply.request for reply in client.replies.values() if reply.request is not None]
        requests.sort(key=lambda request: request.phase != Phase.WAITING)  # or they would take the slots of the others
        for request in requests:
            self.loop.clients.left(request, monotonic_ns())
        client.replies.clear()
        client.blocked.clear()
        client.control.clear()
        self._let_go(client)

    # ------------------------------------------------------------ in
    def drain(self) -> None:
        """Read what has come, a bounded batch of it; come back in the next turn while there is more."""
        self._drain_due = False
        self._draining = True
        count = 0
        try:
            while count < _RECEIVES_PER_TURN and self._option(_EVENTS) & _POLLIN:
                count += 1
                self._take(self._receive_frames())
        finally:
            self._draining = False
            if count:
                self._counters.add(Counter.ZEROMQ_MESSAGES, count)
            if self._option(_EVENTS) & _POLLIN:
                self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._drain_due:
            self._drain_due = True
            self._event_loop.call_soon(self.drain)

    def _receive_frames(self) -> list[bytes]:
        """Receive a message. Of one with too many frames only as many are kept as show that."""
        receive = self._receive
        if self.access is not None:
            return self.access.receive(self._socket)
        frame = receive(_NOBLOCK, False)  # not copied, it tells whether more follow: an option less
        frames = [frame.bytes]
        while frame.more:  # the frames of a message come together: none of these receives finds nothing
            frame = receive(_NOBLOCK, False)
            if len(frames) <= FRAMES_MAX:
                frames.append(frame.bytes)
        return frames

    def _take(self, frames: list[bytes]) -> None:
        """Do what one message says."""
        recv_ns = monotonic_ns()
        identity = frames[0]
        client = self.clients.get(identity)
        if client is None or client.gone:
            client = ZmqClient(identity)
        try:
            header = read_header(frames)
            body = frames[2] if len(frames) == FRAMES_MAX else b""
            if self.access is not None:
                self.access.check(header)
            if header.verb in API_VERBS or header.verb == NEAREST_VERB:
                self._ask(client, header, body, recv_ns)
            elif len(frames) == FRAMES_MAX:
                raise RequestError(ErrorKind.BAD_MESSAGE, f"{header.verb} has no body")
            else:
                self._verbs[header.verb](client, header)
        except RequestError as error:
            request_id = id_of(frames)
            if request_id in client.replies or error.kind == ErrorKind.BAD_CREDIT:
                request_id = ""  # whoever reads it must not take it for the end of a request that runs
            self._refuse(client, request_id, error)

    def _refuse(self, client: ZmqClient, request_id: str, error: RequestError) -> None:
        refused = is_refusal(error)
        if self.access is not None:
            error = self.access.refused(error)
        self._counters.add(Counter.REQUESTS_REFUSED if refused else Counter.ZEROMQ_BAD)
        header = messages.error(request_id, WIRE[error.kind].status, error.retry_after_s or (1 if refused else 0), 0)
        if client.identity in self.clients:
            self.control(client, header, error_object(error.kind, error.message, error.param))
        elif not self.send(client, header, error_object(error.kind, error.message, error.param)):
            self._counters.add(Counter.ZEROMQ_DROPPED)

    def _ask(self, client: ZmqClient, header: Header, body: bytes, recv_ns: int) -> None:
        if header.id in client.replies:
            raise RequestError(
                ErrorKind.DUPLICATE_REQUEST, f"a request {header.id!r} of this client is still running", header.id
            )
        if len(body) > self._body_bytes_max:
            limit = self._body_bytes_max
            text = f"the request body has {len(body)} bytes, at most {limit} are allowed (limits.body_bytes)"
            raise RequestError(ErrorKind.BODY_TOO_LARGE, text)
        reply = Reply(self, client, header.id, header.credit)
        headers = as_headers(header)
        account = self.access.account if self.access is not None else None
        if account is not None:
            account.put_tags(headers)
        endpoint = API_VERBS.get(header.verb)
        if endpoint is None:
            request = self._nearest_request(reply, header.id, headers, body, recv_ns)
        else:
            request = make_request(
                self.loop, reply, endpoint, header.id, body, headers, recv_ns, monotonic_ns(),
                streams_by_default=True,
                wishes=read_wishes(headers, has_features=bool(self.loop.config.features)) if headers else None,
            )  # fmt: skip
        if b"traceparent" in headers:
            request.trace_headers = trace_headers(headers)
        if header.host:
            pin(self.loop, request, header.host)
        if account is not None:
            account.admit(request, monotonic_ns())
        reply.request = request
        client.replies[header.id] = reply
        self.clients[client.identity] = client
        try:
            submit(self.loop, request, client.number)
        except RequestError:
            if account is not None:
                account.take_back(request)
            self.forget(client, reply)
            raise
        if request.phase != Phase.DONE and not request.ending:
            self.accepted(client, request, header.id)

    def accepted(self, client: ZmqClient, request: Request, request_id: str) -> None:
        """Tell a client that its request is in the ring."""
        self.control(client, messages.accepted(request_id, request.seq, self._generation_ns))

    def _nearest_request(
        self, reply: Reply, request_id: str, headers: dict[bytes, bytes], body: bytes, recv_ns: int
    ) -> Request:
        if self.nearest is None:
            raise RequestError(ErrorKind.NOT_FOUND, "nearest is not configured here ([cache.nearest])")
        return self.nearest.request(reply, request_id, headers, body, recv_ns, monotonic_ns())

    def _cancel(self, client: ZmqClient, header: Header) -> None:
        reply = client.replies.get(header.id)
        if reply is None or reply.request is None:
            self._counters.add(Counter.ZEROMQ_DROPPED)
            return
        self.loop.clients.left(reply.request, monotonic_ns())
        self.control(
            client,
            reply.error(WIRE[ErrorKind.CANCELLED].status),
            error_object(ErrorKind.CANCELLED, "cancelled by the client"),
        )

    def _credit(self, client: ZmqClient, header: Header) -> None:
        bad: RequestError | None = None
        for name, count in header.grants:
            reply = client.replies.get(name)
            if reply is None:
                self._counters.add(Counter.ZEROMQ_DROPPED)
            elif not 1 <= count <= CREDIT_MAX or reply.credit + count > CREDIT_MAX:
                text = f"a grant of {count} for {name!r}: 1 to {CREDIT_MAX - reply.credit} are allowed"
                bad = RequestError(ErrorKind.BAD_CREDIT, text, "grants")
            else:
                reply.grant(count)
        self._flush(client)
        if bad is not None:
            raise bad

    def _list_models(self, client: ZmqClient, header: Header) -> None:
        done = messages.done(header.id, status=200, host="", event_count=0, usage=None, stamps=(0,) * len(STAMPS))
        if not self.send(client, done, self._models(self.access.account if self.access is not None else None)):
            self._counters.add(Counter.ZEROMQ_DROPPED)

    def _ping(self, client: ZmqClient, header: Header) -> None:
        pong = messages.pong(header.id, router.__version__, self._generation_ns, monotonic_ns())
        if not self.send(client, pong, None):
            self._counters.add(Counter.ZEROMQ_DROPPED)


def _descriptor(a_socket: zmq.Socket[bytes]) -> int:
    return int(a_socket.getsockopt(zmq.FD))


def _is_at(name: str | tuple[str, int], bound: set[str]) -> bool:
    """Return whether a socket's own name is one of these paths and ports."""
    return (name if isinstance(name, str) else str(name[1])) in bound
