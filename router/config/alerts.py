"""The sections of the observer's alerts: when they fire and where they are delivered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from router.config.base import NAME, NAME_ALLOWED, Section, above_zero, between
from router.config_schema import shown
from router.errors import ConfigError

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
"""The name of a header (RFC 9110 §5.6.2)."""
_RESERVED_HEADERS: Final = frozenset({"content-type", "content-length", "host", "transfer-encoding", "connection"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADERS_MAX: Final = 16


class AlertSink(Section, frozen=True):
    """`[[observer.alerts.sinks]]`: where alerts are delivered. Without any they are written to the log."""

    name: Annotated[
        str, Meta(pattern=NAME, extra=NAME_ALLOWED, description="What it is called in `/alerts.json` and in messages.")
    ]
    kind: Annotated[
        Literal["alertmanager", "webhook", "log"],
        Meta(
            description="`alertmanager`: its API v2; `webhook`: a body as Alertmanager sends to receivers (version 4); "
            "`log`: one line of the observer's log."
        ),
    ]
    url: Annotated[
        str,
        Meta(
            extra={"allowed": "`http://` or `https://`, or nothing for `log`"},
            description="Of `alertmanager` the address before `/api/v2/alerts`; of `webhook` the whole address. It may "
            "hold a secret and is never shown: messages name only the host.",
        ),
    ] = ""
    headers: Annotated[
        dict[str, str], Meta(max_length=_HEADERS_MAX, description="Headers of each request, never shown.")
    ] = msgspec.field(default_factory=dict)
    headers_env: Annotated[
        dict[str, str],
        Meta(max_length=_HEADERS_MAX, description="The same, with the environment variable that holds the value."),
    ] = msgspec.field(default_factory=dict)
    headers_file: Annotated[
        dict[str, str],
        Meta(
            max_length=_HEADERS_MAX,
            description="The same, with the file that holds the value; it is read each time, so that it may change.",
        ),
    ] = msgspec.field(default_factory=dict)
    ca_file: Annotated[
        str,
        Meta(
            pattern=r"\A(/.*)?\Z",
            extra={"allowed": "an absolute path or nothing"},
            description="Certificates (PEM) that an `https` server is checked by, in place of the system's.",
        ),
    ] = ""
    timeout_s: Annotated[float, above_zero(120, "The longest that one delivery may take.")] = 10.0
    severity: Annotated[
        Literal["page", "ticket", "info"], Meta(description="Alerts below this severity are not delivered here.")
    ] = "info"


class AlertsConfig(Section, frozen=True):
    """`[observer.alerts]`: alerts about objectives, regressions, hosts, routers and the observer itself."""

    enabled: Annotated[bool, Meta(description="Look for them and deliver them.")] = True
    resolve_after: Annotated[
        int, between(1, 1000, "Evaluations (every 10 s) without a finding until its alert is resolved.")
    ] = 3
    resend_s: Annotated[
        float, between(1, 3600, "How often Alertmanager is told again of what fires; it forgets after four of them.")
    ] = 60.0
    retry_s: Annotated[
        float, between(0.01, 3600, "The longest pause before the next try at a sink that fails; it begins at 1 s.")
    ] = 60.0
    spool_count: Annotated[
        int, between(1, 100_000, "Messages kept on disk for each sink that fails; over it the oldest are dropped.")
    ] = 1000
    spool_bytes: Annotated[int, between(65_536, 1 << 40, "Their size on disk, for each sink.")] = 16 << 20
    external_url: Annotated[
        str,
        Meta(
            extra={"allowed": "`http://` or `https://`, or nothing"},
            description="Where people reach the observer, for links in alerts. Empty: `observer.http`.",
        ),
    ] = ""
    sinks: list[AlertSink] = msgspec.field(default_factory=list)


def check_alerts(alerts: AlertsConfig) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`, never with a URL or a header's value."""
    if alerts.external_url and not is_http(alerts.external_url):
        raise ConfigError("observer.alerts.external_url (not shown): expected http:// or https:// with a host")
    seen: dict[str, int] = {}
    for index, sink in enumerate(alerts.sinks):
        key = f"observer.alerts.sinks[{index}]"
        if sink.name in seen:
            raise ConfigError(
                f"{key}.name = {shown(sink.name)}: expected names that differ, "
                f"observer.alerts.sinks[{seen[sink.name]}] has it too"
            )
        seen[sink.name] = index
        _check_sink(sink, key)


def _check_sink(sink: AlertSink, key: str) -> None:
    if sink.kind == "log":
        given = [name for name in ("url", "headers", "headers_env", "headers_file", "ca_file") if getattr(sink, name)]
        if given:
            raise ConfigError(f"{key}.{given[0]} (not shown): a sink of kind log has none")
        return
    if not is_http(sink.url):
        raise ConfigError(f"{key}.url (not shown): expected http:// or https:// with a host, for kind {sink.kind}")
    if sink.ca_file and urlsplit(sink.url).scheme != "https":
        raise ConfigError(f"{key}.ca_file = {shown(sink.ca_file)}: expected a url with https:// beside it")
    check_headers({table: getattr(sink, table) for table in ("headers", "headers_env", "headers_file")}, key)


def check_headers(tables: Mapping[str, Mapping[str, str]], key: str) -> None:
    """Check the headers of a section, by the key that they stand under; raises :class:`ConfigError`, never with a
    value.
    """
    named: set[str] = set()
    for table, headers in tables.items():
        for name, value in headers.items():
            if not _TOKEN.fullmatch(name) or name.lower() in _RESERVED_HEADERS:
                raise ConfigError(f"{key}.{table}: expected names of headers, {shown(name)} cannot be one")
            if name.lower() in named:
                raise ConfigError(f"{key}.{table}.{name}: the header stands twice")
            named.add(name.lower())
            _check_value(value, f"{key}.{table}.{name}", table)


def _check_value(value: str, key: str, table: str) -> None:
    """Check a header's value, or where it is found. Nothing of it is shown: it may be the secret itself."""
    if table == "headers_env" and not _VARIABLE.fullmatch(value):
        raise ConfigError(f"{key} (not shown): expected the name of an environment variable")
    if table == "headers_file" and not value.startswith("/"):
        raise ConfigError(f"{key} (not shown): expected an absolute path")
    if table == "headers" and not (value.isascii() and value.isprintable()):
        raise ConfigError(f"{key} (not shown): expected printable ASCII")


def is_http(url: str) -> bool:
    """Return whether a URL can be asked over HTTP."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not any(c.isspace() for c in url)
