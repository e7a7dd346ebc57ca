"""The admin surface: the state of the router in detail, another configuration, hosts out of service and in again.

It has listeners of its own, so that what clients reach cannot change anything, and so that it answers while clients use
every connection there is. Who opens its unix socket, whose mode lets in its owner and root alone, is an operator;
elsewhere a key says who asks: ``read-only`` may look, ``operator`` may do the rest.
"""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

import router
from router.errors import ErrorKind, RequestError
from router.hosts.standing import condition
from router.ingress.route import Route
from router.ingress.server import HttpServer
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import Config
    from router.hosts.host import Host
    from router.http1 import Head
    from router.ingress.access import HttpAccess
    from router.ingress.http import ClientConnection
    from router.keys.account import Account
    from router.keys.registry import Registry
    from router.loop import Loop

SCHEMA: Final = "ringrouter.admin/1"
_CONNECTIONS_MAX: Final = 64
"""Beside those of ``limits.connections``, so that an operator gets in when clients have taken all of them."""
_BODY_BYTES_MAX: Final = 64 * 1024
_PREFIX: Final = b"/v1/ringrouter/"
_JSON: Final = b"application/json"
_encode: Final = msgspec.json.Encoder().encode


class AdminServer(HttpServer):
    """Answers operators. ``reload`` begins to read the configuration again, ``log`` says who has done what."""

    def __init__(self, config: Config, loop: Loop, *, reload: Callable[[], None], log: Any) -> None:
        super().__init__(config, loop)
        self.registry: Registry | None = None
        self.reload_error = ""
        """Why the last configuration was not taken over, empty when it was."""
        self._reload = reload
        self._log = log

    def configure(self, config: Config, access: HttpAccess | None = None) -> None:
        """Take over limits, time-outs and keys."""
        super().configure(config, access)
        self.limits = msgspec.structs.replace(config.limits, body_bytes=_BODY_BYTES_MAX, connections=_CONNECTIONS_MAX)

    def accept(self, connection: ClientConnection) -> bool:
        """Count a new connection; false when there are too many."""
        self.connections.add(connection)
        self._connection_count += 1
        connection.number = self._connection_count
        self._idle[connection] = monotonic_ns()
        return len(self.connections) <= _CONNECTIONS_MAX

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._reading.discard(connection)
        self._idle.pop(connection, None)
        self._lingering.pop(connection, None)

    def route(self, head: Head) -> Route:
        """Return what a head says. Nothing here goes to a host."""
        route: Route = super().route(head)
        route.endpoint = route.refusal = route.body_refusal = None
        return route

    def handle(self, connection: ClientConnection, head: Head, body: bytes) -> None:  # noqa: ARG002 - none has a body
        """Answer one request."""
        route: Route = head.route or self.route(head)
        try:
            status, answer = self._answer(connection, head, route)
        except RequestError as error:
            self._refuse(connection, head, error)
            return
        connection.answer(status, _JSON, _encode(answer), head_only=head.method == b"HEAD")
        connection.end()
        self.answered(connection)

    # ------------------------------------------------------------ who asks
    def _check(self, connection: ClientConnection, route: Route, *, changes: bool) -> str:
        """Return who asks; raises :class:`RequestError` unless it may."""
        account: Account | None = route.account
        if account is None:
            if connection.peer_address() == "unix" and not route.has_key:
                return "unix"
            text = "the key is not known here" if route.has_key else "no key was given: `authorization: Bearer KEY`"
            raise RequestError(ErrorKind.UNAUTHORIZED, text)
        if not (account.may_operate if changes else account.may_look):
            what = "change" if changes else "see"
            text = f"key {account.name!r} may not {what} the state of the router (its role is {account.config.role})"
            raise RequestError(ErrorKind.FORBIDDEN, text)
        return account.name

    # ------------------------------------------------------------ what is answered
    def _answer(self, connection: ClientConnection, head: Head, route: Route) -> tuple[int, dict[str, Any]]:
        path = route.path
        if path == b"/health":
            return 200, {"status": "ok"}
        action = path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else b""
        parts = action.split(b"/")
        changes = action == b"reload" or parts[0] == b"hosts"
        who = self._check(connection, route, changes=changes)
        known = action in {b"status", b"keys", b"reload"} or path == b"/ready"
        if not known and not (len(parts) == 3 and parts[0] == b"hosts" and parts[2] in {b"drain", b"undrain"}):
            raise RequestError(ErrorKind.NOT_FOUND, f"there is nothing at {path[:200].decode('latin-1')}")
        if head.method not in ({b"POST"} if changes else {b"GET", b"HEAD"}):
            wanted = "POST" if changes else "GET"
            raise RequestError(ErrorKind.METHOD_NOT_ALLOWED, f"{path.decode('latin-1')} takes {wanted}")
        if action == b"reload":
            self._log.info("reload asked for", by=who)
            self._reload()
            return 202, {"schema": SCHEMA, "status": "reloading"}
        if changes:
            return 200, self._hold(unquote(parts[1].decode("latin-1")), holds=parts[2] == b"drain", who=who)
        if action == b"keys":
            return 200, {"schema": SCHEMA, "keys": self._keys()}
        return 200 if action == b"status" or self.ready() else 503, self._status()

    def _hold(self, name: str, *, holds: bool, who: str) -> dict[str, Any]:
        """Take a host out of service or put it back; a reload leaves it so."""
        host = next((host for host in self.loop.hosts if host.name == name and not host.removed), None)
        if host is None:
            known = ", ".join(sorted(host.name for host in self.loop.hosts))
            raise RequestError(ErrorKind.NOT_FOUND, f"{name[:100]!r} is not a host here (hosts: {known})")
        now = monotonic_ns()
        host.held = holds
        drains = holds or host.config.drain
        if drains != host.drains:
            self.loop.recovery.drain(host, drains=drains, now=now)
            if holds:
                self._log.info("host held", host=name, by=who)
            else:
                self._log.info("host no longer held", host=name, by=who)
        return {"schema": SCHEMA, **self._host(host, now)}

    def _keys(self) -> list[dict[str, Any]]:
        now = monotonic_ns()
        return [account.usage(now) for account in self.registry.accounts()] if self.registry is not None else []

    def _status(self) -> dict[str, Any]:
        loop, now, get = self.loop, monotonic_ns(), self._counters.get
        return {
            "schema": SCHEMA,
            "version": router.__version__,
            "pid": os.getpid(),
            "status": "stopping" if loop.stopping else "ready" if self.ready() else "not ready",
            "in_flight": len(loop.in_flight),
            "waiting": loop.waiting_count,
            "connections": get(Counter.CONNECTIONS_OPEN),
            "hosts": [self._host(host, now) for host in loop.hosts],
            "models": {name: {"waiting": model.waiting.size} for name, model in sorted(loop.models.items())},
            "config": {
                "reloads": get(Counter.CONFIG_RELOADS),
                "reload_errors": get(Counter.CONFIG_RELOAD_ERRORS),
                "last_error": self.reload_error or None,
            },
        }

    @staticmethod
    def _host(host: Host, now: int) -> dict[str, Any]:
        return {
            "host": host.name,
            "kind": host.kind,
            "condition": condition(host, now),
            "held": host.held,
            "running": host.running,
            "slots": host.slots,
            "models": sorted(host.models),
        }
