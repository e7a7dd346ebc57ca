"""One delivery to one sink, and what came of it. Nothing here tries twice or remembers anything.

What a message or a log line says of a sink is its host and port: the rest of a URL may be a secret, and so may be
headers. Redirects are not followed, for they would carry the headers elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
from msgspec.structs import replace

from router.config import AlertSink
from router.errors import ConfigError
from router.observer.alerts import bodies, text
from router.observer.alerts.ledger import Event
from router.observer.alerts.model import Alert, Severity

ALERTMANAGER_PATH: Final = "/api/v2/alerts"
RESENDS_UNTIL_END: Final = 4
"""An alert that Alertmanager is told of no more ends there after as many times of ``resend_s``."""
REPLY_BYTES_MAX: Final = 200
HEADER_BYTES_MAX: Final = 8192
REFUSING_STATUSES: Final = frozenset({400, 413, 415, 422})
"""The message itself is not taken, and would not be the next time. All else may pass: a wrong key, too, is mended."""
_MS_NS: Final = 1_000_000
_NS: Final = 1_000_000_000


class Reply(NamedTuple):
    """What came of a delivery."""

    is_taken: bool
    is_refused: bool
    """The sink understands us and does not want this message."""
    text: str
    """``200 in 12 ms``, or what went wrong, in one line without secrets."""


class Sink(Protocol):
    """Where alerts go."""

    config: AlertSink
    target: str
    """What may be shown of its address."""

    async def send(self, event: Event, alerts: Sequence[Alert]) -> Reply:
        """Deliver alerts once. Never raises for what a network or a server does."""

    async def close(self) -> None:
        """Let go of connections."""


class HttpSink:
    """An Alertmanager or a webhook. Raises :class:`ConfigError` when a header's value is not to be had."""

    def __init__(self, config: AlertSink, base_url: str, resend_s: float) -> None:
        self.config = config
        parts = urlsplit(config.url)
        self.target = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._base_url = base_url
        self._resend_s = resend_s
        self._url = config.url.rstrip("/") + ALERTMANAGER_PATH if config.kind == "alertmanager" else config.url
        self._headers = {**config.headers, **_from_environment(config)}
        self._tls = _tls(config)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, event: Event, alerts: Sequence[Alert]) -> Reply:  # noqa: ARG002 - times say the same
        """Deliver alerts once; of a webhook only one at a time."""
        begin_ns = time.monotonic_ns()
        if self.config.kind == "alertmanager":
            until_ns = time.time_ns() + round(RESENDS_UNTIL_END * self._resend_s * _NS)
            body = bodies.alertmanager(alerts, self._base_url, until_ns)
        else:
            (alert,) = alerts
            body = bodies.webhook(alert, self.config.name, self._base_url)
        try:
            reply = await self._post(body)
        except TimeoutError:
            return Reply(is_taken=False, is_refused=False, text=f"no answer in {self.config.timeout_s:g} s")
        except (OSError, aiohttp.ClientError, ValueError) as error:
            return Reply(is_taken=False, is_refused=False, text=_reason(error))
        took_ns = time.monotonic_ns() - begin_ns
        return reply._replace(text=f"{reply.text} in {text.duration(took_ns)}") if reply.is_taken else reply

    async def _post(self, body: bytes) -> Reply:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self.config.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        headers = {**self._headers, **await asyncio.to_thread(_from_files, self.config)}
        headers["content-type"] = "application/json"
        async with self._session.post(
            self._url, data=body, headers=headers, ssl=self._tls, allow_redirects=False
        ) as response:
            said = await response.content.read(REPLY_BYTES_MAX)
            if 200 <= response.status < 300:
                return Reply(is_taken=True, is_refused=False, text=str(response.status))
            return Reply(
                is_taken=False,
                is_refused=response.status in REFUSING_STATUSES,
                text=self._told(response.status, said),
            )

    def _told(self, status: int, said: bytes) -> str:
        """Return a status and what Alertmanager says to it; others may repeat their URL."""
        words = "".join(char for char in said.decode("utf-8", "replace") if char.isprintable()).strip()
        return f"{status}: {words}" if words and self.config.kind == "alertmanager" else f"status {status}"

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class LogSink:
    """One line of the log for each alert, its fields beside it."""

    target = "log"

    def __init__(self, config: AlertSink, log: Any) -> None:
        self.config = config
        self._log = log

    async def send(self, event: Event, alerts: Sequence[Alert]) -> Reply:
        """Write alerts to the log; that always succeeds."""
        for alert in alerts:
            labels = bodies.labels_of(alert)
            say = {Severity.PAGE: self._log.error, Severity.TICKET: self._log.warning, Severity.INFO: self._log.info}
            say_it = self._log.info if event == "resolved" else say[alert.finding.severity]
            say_it(
                f"alert {event}",
                alert=labels.pop("alertname"),
                labels=labels,
                fingerprint=alert.fingerprint,
                what=text.sentence(alert),
                details=text.lines(alert) if event != "resolved" else [],
            )
        return Reply(is_taken=True, is_refused=False, text="written")

    async def close(self) -> None:
        """Do nothing: the log stays."""


def make_sink(config: AlertSink, base_url: str, resend_s: float, log: Any) -> Sink:
    """Return the sink of an entry of the configuration; raises :class:`ConfigError`."""
    return LogSink(config, log) if config.kind == "log" else HttpSink(config, base_url, resend_s)


def with_severity(alert: Alert, severity: Severity) -> Alert:
    """Return an alert as it was when it was less severe, or more."""
    return replace(alert, finding=replace(alert.finding, severity=severity))


# ---------------------------------------------------------------- secrets
def _from_environment(config: AlertSink) -> dict[str, str]:
    found = {}
    for name, variable in config.headers_env.items():
        value = os.environ.get(variable)
        if not value:
            raise ConfigError(
                f"observer.alerts.sinks ({config.name}).headers_env.{name}: expected the name of an environment "
                "variable that is set for the observer"
            )
        try:
            found[name] = _checked(value, name)
        except ValueError as error:
            raise ConfigError(f"observer.alerts.sinks ({config.name}): {error}") from None
    return found


def _from_files(config: AlertSink) -> dict[str, str]:
    """Read headers from their files; OSError and ValueError name the header, never what it holds."""
    found = {}
    for name, path in config.headers_file.items():
        try:
            with Path(path).open("rb") as file:
                raw = file.read(HEADER_BYTES_MAX)
        except OSError as error:
            raise ValueError(f"the file of header {name} cannot be read: {error.strerror}") from None
        found[name] = _checked(raw.decode("utf-8", "replace").strip(), name)
    return found


def _checked(value: str, name: str) -> str:
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError(f"header {name}: expected one line of printable ASCII")
    return value


def _tls(config: AlertSink) -> ssl.SSLContext | bool:
    if not config.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"observer.alerts.sinks ({config.name}).ca_file: {error.strerror or error}") from None


def _reason(error: Exception) -> str:
    """Say why nothing came back. aiohttp's own texts hold URLs, so only those of the system are shown."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not good: {error.certificate_error.args[-1]}"
    os_error = getattr(error, "os_error", error)
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return str(error)
    number = getattr(os_error, "errno", None)
    said = os.strerror(number) if number is not None and number > 0 else getattr(os_error, "strerror", None)
    return str(said).lower() if said else f"the connection failed ({type(error).__name__})"
