"""The sections of tool metadata: where tools come from and how requests name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between, path_or_nothing, variable_or_nothing
from router.config_schema import shown
from router.errors import ConfigError

_SOURCE_NAME: Final = r"\A[A-Za-z0-9_-]{1,32}\Z"
_ENVIRONMENT_NAME: Final = r"\A[A-Za-z_][A-Za-z0-9_]*\Z"

ToolPattern = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9_.*-]{1,128}\Z",
        extra={"allowed": "`SOURCE.TOOL`, 1 to 128 of `A-Za-z0-9_.-`, with `*` for any characters"},
    ),
]


class ToolSource(Section, frozen=True):
    """`[[cache.tools.sources]]`: a file of function schemas or an MCP server; one of `file`, `command`, `url`."""

    name: Annotated[
        str,
        Meta(
            pattern=_SOURCE_NAME,
            extra={"allowed": "1 to 32 of `A-Za-z0-9_-`"},
            description="Stands before the names of its tools: `NAME.TOOL` in requests.",
        ),
    ]
    file: Annotated[
        str,
        path_or_nothing("File of OpenAI function schemas, `.json` or `.toml`; read anew when it changes."),
    ] = ""
    command: Annotated[
        list[str], Meta(max_length=64, description="Program and arguments of an MCP server that speaks over stdio.")
    ] = msgspec.field(default_factory=list)
    url: Annotated[
        str,
        Meta(
            pattern=r"\A(https?://[!-~]+)?\Z",
            extra={"allowed": "`http://` or `https://` and what follows, or nothing"},
            description="Address of an MCP server that speaks streamable HTTP.",
        ),
    ] = ""
    env: Annotated[
        dict[Annotated[str, Meta(pattern=_ENVIRONMENT_NAME)], str],
        Meta(description="Variables of the environment of `command`, beside a few harmless ones of the keeper's own."),
    ] = msgspec.field(default_factory=dict)
    token_env: Annotated[
        str,
        variable_or_nothing("Where the keeper finds the token that `url` wants as `authorization: Bearer`."),
    ] = ""
    prefix: Annotated[
        bool,
        Meta(
            description="Models and clients see a tool as `NAME__TOOL`; if false as `TOOL`, as the source itself does."
        ),
    ] = True
    ttl_s: (
        Annotated[float, above_zero(86_400, "Age at which this source is asked again. Absent: `cache.tools.ttl_s`.")]
        | None
    ) = None


class ToolsCache(Section, frozen=True):
    """`[cache.tools]`: tools that requests name and the router fills in (docs/caches.md)."""

    sources: list[ToolSource] = msgspec.field(default_factory=list)
    toolsets: Annotated[
        dict[str, list[ToolPattern]],
        Meta(description='Named lists of tools: `NAME = ["weather.*", "calendar.create"]`.'),
    ] = msgspec.field(default_factory=dict)
    ttl_s: Annotated[
        float,
        above_zero(86_400, "Age at which a server is asked for its tools again, whether or not it says they changed."),
    ] = 300.0
    timeout_s: Annotated[float, above_zero(600, "To start a server, or to have its tools.")] = 15.0
    tools: Annotated[int, between(1, 4096, "Tools of all sources together; further ones are left out by name.")] = 1024
    tool_bytes: Annotated[
        int, between(256, 1 << 20, "One tool's schema as JSON; a larger one is left out by name.")
    ] = 32 * 1024
    total_bytes: Annotated[
        int, between(1024, 1 << 26, "Schemas of all tools together; what is beyond is left out by name.")
    ] = 4 << 20
    select_model: Annotated[
        str,
        Meta(
            description="Embedding model that finds the tools nearest to the last user message, for requests with "
            "`nearest`. Empty: such requests are refused."
        ),
    ] = ""
    select_wait_ms: Annotated[
        float, between(1, 10_000, "How long a request with `nearest` waits for that; then it gets all tools it named.")
    ] = 50.0


def check_tools(tools: ToolsCache) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`."""
    names: list[str] = []
    for index, source in enumerate(tools.sources):
        key = f"cache.tools.sources[{index}]"
        given = [name for name in ("file", "command", "url") if getattr(source, name)]
        if len(given) != 1:
            raise ConfigError(f"{key} has {' and '.join(given) or 'none of them'}: expected one of file, command, url")
        if source.file and not source.file.endswith((".json", ".toml")):
            raise ConfigError(f"{key}.file = {shown(source.file)}: expected a name that ends in .json or .toml")
        if source.env and not source.command:
            raise ConfigError(f"{key}.env is given without {key}.command")
        if source.token_env and not source.url:
            raise ConfigError(f"{key}.token_env is given without {key}.url")
        if source.name in names:
            raise ConfigError(f"{key}.name = {shown(source.name)}: expected names that differ, this one stands twice")
        names.append(source.name)
    for name, patterns in tools.toolsets.items():
        if not patterns:
            raise ConfigError(f"cache.tools.toolsets.{name} is empty: expected one pattern at least")
        _check_sources(f"cache.tools.toolsets.{name}", patterns, names)
    if (tools.toolsets or tools.select_model) and not tools.sources:
        raise ConfigError("cache.tools has no sources: expected one at least beside toolsets or select_model")


def _check_sources(key: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for index, pattern in enumerate(patterns):
        source, dot, _ = pattern.partition(".")
        if not dot and "*" not in pattern:
            raise ConfigError(f"{key}[{index}] = {shown(pattern)}: expected SOURCE.TOOL, e.g. {pattern}.*")
        if "*" not in source and source not in names:
            known = ", ".join(names) or "none"
            raise ConfigError(
                f"{key}[{index}] = {shown(pattern)}: expected one of the sources ({known}) before the dot"
            )
