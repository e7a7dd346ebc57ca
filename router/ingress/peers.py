"""Who may connect to sockets that are files: beside their mode, a list of users, checked by what the kernel says."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.config_schema import shown
from router.errors import ConfigError, ErrorKind
from router.ingress.http import ClientConnection
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    import asyncio

    from router.config import Config
    from router.ingress.server import HttpServer

_CREDENTIALS: Final = struct.Struct("3i")
"""Process, user and group (``struct ucred`` of unix(7)), as they were when the other side connected."""


def allowed_uids(config: Config) -> frozenset[int]:
    """Return the users that may connect, none where the mode of the file decides; raises :class:`ConfigError`."""
    users = config.listen.unix_users
    found = {_uid(user, index) for index, user in enumerate(users)}
    return frozenset(found | {0, os.geteuid()}) if users else frozenset()


def _uid(user: str, index: int) -> int:
    if user.isdigit() and user.isascii():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"listen.unix_users[{index}] = {shown(user)}: expected a user that there is") from None


def uid_of(sock: socket.socket) -> int:
    """Return which user is at the other end of a unix socket."""
    uid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


class CheckedConnection(ClientConnection):
    """A client of a unix socket that is refused unless its user may connect."""

    __slots__ = ("_uids",)

    def __init__(self, server: HttpServer, uids: frozenset[int]) -> None:
        super().__init__(server)
        self._uids = uids

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, or say that this user may not, and end."""
        super().connection_made(transport)
        uid = uid_of(transport.get_extra_info("socket"))
        if uid not in self._uids and not self._refused:
            loop = self._server.loop
            loop.counters.add(Counter.PEERS_REFUSED)
            loop.telemetry.errors.note("a user that may not connect to a unix socket", monotonic_ns())
            self._refuse(ErrorKind.FORBIDDEN, f"user {uid} may not connect here (listen.unix_users)")
