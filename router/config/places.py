"""Where things are: addresses, sockets and directories, as the configuration names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from router.config.serving import ZEROMQ_ALLOWED
from router.config_schema import shown
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Config

_SUN_PATH_BYTES_MAX: Final = 107
"""Of ``sockaddr_un``, less its NUL."""


def split_address(address: str, key: str) -> tuple[str, int] | str:
    """Split ``host:port`` into its parts, or return the path of ``unix:/path``; raises :class:`ConfigError`."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix://") if address.startswith("unix:///") else address.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > _SUN_PATH_BYTES_MAX:
            raise ConfigError(
                f"{key} = {shown(address)}: expected unix:/absolute/path of at most {_SUN_PATH_BYTES_MAX} bytes"
            )
        return path
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key} = {shown(address)}: expected host:port (port 0 to 65535) or unix:/absolute/path")
    return host.strip("[]"), int(port)


def zeromq_endpoint(config: Config, endpoint: str, key: str = "listen.zeromq", directory: Path | None = None) -> str:
    """Return an endpoint of ``listen.zeromq`` as libzmq wants it; raises :class:`ConfigError`.

    ``directory`` is the one of the rings where it is known; a router without a tmpfs at ``run_dir`` takes another.
    """
    if endpoint.startswith("tcp://"):
        where = split_address(endpoint.removeprefix("tcp://"), key)
        if isinstance(where, str):
            raise ConfigError(f"{key} = {shown(endpoint)}: expected {ZEROMQ_ALLOWED}")
        return endpoint
    if endpoint == "ipc":
        path = str((directory or run_dir(config)) / config.listen.instance / "zmq.sock")
    elif endpoint.startswith("ipc:///"):
        path = endpoint.removeprefix("ipc://")
    else:
        raise ConfigError(f"{key} = {shown(endpoint)}: expected {ZEROMQ_ALLOWED}")
    if len(os.fsencode(path)) > _SUN_PATH_BYTES_MAX:
        raise ConfigError(
            f"{key} = {shown(endpoint)}: {path} is longer than the {_SUN_PATH_BYTES_MAX} bytes of a socket's path"
        )
    return f"ipc://{path}"


def host_address(url: str, key: str) -> tuple[str, int] | str:
    """Split a host's URL into ``(host, port)`` or the path of a unix socket; raises :class:`ConfigError`."""
    if url.startswith("unix://"):
        return split_address(url, key)
    rest = url.removeprefix("http://")
    if "/" in rest.rstrip("/"):
        raise ConfigError(f"{key} = {shown(url)}: expected http://host:port without a path")
    rest = rest.rstrip("/")
    return split_address(rest if ":" in rest.rpartition("]")[2] else f"{rest}:80", key)


def run_dir(config: Config) -> Path:
    """Return the directory of the rings, as ``listen.run_dir`` describes it."""
    if config.listen.run_dir:
        return Path(config.listen.run_dir)
    return default_run_dir()


def default_run_dir() -> Path:
    """Return where the rings are when the configuration does not say."""
    if from_systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "ringrouter"
    return tmpfs_run_dir()


def data_dir(config: Config) -> Path:
    """Return the directory of the observer's journal, as ``observer.data_dir`` describes it."""
    if config.observer.data_dir:
        return Path(config.observer.data_dir)
    if from_systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "ringrouter"
    return Path.home() / ".local" / "state" / "ringrouter"


def tmpfs_run_dir() -> Path:
    """Return the directory on the tmpfs that every Linux has, for when the one asked for is not on a tmpfs."""
    return Path(f"/dev/shm/ringrouter-{os.getuid()}")  # noqa: S108 - the directory is made 0700


def rings_dir(config: Config) -> Path:
    """Return where the router puts its rings: :func:`run_dir`, where that is on a tmpfs, else another directory."""
    path = run_dir(config)
    return path if is_tmpfs(path) else tmpfs_run_dir()


def is_tmpfs(path: Path) -> bool:
    """Return whether a directory, made or not yet, is on a file system in memory."""
    best, kind = "", ""
    real = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, fs, *_ = line.split(" ")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fs
    return kind in {"tmpfs", "ramfs"}
