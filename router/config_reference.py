"""Renders docs/configuration.md from the configuration structs: ``python -m router.config_reference``.

Key, type, range, default and meaning all come from :mod:`router.config`, so that the page cannot disagree with what
the router accepts; a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, inspect

from router.config import (
    CONFIG_VERSION,
    AccessConfig,
    AdmissionConfig,
    AlertsConfig,
    AlertSink,
    BreakerConfig,
    ClassAdmission,
    Config,
    EmbeddingsCache,
    FeatureConfig,
    Goodput,
    HostConfig,
    HostFacts,
    JournalConfig,
    KeyConfig,
    LeverRules,
    ModelConfig,
    ModelTimeouts,
    NearestTables,
    OutliersConfig,
    Price,
    RoutingConfig,
    Slices,
    SloConfig,
    SloWindow,
    TracesConfig,
)
from router.config.tools import ToolsCache, ToolSource
from router.config.warm import ResponseCache, WarmPrompt
from router.config_schema import allowed, number, shown

EXAMPLE_LLAMA: Final = """\
version = 1

[[hosts]]
name = "laptop"
url = "http://127.0.0.1:8080"
kind = "llama.cpp"
"""
"""One llama.cpp server; everything else is asked of it or has a default."""

EXAMPLE_VLLM: Final = """\
version = 1

[listen]
http = ["127.0.0.1:8400", "unix:/run/ringrouter/http.sock"]

[timeouts]
first_token_s = 60

[[hosts]]
name = "gpu-0"
url = "unix:///run/vllm/gpu-0.sock"
kind = "vllm"
models = { "chat" = "meta-llama/Llama-3.1-8B-Instruct" }

[[hosts]]
name = "gpu-1"
url = "http://10.0.0.12:8000"
kind = "vllm"
slots = 128
models = { "chat" = "meta-llama/Llama-3.1-8B-Instruct" }

[models.chat]
stream_by_default = true
timeouts = { queue_s = 5 }
"""
"""Two vLLM servers behind one model name."""

_INTRODUCTION: Final = f"""\
# Configuration

One TOML file, given as `ringrouter serve --config FILE`. It begins with `version = {CONFIG_VERSION}`. Every key has a
default except where the tables say *required*; the smallest useful file names one host. Keys that are not listed here
are refused, and an error names the key, its value and what is allowed. `ringrouter check FILE` reads a file and prints
what it would serve, without starting anything.

Numbers may be written with `_` between digits, as TOML allows: `33_554_432`.

## One llama.cpp server

```toml
{EXAMPLE_LLAMA}```

The router listens at `127.0.0.1:8400`, asks the server which model it has and how many slots, and never sends it more
requests at once than that: the others wait in the router, where they can be seen, timed and cancelled.

## Two vLLM servers behind one model name

```toml
{EXAMPLE_VLLM}```

Clients ask for `chat`; each host is asked for the name it knows. The first host is reached over a unix socket. The
second runs at most 128 requests at once, the first as many as its kind usually does. A request for `chat` waits at most
five seconds for a free slot and is streamed unless it says `"stream": false`.

## Reference

Times end in `_s` (seconds) or `_ms` (milliseconds), sizes in `_bytes`. *Not set* means that the router finds the value
itself, as the key's meaning says.
"""

_HEADINGS: Final = {
    BreakerConfig: "[health.breaker]",
    OutliersConfig: "[health.outliers]",
    HostConfig: "[[hosts]]",
    HostFacts: "[hosts.facts]",
    ModelConfig: "[models.NAME]",
    ModelTimeouts: "[models.NAME.timeouts]",
    RoutingConfig: "[models.NAME.routing]",
    AdmissionConfig: "[models.NAME.admission]",
    ClassAdmission: "[models.NAME.admission.classes.CLASS]",
    LeverRules: "[models.NAME.levers]",
    FeatureConfig: "[features.NAME]",
    Slices: "[observer.slices]",
    JournalConfig: "[observer.journal]",
    Price: "[[observer.prices]]",
    Goodput: "[[observer.goodput]]",
    AlertsConfig: "[observer.alerts]",
    AlertSink: "[[observer.alerts.sinks]]",
    TracesConfig: "[observer.traces]",
    SloConfig: "[[slo]]",
    SloWindow: "[[slo.windows]]",
    EmbeddingsCache: "[cache.embeddings]",
    NearestTables: "[cache.nearest]",
    ToolsCache: "[cache.tools]",
    ToolSource: "[[cache.tools.sources]]",
    WarmPrompt: "[[cache.warm]]",
    ResponseCache: "[cache.responses]",
    AccessConfig: "[access]",
    KeyConfig: "[[keys]]",
}
"""Sections whose place in the file is not simply the name of their key."""


def render() -> str:
    """Return the whole page as Markdown, with one line end at its end."""
    sections = [_section("At the top of the file", Config)]
    sections += [_section(f"`{heading}`", kind) for heading, kind in _sections(Config)]
    return "\n".join([_INTRODUCTION, *sections])


def _sections(kind: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield heading and struct of every section below a struct, in the order of the file."""
    for field in msgspec.structs.fields(kind):
        inner = _struct_in(field.type)
        if inner is not None:
            yield _HEADINGS.get(inner, f"[{field.encode_name}]"), inner
            yield from _sections(inner)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a field holds, alone, in a list or in a table; ``None`` for a plain value."""
    return _struct_of(inspect.type_info(kind))


def _struct_of(info: inspect.Type) -> type[msgspec.Struct] | None:
    match info:
        case inspect.StructType():
            return info.cls
        case inspect.Metadata():
            return _struct_of(info.type)
        case inspect.ListType():
            return _struct_of(info.item_type)
        case inspect.DictType():
            return _struct_of(info.value_type)
    return None


def _section(heading: str, kind: type[msgspec.Struct]) -> str:
    rows = [_row(field) for field in msgspec.structs.fields(kind) if _struct_in(field.type) is None]
    assert kind.__doc__ is not None, f"{kind.__name__} needs a docstring"
    meaning = kind.__doc__.rpartition("`: ")[2]
    meaning = f"{meaning[0].upper()}{meaning[1:]}"
    return "\n".join(
        [f"### {heading}", "", meaning, "", "| key | allowed | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _row(field: msgspec.structs.FieldInfo) -> str:
    cells = (
        f"`{field.encode_name}`",
        allowed(field.type),
        _default(field),
        _description(inspect.type_info(field.type)),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "*required*"
    value = field.default if field.default_factory is NODEFAULT else field.default_factory()
    if value is None:
        return "*not set*"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"`{number(value) if is_number else shown(value)}`"


def _description(info: inspect.Type) -> str:
    """Find the description among the annotations of a type."""
    match info:
        case inspect.Metadata(extra_json_schema={"description": text}):
            return str(text)
        case inspect.Metadata():
            return _description(info.type)
        case inspect.UnionType():
            return next((text for t in info.types if (text := _description(t))), "")
    return ""


if __name__ == "__main__":
    sys.stdout.write(render())
