"""Checks of what listens: the router's own addresses, and the model hosts."""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvloop

from router.config import Config, HostConfig, rings_dir, split_address, zeromq_endpoint
from router.doctor.findings import Finding, error, ok, warning
from router.errors import ConfigError
from router.hosts.host import Host
from router.hosts.probe import ProbeError, check_health, interview


def ports(config: Config, *, runs: bool) -> Iterator[Finding]:
    """Can the router listen where the configuration says? ``runs``: it does already, and holds them itself."""
    endpoints = [zeromq_endpoint(config, each, directory=rings_dir(config)) for each in config.listen.zeromq]
    for address in [*config.listen.http, *endpoints]:
        try:
            where = split_address(address.replace("ipc://", "unix:").removeprefix("tcp://"), "listen")
        except ConfigError:
            continue  # an interface's name, which only libzmq resolves
        reason = _in_use(where)
        if reason and not runs:
            todo = f"see who: ss -lntxp | grep {where if isinstance(where, str) else where[1]}; or another address"
            yield error("ports", f"{address}: {reason}", todo)
        else:
            yield ok("ports", f"{address}: {'served' if reason else 'free'}")


def _in_use(where: tuple[str, int] | str) -> str:
    """Return why nobody can listen there, empty when somebody can."""
    if isinstance(where, str):
        return _unix_in_use(where)
    host, port = where
    if not port:
        return ""
    try:
        info = socket.getaddrinfo("0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM)[0]  # noqa: S104
        with socket.socket(info[0], info[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(info[4])
    except OSError as problem:
        return problem.strerror or str(problem)
    return ""


def _unix_in_use(path: str) -> str:
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            return "a file that is no socket is there"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except FileNotFoundError:
        return ""
    except OSError as problem:
        return "" if problem.errno == errno.ECONNREFUSED else problem.strerror or str(problem)
    return "another process listens there"


def hosts(config: Config) -> Iterator[Finding]:
    """Does every host answer, and is it what the configuration says? All are asked at the same time."""
    if not config.hosts:
        yield error("hosts", "none is configured", "add [[hosts]] with name and url (docs/configuration.md)")
        return
    yield from uvloop.run(_ask_all(config))  # whose errors say what the system says


async def _ask_all(config: Config) -> list[Finding]:
    asked = [_ask(host, index, config.health.timeout_s) for index, host in enumerate(config.hosts)]
    return await asyncio.gather(*asked)


async def _ask(host_config: HostConfig, index: int, timeout_s: float) -> Finding:
    host = Host(host_config, index + 1, index)
    try:
        await interview(host, timeout_s)
        await check_health(host, timeout_s)
    except ProbeError as problem:
        return error("hosts", f"{host.name} ({host_config.url}): {problem}", _what_to_do(host_config, str(problem)))
    what = f"{host.name}: {host.kind}, {host.facts.slot_count} slots, models {', '.join(sorted(host.models)) or 'none'}"
    if not host.models:
        return warning("hosts", what, f"name its models: models = [...] of {host.name}")
    return ok("hosts", what)


def _what_to_do(host: HostConfig, reason: str) -> str:
    if "refused" in reason or "No such file" in reason:
        return f"start it, or correct its url: curl {host.url}/health"
    if "not permitted" in reason:
        return "the unit's IPAddressAllow= does not have its address: systemctl edit ringrouter.service"
    if "401" in reason or "403" in reason:
        return "give it its key: api_key_env or api_key_credential"
    return f"look at its log; curl -v {host.url}/health"
