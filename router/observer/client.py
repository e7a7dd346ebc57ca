"""Asks a running observer over HTTP: for the commands that show what it knows."""

from __future__ import annotations

import http.client
import socket
from typing import Final
from urllib.parse import quote

import msgspec

from router import config
from router.observer.state import SCHEMA, State

TIMEOUT_S: Final = 5.0
BODY_BYTES_MAX: Final = 16 << 20
ASKED_HEADER: Final = "x-ringrouter-asked"
"""With it a request that does something says that it comes from no web page: those must be allowed to send it."""
ERROR_BYTES_MAX: Final = 1000
"""Of an error that is shown: enough for the names of all slices."""


class ObserverError(Exception):
    """The observer does not answer, or not as one; the message says where and why, in one line."""


class NotFoundError(ObserverError):
    """The observer has nothing by that name."""


class RefusedError(ObserverError):
    """The observer does not know what it was asked for: a window or a tag that it does not have."""


_ERRORS: Final[dict[int, type[ObserverError]]] = {
    http.client.BAD_REQUEST: RefusedError,
    http.client.NOT_FOUND: NotFoundError,
}


def state(address: str, *, window_s: float | None = None, by: str = "") -> State:
    """Return the state that the observer at ``address`` has now; raises :class:`ObserverError`."""
    body = get(address, state_path(window_s, by))
    try:
        schema = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("schema", msgspec.Raw(b'""'))
        found = msgspec.json.decode(schema)
        if found != SCHEMA:
            raise ObserverError(f"{shown(address)} answers with schema {found!r}: expected {SCHEMA!r}")
        return msgspec.json.decode(body, type=State)
    except msgspec.DecodeError as error:
        raise ObserverError(f"{shown(address)} answers, but not as an observer: {error}") from None


def state_path(window_s: float | None, by: str) -> str:
    """Return the path of ``/state.json`` with its options."""
    options = [f"window={window_s:g}"] if window_s is not None else []
    options += [f"by={quote(by, safe=',', errors='replace')}"] if by else []
    return "/state.json" + ("?" + "&".join(options) if options else "")


def slo_path(name: str) -> str:
    """Return the path of ``/slo.json``, with the name of one objective."""
    return "/slo.json" + (f"?name={quote(name, errors='replace')}" if name else "")


def get(address: str, path: str) -> bytes:
    """Return the body of a 200 answer; raises :class:`ObserverError`, for a 400 :class:`RefusedError`."""
    return _ask(address, "GET", path, TIMEOUT_S)


def post(address: str, path: str, timeout_s: float = TIMEOUT_S) -> bytes:
    """Return the answer to something that the observer is asked to do; raises as :func:`get`."""
    return _ask(address, "POST", path, timeout_s)


def _ask(address: str, method: str, path: str, timeout_s: float) -> bytes:
    connection = _connection(address, timeout_s)
    try:
        connection.request(method, path, headers={ASKED_HEADER: "1"} if method == "POST" else {})
        response = connection.getresponse()
        body = response.read(BODY_BYTES_MAX)
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # UnicodeError: no name of a host
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ObserverError(
            f"no observer answers at {shown(address)} ({reason}); `ringrouter observe` starts one"
        ) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        text = body[:ERROR_BYTES_MAX].decode("utf-8", "replace").strip()
        kind = _ERRORS.get(response.status, ObserverError)
        raise kind(f"{shown(address)} answers {response.status} to {path}: {text}")
    return body


def shown(address: str) -> str:
    """Return an address as a user can open it."""
    return address if address.startswith("unix:") else f"http://{address}"


def _connection(address: str, timeout_s: float) -> http.client.HTTPConnection:
    place = config.split_address(address, "address")
    if not isinstance(place, str):
        host, port = place
        return http.client.HTTPConnection(reachable(host), port, timeout=timeout_s)
    return _UnixConnection(place, timeout_s)


def reachable(host: str) -> str:
    """Return an address that reaches a listener on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)
