"""The listening sockets of a router: those it was given and those it opens, kept so that they can be handed on.

Each is opened, bound and listening before anything is served: an address that is taken ends the start at once, and
clients that come early wait in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from router.config import Config, check_passed, split_address, zeromq_endpoint
from router.errors import ConfigError
from router.ingress.unix_path import make_free

if TYPE_CHECKING:
    from router.service.inherited import Inherited

_CLIENT_MODE: Final = 0o660
"""Clients of the router's group may connect."""
_ADMIN_MODE: Final = 0o600


@dataclass
class Listener:
    """One listening socket. ``address`` is how the configuration names it, empty for one that systemd holds."""

    sock: socket.socket
    address: str = ""

    @property
    def where(self) -> str:
        """Where it listens, with the port that the kernel chose for port 0."""
        name = self.sock.getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"http://{host}:{name[1]}"

    @property
    def endpoint(self) -> str:
        """Where it listens, as libzmq writes it."""
        return self.where.replace("http://", "tcp://").replace("unix:", "ipc://")

    def close(self, *, for_good: bool) -> None:
        """Stop listening; ``for_good`` takes the file of a unix socket of our own away too."""
        name = self.sock.getsockname()
        self.sock.close()
        if for_good and self.address and isinstance(name, str):
            Path(name).unlink(missing_ok=True)


class Listeners:
    """All listening sockets of one process. Raises :class:`ConfigError` naming the address that cannot be had."""

    def __init__(self, config: Config, inherited: Inherited, run_dir: Path) -> None:
        self._backlog = config.listen.backlog
        self._passed = inherited.own
        passed_http = [Listener(sock) for sock in inherited.http]
        self.http = passed_http or self._open_all_http(config.listen.http, "listen.http")
        self.admin = self._open_all_http(config.listen.admin, "listen.admin", _ADMIN_MODE)
        self.zeromq = [Listener(sock) for sock in inherited.zeromq] or self._open_all_zeromq(config, run_dir)
        self.left_to_libzmq = [] if inherited.zeromq else [e for e in config.listen.zeromq if not _is_ours(e)]
        """Endpoints with the name of an interface: libzmq alone resolves it, and they cannot be handed on."""
        for listener in passed_http:
            check_passed(config, listener.where, encrypted=False)
        for listener in self.zeromq if inherited.zeromq else ():
            check_passed(config, listener.where, encrypted=config.listen.has_curve)
        for listener in (*self.http, *self.admin, *self.zeromq):
            listener.sock.listen(self._backlog)  # systemd's own backlog may be shorter
        for unused in self._passed.values():
            for sock in unused:
                Listener(sock, "no longer configured").close(for_good=True)

    def close(self, *, for_good: bool) -> None:
        """Stop listening everywhere; ``for_good`` false leaves the files of unix sockets to the next process."""
        for listener in (*self.http, *self.admin, *self.zeromq):
            listener.close(for_good=for_good)
        self.http, self.admin, self.zeromq = [], [], []

    def own(self) -> dict[str, list[int]]:
        """Return the descriptors of sockets that this process opened, by address."""
        found: dict[str, list[int]] = {}
        for listener in (*self.http, *self.admin, *self.zeromq):
            if listener.address:
                found.setdefault(listener.address, []).append(listener.sock.fileno())
        return found

    # ------------------------------------------------------------ opening
    def _open_all_http(self, addresses: list[str], key: str, mode: int = _CLIENT_MODE) -> list[Listener]:
        found = []
        for address in addresses:
            try:
                where = split_address(address, key)
                socks = self._passed.pop(address, None) or _open(where, mode)
                if mode == _ADMIN_MODE and isinstance(where, str):
                    Path(where).chmod(mode)  # a socket that was handed over may have been the clients'
            except OSError as error:
                raise ConfigError(f"{key} = {address!r}: cannot listen there: {error.strerror or error}") from None
            found += [Listener(sock, address) for sock in socks]
        return found

    def _open_all_zeromq(self, config: Config, run_dir: Path) -> list[Listener]:
        found = []
        for index, endpoint in enumerate(config.listen.zeromq):
            key = f"listen.zeromq[{index}]"
            where = zeromq_endpoint(config, endpoint, key, run_dir)
            if not _is_ours(endpoint):
                continue
            try:
                socks = self._passed.pop(where, None) or _open(_place(where, key))
            except OSError as error:
                raise ConfigError(f"{key} = {endpoint!r}: cannot listen there: {error.strerror or error}") from None
            found += [Listener(sock, where) for sock in socks]
        return found


def _is_ours(endpoint: str) -> bool:
    """Whether an endpoint of ZeroMQ is one that we can open: a path, ``*``, or an address in numbers."""
    if not endpoint.startswith("tcp://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "*":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _place(endpoint: str, key: str) -> tuple[str, int] | str:
    if endpoint.startswith("ipc://"):
        return endpoint.removeprefix("ipc://")
    where = split_address(endpoint.removeprefix("tcp://"), key)
    assert not isinstance(where, str)
    return ("0.0.0.0" if where[0] == "*" else where[0]), where[1]  # noqa: S104 - it is what the configuration says


def _open(where: tuple[str, int] | str, mode: int = _CLIENT_MODE) -> list[socket.socket]:
    """Return bound sockets: one, or of a host's name one for each of its addresses. Raises :class:`OSError`."""
    if isinstance(where, str):
        return [_open_unix(where, mode)]
    host, port = where
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    socks: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # else it would take the port of the IPv4 addresses as well
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def _open_unix(path: str, mode: int) -> socket.socket:
    """Bind a unix socket, taking the place of one that a dead process left behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        make_free(path)
        os.fchmod(sock.fileno(), mode)  # the file gets this mode: nobody else gets in between it and a chmod
        sock.bind(path)
        Path(path).chmod(mode)  # and what the umask took away
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
