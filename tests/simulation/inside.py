"""What the checks must look up inside the router: the only place that names its inner parts beside the world itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.config import ModelConfig, model_timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.daemon import Daemon
    from router.hosts.host import Host
    from router.request import Request

STALE_RETRIES_MAX: Final = 2


def queue_of(host: Host) -> list[Any]:
    """Return the attempts that wait for a connection to a host."""
    return host.queue


def deadlines(request: Request) -> list[tuple[int, str]]:
    """Return by when a waiting request must have its first token, if it said so."""
    return [(request.deadline_ns, "deadline")] if request.deadline_ns and not request.serves_late else []


def may_go(request: Request, host: Host) -> bool:
    """Return whether a host could take a waiting request: one that has not failed it, unless all have."""
    if (request.path and request.path not in host.facts.paths) or (request.pin and request.pin != host.host_id):
        return False
    return host.host_id not in request.tried


def in_force(daemon: Daemon) -> tuple[Any, ...]:
    """Return what the router goes by, of all that a configuration decides."""
    loop = daemon.loop
    return (
        daemon.config, daemon.roster.config, loop.config, loop.limits, daemon.surfaces.http.limits,
        [(host.name, host.host_id, host.config, host.kind, host.drains, host.removed) for host in loop.hosts],
        [(name, model.config, model.total_ns, model.fallback, len(model.hosts)) for name, model in loop.models.items()],
        sorted(loop.by_name), dict(loop.host_settings), daemon.fleet.connect_timeout_s,
    )  # fmt: skip


def half_taken(daemon: Daemon) -> Iterator[str]:
    """Yield what is not as the configuration says that the router says it has."""
    config, loop = daemon.config, daemon.loop
    for what, found, wanted in (
        ("the roster's configuration", daemon.roster.config, config),
        ("the loop's configuration", loop.config, config),
        ("the loop's limits", loop.limits, config.limits),
        ("the server's limits", daemon.surfaces.http.limits, config.limits),
    ):
        if found != wanted:
            yield f"{what} is another one"
    hosts = {host.name: host for host in loop.hosts if not host.removed}
    if hosts.keys() != {each.name for each in config.hosts}:
        yield f"hosts are {sorted(hosts)}"
    for each in config.hosts:
        if each.name in hosts and hosts[each.name].config != each:
            yield f"host {each.name} has other settings"
    for model in loop.models.values():
        if model.config != config.models.get(model.name, ModelConfig()):
            yield f"model {model.name} has other settings"
        if model.total_ns != int(model_timeouts(config, model.name).total_s * 1e9):
            yield f"model {model.name} has other time-outs"
