"""The observer's HTTP side: ``/metrics`` for Prometheus, ``/state.json`` for ``ringrouter top``, ``/healthz``.

It has no keys. At a loopback address it answers only to names that mean this machine: a page in a browser can make its
own name point here, and must not read what users did.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
from aiohttp import web

from router import config
from router.errors import ConfigError
from router.ingress.unix_path import make_free
from router.observer.alerts.courier import TestReply
from router.observer.alerts.desk import AlertsPage
from router.observer.client import ASKED_HEADER
from router.observer.slo.status import SloPage
from router.observer.state import WINDOWS_S, State
from router.observer.traces.page import TooManySearchesError, TracePage

DEFAULT_WINDOW_S: Final = 60.0
_CLOSE_S: Final = 1.0

_INDEX: Final = """\
ringrouter observe

/metrics      for Prometheus
/state.json   the numbers of one window; ?window=10|60|600|3600 and ?by=TAG; `ringrouter top` shows them
/alerts.json  alerts that fire, and those that did; `ringrouter slo alerts` shows them
/slo.json     objectives: budget, burn rates, state; ?name=SLO; `ringrouter slo` shows them
/traces/ID.json   the spans of a request, by request id or trace id; `ringrouter trace ID` draws them
/healthz      is it doing its work?
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Condition(msgspec.Struct, frozen=True):
    """The answer of ``/healthz``."""

    status: str
    """``ok``, or ``degraded`` while something is lost or cannot be written; either way it is best left running."""
    reasons: list[str]


class Answers(Protocol):
    """Where the answers come from."""

    @property
    def slice_names(self) -> Sequence[str]:
        """What can be asked for by ``?by=``."""

    def state(self, window_s: float, by: str) -> State:
        """Return the numbers of the last ``window_s`` seconds, with the slices of ``by`` (empty: the first entry)."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the body of ``/metrics`` and its content type, in the format that an ``accept`` header asks for."""

    def alerts(self, fingerprint: str) -> AlertsPage | None:
        """Return what fires and what did, with ``fingerprint`` only that; ``None`` without alerts."""

    async def test_alert(self, sink: str) -> list[TestReply]:
        """Send a test alert to all sinks or to one; raises ValueError for one that there is not."""

    def slo(self, name: str) -> SloPage:
        """Return how the objectives fare, with ``name`` only that one; raises ValueError for one that there is not."""

    async def trace(self, identity: str) -> TracePage | None:
        """Return the requests with a request id or a trace id, with their spans; ``None`` where none is found."""

    def health(self) -> Condition:
        """Return how the observer is doing."""


class WebServer:
    """Listens at one address until it is closed."""

    def __init__(self, answers: Answers, address: str) -> None:
        self._answers = answers
        self._place = config.split_address(address, "observer.http")
        checks = [] if isinstance(self._place, str) or not is_loopback(self._place[0]) else [_only_local_names]
        app = web.Application(middlewares=checks)
        app.router.add_get("/", _index)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/state.json", self._state)
        app.router.add_get("/alerts.json", self._alerts)
        app.router.add_post("/alerts/test", self._test_alert)
        app.router.add_get("/slo.json", self._slo)
        app.router.add_get("/traces/{id:.+}.json", self._trace)
        app.router.add_get("/healthz", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S)

    async def listen(self) -> str:
        """Begin to answer; return the address with the port that was taken. Raises :class:`ConfigError`."""
        await self._runner.setup()
        try:
            if isinstance(self._place, str):
                return await self._listen_unix(self._place)
            host, port = self._place
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"observer.http = {_spelt(self._place)}: {error.strerror or error}") from None
        return _spelt((host, self._runner.addresses[0][1]))

    async def _listen_unix(self, path: str) -> str:
        make_free(path)
        await web.UnixSite(self._runner, path).start()
        Path(path).chmod(0o600)
        return _spelt(path)

    async def close(self) -> None:
        """Stop answering."""
        await self._runner.cleanup()
        if isinstance(self._place, str):
            Path(self._place).unlink(missing_ok=True)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._answers.metrics(request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _state(self, request: web.Request) -> web.Response:
        try:
            window_s = _window_s(request.query.get("window"))
            by = self._by(request.query.get("by", ""))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return _json(self._answers.state(window_s, by))

    def _by(self, name: str) -> str:
        if name and name not in self._answers.slice_names:
            raise ValueError(f"by={name[:80]}: expected one of {'; '.join(self._answers.slice_names) or 'no slices'}")
        return name

    async def _alerts(self, request: web.Request) -> web.Response:
        page = self._answers.alerts(request.query.get("fingerprint", ""))
        if page is None:
            return web.Response(status=404, text="there are no alerts: observer.alerts.enabled is false\n")
        return _json(page)

    async def _test_alert(self, request: web.Request) -> web.Response:
        if ASKED_HEADER not in request.headers:  # which a page of another site cannot send without being allowed to
            return web.Response(status=403, text=f"expected the header {ASKED_HEADER}\n")
        try:
            return _json(await self._answers.test_alert(request.query.get("sink", "")))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")

    async def _slo(self, request: web.Request) -> web.Response:
        try:
            return _json(self._answers.slo(request.query.get("name", "")))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")

    async def _trace(self, request: web.Request) -> web.Response:
        identity = request.match_info["id"]
        try:
            page = await self._answers.trace(identity)
        except TooManySearchesError:
            return web.Response(status=503, headers={"retry-after": "1"}, text="too many traces are being looked for\n")
        if page is None:
            return web.Response(status=404, text=f"no request with the id {identity[:80]!r} is kept\n")
        return _json(page)

    async def _health(self, _: web.Request) -> web.Response:
        return _json(self._answers.health())


async def _index(_: web.Request) -> web.Response:
    return web.Response(text=_INDEX)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _window_s(text: str | None) -> float:
    if text is None:
        return DEFAULT_WINDOW_S
    for window_s in WINDOWS_S:
        if text == f"{window_s:g}":
            return window_s
    raise ValueError(f"window={text[:80]}: expected one of {', '.join(f'{window_s:g}' for window_s in WINDOWS_S)}")


def _spelt(place: tuple[str, int] | str) -> str:
    if isinstance(place, str):
        return f"unix:{place}"
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@web.middleware
async def _only_local_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not _is_local_name(request.host):
        return web.Response(status=403, text="this address answers only to localhost and to addresses in numbers\n")
    return await handler(request)


def _is_local_name(host_header: str) -> bool:
    name = host_header.rpartition(":")[0] if host_header.rpartition(":")[2].isdigit() else host_header
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    return True
