"""The HTTP API: which path does what, and the set of all client connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic_ns, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from router.dialects import dialect_of
from router.errors import ErrorKind, RequestError
from router.hosts.standing import condition
from router.http1 import HeadMemo, parse_request_head
from router.ingress import answering
from router.ingress.http import ClientConnection
from router.ingress.passthrough import PassThrough
from router.ingress.pinning import pin
from router.ingress.route import Route, takes_post
from router.ingress.shapes import make_intake
from router.ingress.submission import is_refusal, make_request, submit, unknown_model
from router.stamps import STAMPS, stages, tpot_ns, ttft_ns
from router.telemetry.counters import Counter
from router.telemetry.host_report import read_report

if TYPE_CHECKING:
    from router.caches.nearest import NearestFront
    from router.config import Config
    from router.http1 import Head
    from router.ingress.access import HttpAccess
    from router.keys.account import Account
    from router.loop import Loop
    from router.request import Request
    from router.telemetry.records import Endpoint

_JSON: Final = b"application/json"
_NEAREST: Final = b"/v1/ringrouter/nearest"
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000
_IDLE_CHECK_NS: Final = _NS
_LINGER_NS: Final = 2 * _NS
"""How long a client that still sends may take to read why it was refused."""
_LINGERING_MAX: Final = 256
"""Such clients at once; further ones are closed without the wait."""
_UNLIKE: Final = (b"traceparent", b"x-request-id")
_encode: Final = msgspec.json.Encoder().encode


class HttpServer:
    """Owns the client connections of this router and answers what needs no host."""

    def __init__(self, config: Config, loop: Loop) -> None:
        answering.tell()
        self.loop = loop
        self.limits = config.limits
        self.ready: Callable[[], bool] = lambda: False
        self.other_connections: Callable[[], int] = lambda: 0
        """Those of other ingresses, which share ``limits.connections``."""
        self.parse: Callable[[bytes], Head] = parse_request_head
        self.heads = HeadMemo(self.parse, unlike=_UNLIKE)
        """Of this router alone: what is kept with a head has ids of its records."""
        self.connections: set[ClientConnection] = set()
        self._config = config
        self._counters = loop.counters
        self._reading: set[ClientConnection] = set()
        self._idle: dict[ClientConnection, int] = {}
        self._lingering: dict[ClientConnection, int] = {}
        self._idle_check_ns = 0
        self._head_ns = self._keep_alive_ns = 0
        self.intake = make_intake(loop, ClientConnection(self))
        """Takes requests like earlier ones; asked first."""
        self.next_id: Callable[[], str] = self.intake.next_id
        self._connection_count = 0
        self._created = int(time())
        self._passed = PassThrough(loop)
        self.access: HttpAccess | None = None
        """Whose keys are whose, where keys are configured."""
        self.configure(config)
        self.nearest: NearestFront | None = None
        """Makes requests of questions for what is nearest, where that is configured."""
        self._pages: dict[bytes, Callable[[ClientConnection, bool], None]] = {
            b"/health": self._health,
            b"/ready": self._ready_page,
            b"/v1/models": self._models,
            b"/models": self._models,
            b"/metrics": self._metrics,
        }

    def configure(self, config: Config, access: HttpAccess | None = None) -> None:
        """Take over limits, time-outs and keys, for what begins from now on."""
        self._config = config
        self.access = access
        self.limits = config.limits
        self._head_ns = int(config.timeouts.head_s * _NS)
        self._keep_alive_ns = int(config.timeouts.keep_alive_s * _NS)
        self._passed.configure(config)
        self._forget_requests()  # what heads say of features is kept with them

    # ------------------------------------------------------------ connections
    def accept(self, connection: ClientConnection) -> bool:
        """Count a new connection; false when there are too many."""
        self.connections.add(connection)
        self._connection_count += 1
        connection.number = self._connection_count
        full = len(self.connections) + self.other_connections() > self.limits.connections
        self._counters.add(Counter.CONNECTIONS_REFUSED if full else Counter.CONNECTIONS_ACCEPTED)
        self._counters.set(Counter.CONNECTIONS_OPEN, len(self.connections))
        self._idle[connection] = monotonic_ns()
        return not full

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._reading.discard(connection)
        self._idle.pop(connection, None)
        self._lingering.pop(connection, None)
        self._counters.set(Counter.CONNECTIONS_OPEN, len(self.connections))

    def reading(self, connection: ClientConnection) -> None:
        """The first bytes of a request are in: its time-out runs."""
        connection.since_ns = monotonic_ns()
        self._reading.add(connection)

    def read_done(self, connection: ClientConnection) -> None:
        """A request is in."""
        self._reading.discard(connection)

    def answered(self, connection: ClientConnection) -> None:
        """An answer is out and nothing of the next request is in."""
        if connection in self.connections:
            self._idle[connection] = monotonic_ns()

    def refused(self) -> None:
        """Bytes came that are no request."""
        self._counters.add(Counter.REQUESTS_BAD)

    def linger(self, connection: ClientConnection) -> bool:
        """Keep a refused connection until its client has read why; false when too many are kept already."""
        self._reading.discard(connection)
        self._idle.pop(connection, None)
        if len(self._lingering) >= _LINGERING_MAX:
            return False
        self._lingering[connection] = monotonic_ns()
        return True

    def check(self, now: int) -> bool:
        """End requests that come in too slowly and connections idle for too long; return whether any is being read."""
        limit = self._config.timeouts.head_s
        for connection in [c for c in self._reading if now - c.since_ns >= self._head_ns]:
            self._reading.discard(connection)
            connection.refuse_slow_head(f"the request was not complete after {limit:g} s (timeouts.head_s)")
        if now >= self._idle_check_ns:
            self._idle_check_ns = now + _IDLE_CHECK_NS
            for connection in [c for c, since in self._idle.items() if c.idle and now - since >= self._keep_alive_ns]:
                connection.close_idle()
            for connection in [c for c, since in self._lingering.items() if now - since >= _LINGER_NS]:
                connection.abort()
        return bool(self._reading)

    def close_after_answers(self) -> None:
        """Let each connection end with its next answer, which says so: another process takes the new ones.

        Those between two requests stay open. To close one at the moment its client asks would fail that request.
        """
        self.parse = _parse_last_head
        self.heads = HeadMemo(self.parse, unlike=_UNLIKE)
        self._forget_requests()

    def close_idle(self) -> None:
        """Close all connections that are between two requests: the router is stopping."""
        for connection in [c for c in self._idle if c.idle]:
            connection.close_idle()

    # ------------------------------------------------------------ requests
    def _forget_requests(self) -> None:
        """Forget what is known of requests that came, and would come in the same way again."""
        self.heads.forget()
        self.intake.forget(self.limits.head_bytes, self.limits.body_bytes)

    def route(self, head: Head) -> Route:
        """Return what a head says of its request, and keep it with the head."""
        access = self.access
        head.route = Route(head, has_features=bool(self._config.features)) if access is None else access.route(head)
        route: Route = head.route
        return route

    def take(self, connection: ClientConnection, head: Head, endpoint: Endpoint, body: bytes) -> None:
        """Hand a request that any host can take to the loop; the head has its route."""
        route: Route = head.route
        try:
            request = self.make(connection, head, endpoint, body)
            if route.is_special:
                self._settle(route, request)
            connection.request = request
            submit(self.loop, request, connection.number)
        except RequestError as error:
            self._refuse(connection, head, error)

    def make(self, connection: ClientConnection, head: Head, endpoint: Endpoint, body: bytes) -> Request:
        """Return the request that a head and a body ask for; raises :class:`RequestError`."""
        route: Route = head.route
        request = make_request(
            self.loop, connection, endpoint, connection.request_id, body, head.headers,
            connection.recv_ns, monotonic_ns(), streams_by_default=False, wishes=route.wishes,
        )  # fmt: skip
        request.timing_asked = route.timing_asked
        request.trace_headers = route.trace_headers
        request.identities = route.identities
        return request

    def refuse_known(self, connection: ClientConnection, data: bytes, error: RequestError) -> None:
        """Refuse a request that was known, for which there is no room."""
        taken = self.heads.take(data, 0, self.limits.head_bytes)
        assert taken is not None, "a head that was known is one"
        head = taken[0]
        if head.route is None:
            self.route(head)
        self._refuse(connection, head, error)

    def _settle(self, route: Route, request: Request) -> None:
        """Do what is to be done for a request with a key or a host of its choice; raises :class:`RequestError`."""
        if route.host:
            pin(self.loop, request, route.host)
        if route.account is not None:
            route.account.admit(request, monotonic_ns())

    def handle(self, connection: ClientConnection, head: Head, body: bytes) -> None:
        """Answer one request or hand it to the loop."""
        route = head.route or self.route(head)
        if route.endpoint is not None:
            self.take(connection, head, route.endpoint, body)
            return
        path = route.path
        try:
            if route.refusal is not None:
                raise route.refusal
            page = self._page(route)
            if page is None and self._takes(path) and head.method == b"POST":
                request = self._own_request(connection, head, route, body)
                request.timing_asked = route.timing_asked
                if route.is_special:
                    self._settle(route, request)
                connection.request = request
                submit(self.loop, request, connection.number)
                return
            if page is None:
                raise _misplaced(head, path, is_post=takes_post(path) or self._takes(path))
            if head.method not in {b"GET", b"HEAD"}:
                raise RequestError(ErrorKind.METHOD_NOT_ALLOWED, f"{_show(path)} takes GET, not {_show(head.method)}")
            page(connection, head.method == b"HEAD")
        except RequestError as error:
            self._refuse(connection, head, error)
            return
        connection.end()
        self.answered(connection)

    def refuse_head(self, connection: ClientConnection, head: Head, error: RequestError) -> bytes:
        """Note that a request is refused whose body is not waited for; return header lines for its answer."""
        if self.access is not None:
            self.access.note_refusal(connection, head, error)
        return self._challenge(error.kind, head.route.path)

    def _takes(self, path: bytes) -> bool:
        """Whether a path that is not of every host takes POST."""
        return self._passed.takes(path) or (self.nearest is not None and path == _NEAREST)

    def _own_request(self, connection: ClientConnection, head: Head, route: Route, body: bytes) -> Request:
        """Return the request to such a path; raises :class:`RequestError`."""
        now = monotonic_ns()
        if route.path != _NEAREST or self.nearest is None:
            return self._passed.request(connection, head, body, now, route.wishes)
        return self.nearest.request(connection, connection.request_id, head.headers, body, connection.recv_ns, now)

    def _refuse(self, connection: ClientConnection, head: Head, error: RequestError) -> None:
        refused = is_refusal(error)
        self._counters.add(Counter.REQUESTS_REFUSED if refused else Counter.REQUESTS_BAD)
        request, connection.request = connection.request, None
        account = head.route.account
        if account is not None:
            if request is not None:  # it was counted, and then there was no room for it
                account.take_back(request)
            error = account.in_its_words(error)
        if self.access is not None:
            self.access.note_refusal(connection, head, error)
        connection.error(
            error.kind,
            error.message,
            error.param,
            retry_after_s=error.retry_after_s or (1 if refused else 0),
            extra=self._challenge(error.kind, head.route.path),
            head_only=head.method == b"HEAD",
            dialect=dialect_of(head.url.decode("latin-1")),
        )
        connection.end()
        self.answered(connection)

    def _challenge(self, kind: ErrorKind, path: bytes) -> bytes:
        """Return the header that RFC 9110 wants with a 405 (§15.5.6) and with a 401 (§15.5.2)."""
        if kind == ErrorKind.UNAUTHORIZED:
            return b"www-authenticate: Bearer\r\n"
        if kind != ErrorKind.METHOD_NOT_ALLOWED:
            return b""
        own_page = path in self._pages or path.startswith(b"/v1/models/")
        return b"allow: GET, HEAD\r\n" if own_page else b"allow: POST\r\n"

    # ------------------------------------------------------------ answers about a request
    def host_name(self, request: Request) -> str:
        """Return the name of the host that answers, empty while there is none."""
        return self.loop.host_of[request.host].name if request.host else ""

    def timing_comment(self, request: Request) -> bytes:
        """Return the comment that ``x-ringrouter-timing: 1`` asks for: what is known before the last byte is out."""
        now = monotonic_ns()
        values = (
            request.recv, request.body_ns, request.pub, request.deq, request.admitted, request.routed1, request.routed,
            request.conn_ns, request.sent_ns, request.hfb, request.tok1, request.out1, request.tok_n,
            request.out_n or now, now,
        )  # fmt: skip
        assert len(values) == len(STAMPS)
        stage_ns = stages(values)
        report = read_report(request.usage, None, None)
        n_out = report.n_out or request.content_count
        timing: dict[str, Any] = {f"{name}_ms": ns / _MS_NS for name, ns in stage_ns.items()}
        timing["ttft_ms"] = ttft_ns(stage_ns) / _MS_NS
        per_token = tpot_ns(request.tok1, request.tok_n, n_out, 1)
        timing["tpot_ms"] = per_token / _MS_NS if per_token is not None else None
        timing["tokens"] = n_out
        timing["host"] = self.host_name(request)
        return b": ringrouter %b\n\n" % _encode(timing)

    # ------------------------------------------------------------ pages
    def _health(self, connection: ClientConnection, head_only: bool) -> None:
        connection.answer(200, _JSON, b'{"status":"ok"}', head_only=head_only)

    def _ready_page(self, connection: ClientConnection, head_only: bool, *, with_hosts: bool = True) -> None:
        ready = self.ready()
        page: dict[str, Any] = {"status": "ready" if ready else "not ready"}
        if with_hosts:
            now = monotonic_ns()
            page["hosts"] = {h.name: condition(h, now) for h in self.loop.hosts}
        connection.answer(200 if ready else 503, _JSON, _encode(page), head_only=head_only)

    def _model(self, name: str) -> dict[str, Any]:
        """Return what is told of a model; ``root``, as vLLM has it, is the model's own name where this is an alias."""
        shown = {"id": name, "object": "model", "created": self._created, "owned_by": "ringrouter"}
        root = self.loop.by_name[name].name
        return shown if root == name else {**shown, "root": root}

    def _page(self, route: Route) -> Callable[[ClientConnection, bool], None] | None:
        """Return what answers a GET of a path, ``None`` for a path without a page; raises :class:`RequestError`."""
        path, account = route.path, route.account
        if self.access is None:
            return self._pages.get(path) or self._one_model(path)
        if path == b"/ready" and (account is None or not account.may_look):
            return partial(self._ready_page, with_hosts=False)
        if path in {b"/v1/models", b"/models"}:
            return partial(self._models, account=account)
        page = self._pages.get(path) or self._one_model(path)
        if page is not None and path.startswith(b"/v1/models/") and not self._may_see(account, _name_in(path)):
            raise RequestError(ErrorKind.MODEL_NOT_FOUND, f"model {_name_in(path)[:200]!r} is not served here", "model")
        return page

    def _may_see(self, account: Account | None, name: str) -> bool:
        """Whether a key may use a model by this name or by its own."""
        return account is None or account.permits(name) or account.permits(self.loop.by_name[name].name)

    def _one_model(self, path: bytes) -> Callable[[ClientConnection, bool], None] | None:
        if not path.startswith(b"/v1/models/"):
            return None
        name = _name_in(path)
        if name not in self.loop.by_name:
            raise unknown_model(self.loop, name)
        return lambda connection, head_only: connection.answer(
            200, _JSON, _encode(self._model(name)), head_only=head_only
        )

    def models_page(self, account: Account | None = None) -> bytes:
        """Return the list of models in OpenAI's shape, as JSON; of a key those that it may use."""
        data = [self._model(name) for name in sorted(self.loop.by_name) if self._may_see(account, name)]
        return _encode({"object": "list", "data": data})

    def _models(self, connection: ClientConnection, head_only: bool, *, account: Account | None = None) -> None:
        connection.answer(200, _JSON, self.models_page(account), head_only=head_only)

    def _metrics(self, connection: ClientConnection, head_only: bool) -> None:
        text = b"# Metrics are served by the observer (ringrouter observe), not on the token path.\n"
        connection.answer(404, b"text/plain; charset=utf-8", text, head_only=head_only)


def _parse_last_head(data: bytes) -> Head:
    """Parse the head of a request that is the last one of its connection."""
    head = parse_request_head(data)
    head.keep_alive = False
    return head


def _name_in(path: bytes) -> str:
    """Return the name in the path of a model's page."""
    return unquote(path.removeprefix(b"/v1/models/").decode("utf-8", "replace"))


def _misplaced(head: Head, path: bytes, *, is_post: bool) -> RequestError:
    """Return the error for a path that is not there, or not for this method."""
    if is_post:
        return RequestError(ErrorKind.METHOD_NOT_ALLOWED, f"{_show(path)} takes POST, not {_show(head.method)}")
    return RequestError(ErrorKind.NOT_FOUND, f"there is nothing at {_show(path)}")


def _show(raw: bytes) -> str:
    return raw[:100].decode("ascii", "backslashreplace")
