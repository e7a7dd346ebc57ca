"""What `ringrouter run` starts: a configuration, the embedded hosts that belong to it, and the place they run in."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router import config as config_module
from router.config import Config
from router.embedded import hosts
from router.embedded.child import RunError

DRAIN_S: Final = 10.0
"""How long running streams may go on when the embedded set is stopped."""
LOCALHOST: Final = "127.0.0.1"
OTHER_PORT: Final = "Choose another: ringrouter run --port 8500, make run PORT=8500, or listen.http in your own file"


@dataclass(slots=True)
class Plan:
    """What to start: the embedded hosts with their commands, the router with a configuration, observer, keeper."""

    config: Config
    router_command: list[str]
    log_dir: Path
    host_commands: dict[hosts.EmbeddedHost, list[str]]
    observer_command: list[str] | None = None
    keeper_command: list[str] | None = None
    lock_fd: int | None = None

    def release(self) -> None:
        """Give the run directory free for another `ringrouter run`."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None


def embedded_plan(port: int) -> Plan:
    """Return the plan that serves the embedded models; raises :class:`RunError` or ``HostPythonMissingError``."""
    python = hosts.find_host_python()
    run_dir = make_run_dir(config_module.default_run_dir())
    lock_fd = lock_run_dir(run_dir)
    try:
        address = f"{LOCALHOST}:{free_port(LOCALHOST, port)}"
        socket_dir = run_dir / "hosts"
        socket_dir.mkdir(mode=0o700, exist_ok=True)
        sockets = {host: socket_dir / f"{host.name}.sock" for host in (hosts.CHAT, hosts.EMBEDDING)}
        config_path = run_dir / "run.toml"
        text = hosts.config_text(run_dir, address, observer_address(address), sockets, DRAIN_S)
        config_path.write_text(text, encoding="utf-8")
        commands = {host: host.command(python, path) for host, path in sockets.items()}
        config = config_module.load(config_path)
        observer = own_command("observe", config_path)
        serve = own_command("serve", config_path)
        return Plan(config, serve, make_log_dir(run_dir), commands, observer, lock_fd=lock_fd)
    except BaseException:
        os.close(lock_fd)
        raise


def user_plan(config_path: Path) -> Plan:
    """Return the plan that serves the user's own hosts; raises :class:`ConfigError`."""
    config = config_module.load(config_path)
    if not config.hosts:
        raise RunError(f"{config_path} has no [[hosts]]: there is nothing to serve")
    check_addresses(config)
    run_dir = make_run_dir(config_module.run_dir(config))
    observer = own_command("observe", config_path) if config.observer.enabled else None
    keeper = own_command("keep", config_path) if config_module.needs_keeper(config.cache) else None
    return Plan(config, own_command("serve", config_path), make_log_dir(run_dir), {}, observer, keeper)


def own_command(name: str, config_path: Path) -> list[str]:
    """Return one of this program's own commands, with this configuration."""
    # -P: a folder named `router` where the user stands must not be taken for this package.
    return [sys.executable, "-P", "-m", "router", name, "--config", str(config_path.resolve())]


def observer_address(router_address: str) -> str:
    """Return the address beside the router's, or another where that port is taken: the observer must not keep it up."""
    host, port = router_address.rsplit(":", 1)
    try:
        return f"{host}:{free_port(host, int(port) + 1)}"
    except RunError:
        return f"{host}:{free_port(host, 0)}"


def make_run_dir(path: Path) -> Path:
    """Make the run directory, for this user alone; raises :class:`RunError` if it is another user's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner_uid = path.stat().st_uid
    if owner_uid != os.getuid():
        raise RunError(f"{path} belongs to the user with id {owner_uid}; set XDG_RUNTIME_DIR to a directory of yours")
    return path


def make_log_dir(run_dir: Path) -> Path:
    """Make the directory of the children's logs."""
    path = run_dir / "logs"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def lock_run_dir(run_dir: Path) -> int:
    """Lock the run directory against a second `ringrouter run`; return the descriptor that holds the lock."""
    fd = os.open(run_dir / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode().strip()
        os.close(fd)
        raise RunError(
            f"it is already running in {run_dir} (pid {pid}). Stop that one, or give this one a directory and a port "
            "of its own: XDG_RUNTIME_DIR=/dev/shm/second XDG_STATE_HOME=/tmp/second ringrouter run --port 8500"
        ) from None
    os.truncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def free_port(host: str, port: int) -> int:
    """Return ``port`` if this process could listen there (0: any that is free); raises :class:`RunError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise RunError(f"port {port} of {host} cannot be used ({error}). {OTHER_PORT}") from None


def check_addresses(config: Config) -> None:
    """Raise :class:`RunError` if a TCP address is taken, or is not known before the router has chosen it."""
    for address in config.listen.http:
        place = config_module.split_address(address, "listen.http")
        if isinstance(place, str):
            continue
        if place[1] == 0:
            raise RunError(f"listen.http = {address!r}: to show itself, `run` must know the port; `serve` takes any")
        free_port(*place)
