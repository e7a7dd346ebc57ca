"""The configuration: a TOML file decoded into strict structs.

Unknown keys are refused, every value has bounds, and an error names the key, the value and what is allowed. The
description of each key stands beside it and is what docs/configuration.md is made of
(``python -m router.config_reference``).
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config.admission import (
    AdmissionConfig,
    ClassAdmission,
    FeatureConfig,
    LeverRules,
    check_admission,
)
from router.config.alerts import AlertsConfig, AlertSink, check_alerts
from router.config.base import NAME, NAME_ALLOWED, Section
from router.config.caches import (
    CacheConfig,
    EmbeddingsCache,
    NearestTables,
    cache_dir,
    check_caches,
    keeper_socket,
    needs_keeper,
    tables_dir,
    uses_caches,
)
from router.config.checks import check_differ, check_power_of_two, shown_variable
from router.config.health import BreakerConfig, Health, OutliersConfig
from router.config.hosts import HostConfig, HostFacts, ModelConfig, ModelTimeouts
from router.config.keys import AccessConfig, KeyConfig, check_access, check_exposure, check_passed, with_keys
from router.config.names import aliases, check_names, fallback_chain
from router.config.observer import (
    SLICE_ALLOWED,
    SLICE_FIELDS,
    SLICE_TAG_COUNT_MAX,
    Goodput,
    JournalConfig,
    ObserverConfig,
    Price,
    Slices,
)
from router.config.places import (
    data_dir,
    default_run_dir,
    host_address,
    is_tmpfs,
    rings_dir,
    run_dir,
    split_address,
    tmpfs_run_dir,
    zeromq_endpoint,
)
from router.config.routing import RoutingConfig, routing_contradiction
from router.config.serving import Limits, Listen, Log, LoopConfig, Rings, TagsConfig, Timeouts
from router.config.slo import SloConfig, SloWindow, check_slos
from router.config.timeouts import connect_s_max, model_timeouts, timeout_s_min
from router.config.traces import TracesConfig, check_traces
from router.config_schema import explain, shown, shown_key
from router.errors import ConfigError
from router.telemetry.records import TAGS, TEXT_TAGS

__all__ = [
    "CONFIG_VERSION",
    "SLICE_ALLOWED",
    "SLICE_FIELDS",
    "SLICE_TAG_COUNT_MAX",
    "AccessConfig",
    "AdmissionConfig",
    "AlertSink",
    "AlertsConfig",
    "BreakerConfig",
    "CacheConfig",
    "ClassAdmission",
    "Config",
    "EmbeddingsCache",
    "FeatureConfig",
    "Goodput",
    "Health",
    "HostConfig",
    "HostFacts",
    "JournalConfig",
    "KeyConfig",
    "LeverRules",
    "Limits",
    "Listen",
    "Log",
    "LoopConfig",
    "ModelConfig",
    "ModelTimeouts",
    "NearestTables",
    "ObserverConfig",
    "OutliersConfig",
    "Price",
    "Rings",
    "RoutingConfig",
    "Slices",
    "SloConfig",
    "SloWindow",
    "TagsConfig",
    "Timeouts",
    "TracesConfig",
    "aliases",
    "cache_dir",
    "check_exposure",
    "check_has_hosts",
    "check_passed",
    "connect_s_max",
    "data_dir",
    "default_run_dir",
    "fallback_chain",
    "host_address",
    "is_tmpfs",
    "keeper_socket",
    "load",
    "model_timeouts",
    "needs_keeper",
    "parse",
    "rings_dir",
    "run_dir",
    "split_address",
    "tables_dir",
    "timeout_s_min",
    "tmpfs_run_dir",
    "uses_caches",
    "with_instance",
    "zeromq_endpoint",
]

CONFIG_VERSION: Final = 1


class Config(Section, frozen=True):
    """The whole file."""

    version: Annotated[Literal[1], Meta(description="Version of this file's format.")]
    listen: Listen = msgspec.field(default_factory=Listen)
    limits: Limits = msgspec.field(default_factory=Limits)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    tags: TagsConfig = msgspec.field(default_factory=TagsConfig)
    rings: Rings = msgspec.field(default_factory=Rings)
    health: Health = msgspec.field(default_factory=Health)
    loop: LoopConfig = msgspec.field(default_factory=LoopConfig)
    log: Log = msgspec.field(default_factory=Log)
    observer: ObserverConfig = msgspec.field(default_factory=ObserverConfig)
    cache: CacheConfig = msgspec.field(default_factory=CacheConfig)
    hosts: list[HostConfig] = msgspec.field(default_factory=list)
    models: dict[str, ModelConfig] = msgspec.field(default_factory=dict)
    features: dict[str, FeatureConfig] = msgspec.field(default_factory=dict)
    slo: Annotated[list[SloConfig], Meta(max_length=100, description="Service level objectives.")] = msgspec.field(
        default_factory=list
    )
    access: AccessConfig = msgspec.field(default_factory=AccessConfig)
    keys: list[KeyConfig] = msgspec.field(default_factory=list)


def with_instance(config: Config, name: str) -> Config:
    """Return the configuration of one of several routers that share a file; raises :class:`ConfigError`."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--instance = {shown(name)}: expected {NAME_ALLOWED['allowed']}")
    return msgspec.structs.replace(config, listen=msgspec.structs.replace(config.listen, instance=name))


def load(path: Path | str, *, need_keys: bool = True) -> Config:
    """Read and check a configuration file; raises :class:`ConfigError` with the file's name before each message.

    ``need_keys`` false leaves out whether the hosts' keys are in the environment, and the clients' keys of other files:
    only the router itself needs them.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        return parse(text, need_keys=need_keys)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: str, *, need_keys: bool = True) -> Config:
    """Decode and check the text of a configuration, as :func:`load` does with a file; raises :class:`ConfigError`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    if "version" not in raw:
        raise ConfigError(f"version is missing: begin the file with `version = {CONFIG_VERSION}`")
    listen = raw.get("listen")
    for key in ("http", "zeromq"):
        if isinstance(listen, dict) and isinstance(listen.get(key), str):
            listen[key] = [listen[key]]
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError:
        raise ConfigError(explain(Config, raw)) from None
    _check(config)
    if need_keys:
        _check_keys(config.hosts)
        config = with_keys(config)
        check_access(config)
    return config


def check_has_hosts(config: Config) -> None:
    """Refuse what a router cannot serve with; raises :class:`ConfigError`. Commands do without hosts."""
    if not config.hosts:
        raise ConfigError("hosts: none is configured, so every request would be refused")


def _check(config: Config) -> None:
    """Check what one value alone cannot show."""
    _check_rings(config.rings)
    limits = config.limits
    if limits.client_resume_bytes >= limits.client_buffer_bytes:
        raise ConfigError(
            f"limits.client_resume_bytes = {limits.client_resume_bytes}: "
            f"expected less than limits.client_buffer_bytes ({limits.client_buffer_bytes})"
        )
    for index, own in enumerate(config.tags.own):
        if own in TAGS or own in TEXT_TAGS:
            raise ConfigError(f"tags.own[{index}] = {shown(own)}: expected a name that is not a built-in tag")
        if own in config.tags.own[:index]:
            raise ConfigError(f"tags.own[{index}] = {shown(own)}: expected names that differ, this one stands twice")
    for index, address in enumerate(config.listen.http):
        split_address(address, f"listen.http[{index}]")
    for index, endpoint in enumerate(config.listen.zeromq):
        zeromq_endpoint(config, endpoint, f"listen.zeromq[{index}]")
    _check_hosts(config.hosts)
    _check_health(config.health)
    check_names(config)
    _check_routing(config)
    check_admission(config)
    _check_observer(config)
    check_slos(config.slo, config.tags.own, has_goodput=bool(config.observer.goodput))
    check_caches(config.cache)


def _check_rings(rings: Rings) -> None:
    for ring in ("requests", "tokens", "done"):  # the append-only names have no wrap, hence any number of rows
        check_power_of_two(getattr(rings, ring), f"rings.{ring}")


def _check_hosts(hosts: list[HostConfig]) -> None:
    seen: dict[str, int] = {}
    for index, host in enumerate(hosts):
        if host.name in seen:
            raise ConfigError(
                f"hosts[{index}].name = {shown(host.name)}: "
                f"expected names that differ, hosts[{seen[host.name]}] has it too"
            )
        seen[host.name] = index
        host_address(host.url, f"hosts[{index}].url")


def _check_health(health: Health) -> None:
    breaker, outliers = health.breaker, health.outliers
    if breaker.open_s > breaker.open_s_max:
        raise ConfigError(
            f"health.breaker.open_s = {breaker.open_s:g}: expected at most health.breaker.open_s_max "
            f"({breaker.open_s_max:g})"
        )
    if outliers.eject_s > outliers.eject_s_max:
        raise ConfigError(
            f"health.outliers.eject_s = {outliers.eject_s:g}: expected at most health.outliers.eject_s_max "
            f"({outliers.eject_s_max:g})"
        )


def _check_routing(config: Config) -> None:
    hosts = {host.name: host for host in config.hosts}
    for name, model in config.models.items():
        serving = {host.name for host in config.hosts if not host.models or name in host.models}
        fault = routing_contradiction(f"models.{shown_key(name)}.routing", model.routing, hosts, serving)
        if fault:
            raise ConfigError(fault)


def _check_observer(config: Config) -> None:
    observer = config.observer
    split_address(observer.http, "observer.http")
    tags = {*TAGS, *TEXT_TAGS, *config.tags.own}
    check_alerts(observer.alerts)
    check_traces(observer.traces)
    check_differ(observer.slices.tags, "observer.slices.tags")
    check_differ(observer.slices.top, "observer.slices.top")
    for index, entry in enumerate(observer.slices.tags):
        names = entry.split(",")
        known = all(name in tags or name in SLICE_FIELDS for name in names)
        if not known or len(set(names)) != len(names) or len(names) > SLICE_TAG_COUNT_MAX:
            raise ConfigError(f"observer.slices.tags[{index}] = {shown(entry)}: expected {SLICE_ALLOWED}")
    for index, name in enumerate(observer.slices.top):
        if name not in tags:
            raise ConfigError(f"observer.slices.top[{index}] = {shown(name)}: expected the name of a tag")
    check_differ([price.model for price in observer.prices], "observer.prices", ".model")
    check_differ([goodput.workload_class for goodput in observer.goodput], "observer.goodput", ".workload_class")
    for index, goodput in enumerate(observer.goodput):
        if goodput.ttft_s is None and goodput.tpot_s is None and goodput.e2e_s is None:
            raise ConfigError(f"observer.goodput[{index}] is without a limit: expected ttft_s, tpot_s or e2e_s")


def _check_keys(hosts: list[HostConfig]) -> None:
    for index, host in enumerate(hosts):
        if host.api_key_credential and host.api_key_env:
            raise ConfigError(f"hosts[{index}] has api_key_env and api_key_credential: expected one of them")
        if host.api_key_credential and not host.api_key():
            raise ConfigError(
                f"hosts[{index}].api_key_credential = {shown(host.api_key_credential)}: expected a credential that "
                "systemd gives this process (LoadCredential=), with a key in it"
            )
        if host.api_key_env and not os.environ.get(host.api_key_env):
            raise ConfigError(
                f"hosts[{index}].api_key_env = {shown_variable(host.api_key_env)}: "
                "expected the name of an environment variable that is set"
            )
