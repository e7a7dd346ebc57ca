"""The section of the observer's traces: where they are exported, and which of them are kept."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between
from router.config.endpoints import HeadersByVariable, certificates, check_headers, header_table, is_http
from router.config_schema import shown
from router.errors import ConfigError

_RESOURCE_MAX: Final = 32


class TracesConfig(Section, frozen=True):
    """`[observer.traces]`: what happened to each request, as spans for a tracing system (docs/traces.md)."""

    endpoint: Annotated[
        str,
        Meta(
            extra={"allowed": "`http://` or `https://`, or nothing"},
            description="Where spans are sent to as OTLP over HTTP, the whole address, e.g. "
            "`http://127.0.0.1:4318/v1/traces`. Empty: nowhere, and hosts are told the caller's `traceparent` "
            "unchanged; else they are told the span of the attempt.",
        ),
    ] = ""
    headers: Annotated[dict[str, str], header_table("Headers of each export, never shown.")] = msgspec.field(
        default_factory=dict
    )
    headers_env: HeadersByVariable = msgspec.field(default_factory=dict)
    headers_file: Annotated[
        dict[str, str], header_table("The same, with the file that holds the value, read at the start.")
    ] = msgspec.field(default_factory=dict)
    ca_file: Annotated[str, certificates("endpoint")] = ""
    compression: Annotated[Literal["gzip", "none"], Meta(description="Of each export.")] = "gzip"
    timeout_s: Annotated[float, above_zero(120, "The longest that one export may take, tries included.")] = 10.0
    sample_ratio: Annotated[
        float,
        between(
            0, 1, "Share of the requests that are kept whatever they were like, where their caller did not decide."
        ),
    ] = 0.1
    keep_slowest: Annotated[
        int, between(0, 100, "The slowest requests of every ten seconds are kept as well: this many.")
    ] = 1
    kept_count: Annotated[
        int,
        between(100, 1_000_000, "Traces of the last hour that the observer holds, 3 KiB each, for `ringrouter trace`."),
    ] = 4096
    spool_bytes: Annotated[
        int,
        between(
            65_536, 1 << 40, "Size on disk of what waits while the endpoint fails; over it the oldest are dropped."
        ),
    ] = 64 << 20
    user_id: Annotated[
        Literal["hash", "plain", "off"],
        Meta(description="How the tag `user_id` is exported: as a keyed hash, as it is, or not at all."),
    ] = "hash"
    user_id_key_env: Annotated[
        str,
        Meta(
            pattern=r"\A([A-Za-z_][A-Za-z0-9_]*)?\Z",
            extra={"allowed": "the name of an environment variable or nothing"},
            description="Variable with the key of the hash, for several machines to make the same. Empty: a key of "
            "this machine's own, made once in `observer.data_dir`.",
        ),
    ] = ""
    service_name: Annotated[
        str, Meta(min_length=1, max_length=255, description="What the spans are of (`service.name`).")
    ] = "ringrouter"
    resource: Annotated[
        dict[str, str],
        Meta(
            max_length=_RESOURCE_MAX,
            description='Further attributes of the resource, e.g. `{ "deployment.environment.name" = "production" }`.',
        ),
    ] = msgspec.field(default_factory=dict)


def check_traces(traces: TracesConfig) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`, never with a URL or a header's value."""
    key = "observer.traces"
    if traces.endpoint and not is_http(traces.endpoint):
        raise ConfigError(f"{key}.endpoint (not shown): expected http:// or https:// with a host")
    if traces.ca_file and not traces.endpoint.startswith("https:"):
        raise ConfigError(f"{key}.ca_file = {shown(traces.ca_file)}: expected an endpoint with https:// beside it")
    check_headers(traces, key)
    for name in traces.resource:
        if name in {"service.name", "service.version", "service.instance.id"}:
            raise ConfigError(f"{key}.resource.{name}: expected other attributes, this one is the observer's own")
