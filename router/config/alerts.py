"""The sections of the observer's alerts: when they fire and where they are delivered."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between, named
from router.config.endpoints import HEADER_TABLES, HeadersByVariable, certificates, check_headers, header_table, is_http
from router.config_schema import shown
from router.errors import ConfigError


class AlertSink(Section, frozen=True):
    """`[[observer.alerts.sinks]]`: where alerts are delivered. Without any they are written to the log."""

    name: Annotated[str, named("What it is called in `/alerts.json` and in messages.")]
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
    headers: Annotated[dict[str, str], header_table("Headers of each request, never shown.")] = msgspec.field(
        default_factory=dict
    )
    headers_env: HeadersByVariable = msgspec.field(default_factory=dict)
    headers_file: Annotated[
        dict[str, str],
        header_table("The same, with the file that holds the value; it is read each time, so that it may change."),
    ] = msgspec.field(default_factory=dict)
    ca_file: Annotated[str, certificates("server")] = ""
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
    spool_bytes: Annotated[
        int, between(65_536, 1 << 40, "Their size, for each sink; the file has what is gone too, up to half as much.")
    ] = 16 << 20
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
        given = [name for name in ("url", *HEADER_TABLES, "ca_file") if getattr(sink, name)]
        if given:
            raise ConfigError(f"{key}.{given[0]} (not shown): a sink of kind log has none")
        return
    if not is_http(sink.url):
        raise ConfigError(f"{key}.url (not shown): expected http:// or https:// with a host, for kind {sink.kind}")
    if sink.ca_file and urlsplit(sink.url).scheme != "https":
        raise ConfigError(f"{key}.ca_file = {shown(sink.ca_file)}: expected a url with https:// beside it")
    check_headers(sink, key)
