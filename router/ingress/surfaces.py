"""What clients and operators connect to: HTTP, the admin surface and ZeroMQ, and the keys that let them in."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from router.config import zeromq_endpoint
from router.errors import ConfigError
from router.ingress.http import ClientConnection
from router.ingress.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.caches.nearest import NearestFront
    from router.config import Config
    from router.ingress.access import HttpAccess
    from router.ingress.admin import AdminServer
    from router.ingress.zeromq.access import ZmqAccess
    from router.ingress.zeromq.server import ZmqServer
    from router.keys.registry import Registry
    from router.listeners import Listener, Listeners
    from router.loop import Loop


class Surfaces:
    """All ways into one router. Those but HTTP are there from :meth:`serve` on, where they are configured."""

    def __init__(self, config: Config, loop: Loop, log: Any, ready: Callable[[], bool]) -> None:
        """``ready`` tells whether every model can be served."""
        self._config = config
        self._loop = loop
        self._log = log
        self._ready = ready
        self._keys: Registry | None = None
        """Whose keys are whose; there is one since keys were configured first."""
        self.http = HttpServer(config, loop)
        self.http.configure(config, self._http_access())
        self.http.ready = ready
        self.admin: AdminServer | None = None
        self.zeromq: ZmqServer | None = None
        self.zeromq_endpoints: list[str] = []
        self._servers: list[asyncio.Server] = []

    def configure(self, config: Config) -> None:
        """Take over limits, time-outs and keys, for what begins from now on."""
        self._config = config
        access = self._http_access()
        self.http.configure(config, access)
        if self.admin is not None:
            self.admin.configure(config, access)
            self.admin.registry = self._keys
        if self.zeromq is not None:
            self.zeromq.access = self._zeromq_access()

    def note_reload(self, error: str) -> None:
        """Show operators why the last configuration was not taken over, empty when it was."""
        if self.admin is not None:
            self.admin.reload_error = error

    # ------------------------------------------------------------ life
    async def serve(self, listeners: Listeners, nearest: NearestFront | None, reload: Callable[[], None]) -> None:
        """Begin to accept; raises :class:`ConfigError`.

        ``nearest`` makes requests of questions for what is nearest, ``reload`` begins to read the configuration again.
        """
        uids = self._uids()
        self.http.nearest = nearest
        for listener in listeners.http:
            await self._serve_at(listener, self.http, uids)
        if listeners.admin:
            admin = self.admin = self._make_admin(reload)
            for listener in listeners.admin:
                await self._serve_at(listener, admin, uids)
        if listeners.zeromq or listeners.left_to_libzmq:
            self._serve_zeromq(listeners, nearest, uids)

    def check(self, now: int) -> bool:
        """Look after clients of all kinds; return whether one needs a closer look."""
        if self.zeromq is not None:
            self.zeromq.check(now)
        near = self.admin is not None and self.admin.check(now)
        return self.http.check(now) or near

    def stop_accepting(self) -> None:
        """Let no further HTTP client connect; those that have go on."""
        for server in self._servers:
            server.close()

    def close_after_answers(self) -> None:
        """End each HTTP connection with its next answer: another process serves its client from then on."""
        self.http.close_after_answers()
        if self.admin is not None:
            self.admin.close_after_answers()

    def close_idle(self) -> None:
        """End what waits for a next request, and let no further ZeroMQ client in: this router is about to end."""
        if self.zeromq is not None:
            self.zeromq.stop_listening()
        self.http.close_idle()

    def close(self) -> None:
        """End all connections."""
        for connection in [*self.http.connections, *(self.admin.connections if self.admin is not None else ())]:
            connection.close_idle()
        if self.zeromq is not None:
            self.zeromq.close()

    # ------------------------------------------------------------ keys
    def _http_access(self) -> HttpAccess | None:
        """Take over the keys of the configuration; return what asks for them, ``None`` where there are none."""
        config = self._config
        if (config.keys or config.listen.has_curve) and self._keys is None:
            from router.keys.registry import Registry  # noqa: PLC0415 - only who has keys configured loads it

            self._keys = Registry(self._loop.telemetry, self._log)
        if self._keys is not None:
            self._keys.configure(config)
        if self._keys is None or not config.keys:
            return None
        from router.ingress.access import HttpAccess  # noqa: PLC0415 - the same

        return HttpAccess(self._keys, config)

    def _zeromq_access(self) -> ZmqAccess | None:
        """Return what asks ZeroMQ clients for their keys, ``None`` where there are none."""
        if self._keys is None or not self._config.keys:
            return None
        from router.ingress.zeromq.access import ZmqAccess  # noqa: PLC0415 - only who has keys configured loads it

        return ZmqAccess(self._keys)

    def _uids(self) -> frozenset[int]:
        """Return the users that may connect to unix sockets, none where the mode of the file decides."""
        if not self._config.listen.unix_users:
            return frozenset()
        from router.ingress.peers import allowed_uids  # noqa: PLC0415 - only who has it configured loads it

        return allowed_uids(self._config)

    # ------------------------------------------------------------ HTTP
    async def _serve_at(self, listener: Listener, server: HttpServer, uids: frozenset[int]) -> None:
        event_loop = asyncio.get_running_loop()
        client: Callable[[], ClientConnection] = partial(ClientConnection, server)
        start = event_loop.create_server
        if listener.where.startswith("unix:"):
            start = event_loop.create_unix_server  # type: ignore[assignment]
            if uids:
                from router.ingress.peers import CheckedConnection  # noqa: PLC0415 - only who has it configured loads it

                client = partial(CheckedConnection, server, uids)
        # A descriptor of its own, so that the listener's is there to be handed over.
        self._servers.append(await start(client, sock=listener.sock.dup(), backlog=self._config.listen.backlog))

    def _make_admin(self, reload: Callable[[], None]) -> AdminServer:
        from router.ingress.admin import AdminServer  # noqa: PLC0415 - only who has it configured loads it

        admin = AdminServer(self._config, self._loop, reload=reload, log=self._log)
        admin.configure(self._config, self.http.access)
        admin.registry = self._keys
        admin.ready = self._ready
        return admin

    # ------------------------------------------------------------ ZeroMQ
    def _serve_zeromq(self, listeners: Listeners, nearest: NearestFront | None, uids: frozenset[int]) -> None:
        from router.ingress.zeromq.server import ZmqServer  # noqa: PLC0415 - only who uses ZeroMQ loads it

        server = self.zeromq = ZmqServer(
            self._loop,
            body_bytes_max=self._config.limits.body_bytes,
            backlog=self._config.listen.backlog,
            generation_ns=int(self._loop.telemetry.generation.path.name),
            models=self.http.models_page,
            other_connections=lambda: len(self.http.connections),
        )
        self.http.other_connections = lambda: server.connection_count
        self._guard_zeromq(server, uids)
        for listener in listeners.zeromq:
            self.zeromq_endpoints.append(server.adopt(listener.sock, listener.endpoint))
        for endpoint in listeners.left_to_libzmq:
            try:
                bound = server.bind(zeromq_endpoint(self._config, endpoint))
            except OSError as error:
                raise ConfigError(
                    f"listen.zeromq = {endpoint!r}: cannot listen there: {error.strerror or error}"
                ) from None
            self.zeromq_endpoints.append(bound)
        server.nearest = nearest
        server.start()

    def _guard_zeromq(self, server: ZmqServer, uids: frozenset[int]) -> None:
        """Have a server let in only whom the configuration lets in; raises :class:`ConfigError`."""
        server.access = self._zeromq_access()
        server.admit_users(uids)
        if not self._config.listen.has_curve:
            return
        from router.ingress.zeromq.access import ZmqAccess  # noqa: PLC0415 - only who has it configured loads it
        from router.ingress.zeromq.curve import read_keys  # noqa: PLC0415 - the same

        keys = read_keys(self._config)
        assert self._keys is not None, "there is a registry where there is CURVE"
        if keys is not None:
            server.encrypt(keys, server.access or ZmqAccess(self._keys))
