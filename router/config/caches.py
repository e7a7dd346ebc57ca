"""The sections of the caches, and of the keeper, which writes what they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from router.config.base import (
    NAME,
    NAME_ALLOWED,
    Section,
    between,
    credential_or_nothing,
    path_or_nothing,
    variable_or_nothing,
)
from router.config.checks import check_differ, check_power_of_two, shown_variable
from router.config.credentials import credential
from router.config.places import data_dir, rings_dir
from router.config.tools import ToolsCache, check_tools
from router.config.warm import ResponseCache, WarmPrompt, check_warm
from router.config_schema import shown
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Config

CALLS_AT_ONCE: Final = 64
"""Calls of hosts for vectors that a router has under way; the in-flight table has rows for them beside clients' own."""


class EmbeddingsCache(Section, frozen=True):
    """`[cache.embeddings]`: vectors that a host has computed once are answered from memory."""

    enabled: Annotated[bool, Meta(description="Answer `/v1/embeddings` from the cache.")] = False
    models: Annotated[
        list[str], Meta(max_length=256, description="Models whose vectors are kept; empty: those of every model.")
    ] = msgspec.field(default_factory=list)
    revisions: Annotated[
        dict[str, Annotated[str, Meta(pattern=NAME, extra=NAME_ALLOWED)]],
        Meta(description="Revision of a model's weights. Another one: its vectors are computed anew."),
    ] = msgspec.field(default_factory=dict)
    store_bytes: Annotated[
        int, between(4 << 20, 1 << 42, "Most that the store may take on disk; over it the longest unused go.")
    ] = 1 << 30
    memory_bytes: Annotated[
        int, between(1 << 20, 1 << 36, "Most that the router itself holds of the newest vectors, beside the store.")
    ] = 64 << 20
    batch_texts: Annotated[int, between(1, 2048, "Texts that one call of a host is given at most.")] = 32
    batch_bytes: Annotated[
        int, between(1024, 16 << 20, "Bytes of text in one such call; a longer text goes alone.")
    ] = 256 << 10
    wait_ms: Annotated[
        float, between(0, 1000, "How long a text waits for others to go with it in one call; 0: it goes at once.")
    ] = 2.0
    ring_slots: Annotated[
        int, between(64, 1 << 20, "Slots of 1,024 bytes of the ring to the keeper, a power of two.")
    ] = 4096


class NearestTables(Section, frozen=True):
    """`[cache.nearest]`: tables of vectors that `/v1/ringrouter/nearest` looks into."""

    enabled: Annotated[bool, Meta(description="Answer `/v1/ringrouter/nearest`.")] = False
    dir: Annotated[
        str,
        path_or_nothing(
            "Directory of the tables, as `ringrouter cache table build` makes them. Empty: `tables` in `cache.dir`."
        ),
    ] = ""
    k_max: Annotated[int, between(1, 10_000, "Most that one question may ask for.")] = 1000
    wait_ms: Annotated[float, between(1, 600_000, "How long the keeper may take to answer.")] = 2000.0


class CacheConfig(Section, frozen=True):
    """`[cache]`: what the keeper (`ringrouter keep`) writes and the router answers from."""

    dir: Annotated[
        str,
        path_or_nothing(
            "Directory of what outlives a restart (on disk). Empty: `cache` in the data directory, as "
            "`observer.data_dir` describes it."
        ),
    ] = ""
    api_key_env: Annotated[
        str,
        variable_or_nothing(
            "Where the keeper finds the key that it shows the router, where that wants keys: it asks for "
            "vectors of tools (`cache.tools.select_model`)."
        ),
    ] = ""
    api_key_credential: Annotated[
        str,
        credential_or_nothing("The same key as a credential of systemd (`LoadCredential=`) for the keeper's service."),
    ] = ""
    embeddings: EmbeddingsCache = msgspec.field(default_factory=EmbeddingsCache)
    nearest: NearestTables = msgspec.field(default_factory=NearestTables)
    tools: ToolsCache = msgspec.field(default_factory=ToolsCache)
    responses: ResponseCache = msgspec.field(default_factory=ResponseCache)
    warm: list[WarmPrompt] = msgspec.field(default_factory=list)


def keeper_key(cache: CacheConfig) -> str:
    """Return the key that the keeper shows the router, empty without one; raises :class:`ConfigError`.

    Only the keeper has it: to the router its name says nothing.
    """
    if cache.api_key_credential:
        key, said = (
            credential(cache.api_key_credential),
            f"cache.api_key_credential = {shown(cache.api_key_credential)}",
        )
        wanted = "a credential that systemd gives the keeper (LoadCredential=), with a key in it"
    elif cache.api_key_env:
        key = os.environ.get(cache.api_key_env, "")
        said = f"cache.api_key_env = {shown_variable(cache.api_key_env)}"
        wanted = "the name of an environment variable that is set"
    else:
        return ""
    if not key:
        raise ConfigError(f"{said}: expected {wanted}")
    return key


def needs_keeper(cache: CacheConfig) -> bool:
    """Return whether anything is configured that the keeper does."""
    return cache.embeddings.enabled or cache.nearest.enabled or bool(cache.tools.sources) or bool(cache.warm)


def uses_caches(cache: CacheConfig) -> bool:
    """Return whether the router has caches of its own."""
    return needs_keeper(cache) or cache.responses.enabled


def own_requests_max(cache: CacheConfig) -> int:
    """Return how many requests of the router's own may be in flight beyond ``limits.in_flight``."""
    return CALLS_AT_ONCE if cache.embeddings.enabled or cache.nearest.enabled else 0


def cache_dir(config: Config) -> Path:
    """Return the directory of what the keeper writes, as ``cache.dir`` describes it."""
    return Path(config.cache.dir) if config.cache.dir else data_dir(config) / "cache"


def tables_dir(config: Config) -> Path:
    """Return the directory of the tables of vectors, as ``cache.nearest.dir`` describes it."""
    return Path(config.cache.nearest.dir) if config.cache.nearest.dir else cache_dir(config) / "tables"


def published_tools(run_dir: Path) -> Path:
    """Return the file in which the keeper publishes tools for every router below ``run_dir``."""
    return run_dir / "keep.tools"


def published_prompts(run_dir: Path) -> Path:
    """Return the file in which the keeper publishes system prompts for every router below ``run_dir``."""
    return run_dir / "keep.prompts"


def keeper_socket(config: Config, run_dir: Path | None = None) -> Path:
    """Return the socket at which the keeper answers routers and commands."""
    return (run_dir or rings_dir(config)) / "keep.sock"


def check_caches(cache: CacheConfig) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`."""
    if cache.api_key_env and cache.api_key_credential:
        raise ConfigError("cache has api_key_env and api_key_credential: expected one of them")
    check_tools(cache.tools)
    check_warm(cache.warm, cache.responses, [source.name for source in cache.tools.sources])
    check_power_of_two(cache.embeddings.ring_slots, "cache.embeddings.ring_slots")
    models = cache.embeddings.models
    check_differ(models, "cache.embeddings.models")
    for model in cache.embeddings.revisions:
        if models and model not in models:
            raise ConfigError(f"cache.embeddings.revisions.{model}: expected a model of cache.embeddings.models")
