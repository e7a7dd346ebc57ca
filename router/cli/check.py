"""``ringrouter check FILE``: is it a good configuration, and what would it serve?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from router import config
from router.cli import EXIT_OK, fail
from router.config import Config, HostConfig, ModelConfig, RoutingConfig, SloConfig
from router.config.changes import changes
from router.config.slo import expanded, needed_ratio, slo_warnings
from router.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Print what the file would serve; 2 and the first error when it would serve nothing."""
    try:
        settings = config.load(args.file, need_keys=False)
        if not any(host.api_key_credential for host in settings.hosts):  # which only the service itself can have
            settings = config.load(args.file)
    except ConfigError as error:
        return fail(error)
    print(f"{args.file}: ok")
    if args.against is not None:
        return _print_changes(args)
    for line in describe(settings):
        print(line)
    return EXIT_OK


def _print_changes(args: argparse.Namespace) -> int:
    """Print what a router that runs with another file would say when it takes this one over; 2 if that one is bad."""
    try:
        found = changes(config.load(args.against, need_keys=False), config.load(args.file, need_keys=False))
    except ConfigError as error:
        return fail(error)
    if not found:
        print(f"nothing differs from {args.against}")
    for each in found:
        print(f"  {each.text}{f'  (needs a restart of the {each.needs})' if each.needs else ''}")
    return EXIT_OK


def describe(settings: Config) -> Iterator[str]:
    """Yield lines that say where the router would listen, which hosts it would use and which models it would serve."""
    rings = config.rings_dir(settings)
    endpoints = [config.zeromq_endpoint(settings, each, directory=rings) for each in settings.listen.zeromq]
    yield from _labelled("listens at", [*(_listen_address(address) for address in settings.listen.http), *endpoints])
    yield from _labelled("rings in", [str(rings / settings.listen.instance)])
    if rings != config.run_dir(settings):
        yield from _labelled("", [f"for {config.run_dir(settings)} is not on a tmpfs"])
    yield from _labelled(
        "observer", [f"{_listen_address(settings.observer.http)}, data in {config.data_dir(settings)}"]
    )
    yield from _labelled(
        "hosts", _columns([_host_row(host) for host in settings.hosts]) or ["none: every request is refused"]
    )
    yield from _labelled("models", _columns([_model_row(settings, name) for name in _model_names(settings)]))
    yield from _labelled("objectives", [_slo_row(slo) for slo in expanded(settings.slo)])
    asked = [host.name for host in settings.hosts if not host.models]
    if asked:
        yield from _labelled("", [f"and what {', '.join(asked)} will name when asked"])
    unserved = [] if asked else sorted(set(settings.models) - set(_model_names(settings)))
    for name in unserved:
        yield f"warning: [models.{name}]: no host has this model"
    for line in slo_warnings(settings.slo):
        yield f"warning: {line}"


def _labelled(label: str, lines: list[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield f"  {'' if index else label:<12}{line}"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _listen_address(address: str) -> str:
    return address if address.startswith("unix:") else f"http://{address}"


def _host_row(host: HostConfig) -> tuple[str, ...]:
    slots = "slots as probed" if host.slots is None else f"{host.slots} slots"
    kind = "kind as probed" if host.kind == "auto" else host.kind
    return host.name, kind, host.url, slots


def _model_names(settings: Config) -> list[str]:
    return list(dict.fromkeys(name for host in settings.hosts for name in host.models))


def _model_row(settings: Config, name: str) -> tuple[str, ...]:
    at = [_model_at(host, name) for host in settings.hosts if name in host.models]
    return name, f"at {', '.join(at)}", _routing(settings.models.get(name, ModelConfig()).routing)


def _routing(routing: RoutingConfig) -> str:
    """Say how a model's requests are routed, nothing where it is the default."""
    if routing.is_default:
        return ""
    parts = [f"sticky by {routing.sticky}"] if routing.sticky else []
    parts += [f"in the order of {routing.order}"] if routing.order != "none" else []
    return ", ".join([f"routed by {routing.policy}", *parts])


def _slo_row(slo: SloConfig) -> str:
    """Say an objective in a line, with what its fastest rule needs."""
    threshold = f" <= {slo.threshold_ms:g} ms" if slo.threshold_ms else f" >= {slo.at_least:g}" if slo.at_least else ""
    rule = slo.rules[0]
    return (
        f"{slo.name}: {slo.target:g} % of {slo.metric}{threshold}; first rule: {needed_ratio(slo, rule):.3g} of the "
        f"requests of {rule.long_s / 3600:g} h"
    )


def _model_at(host: HostConfig, name: str) -> str:
    """Name the host, and the model's name there where it has another."""
    theirs = host.models[name] if isinstance(host.models, dict) else name
    return host.name if theirs == name else f"{host.name} as {theirs}"
