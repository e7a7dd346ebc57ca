"""Listening sockets that this process did not open: from systemd (sd_listen_fds(3)), or from the process before it.

systemd names each socket (``FileDescriptorName=``): those whose name begins with ``zeromq`` are for ZeroMQ, all others
for HTTP. When it passes any of a kind, they take the place of that kind's addresses in ``[listen]``.

A router that hands over to the next one passes the sockets of systemd in the same way, and its own with the text of the
address each was opened for, so that an address that the new configuration no longer has is closed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from router.errors import ConfigError

HANDOVER_VARIABLE: Final = "RINGROUTER_HANDOVER"
_FIRST_DESCRIPTOR: Final = 3
_DESCRIPTORS_MAX: Final = 64
"""More sockets than any unit has; a count beyond it is a broken environment."""


class Handover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one process tells the next in :data:`HANDOVER_VARIABLE`; all numbers are descriptors that it inherits."""

    ready: int
    """A pipe: the new process writes a line there when it serves."""
    lock: int
    """The lock of the instance."""
    held_http: list[int] = []
    held_zeromq: list[int] = []
    own: dict[str, list[int]] = {}
    """Sockets that the old process opened itself, by the address in its configuration: a name may have several."""


@dataclass
class Inherited:
    """The sockets this process was started with, and what else the one before it passed."""

    http: list[socket.socket] = field(default_factory=list)
    zeromq: list[socket.socket] = field(default_factory=list)
    own: dict[str, list[socket.socket]] = field(default_factory=dict)
    lock: int = -1
    ready: int = -1

    @property
    def from_process(self) -> bool:
        """Whether another router hands over to this one."""
        return self.ready >= 0


def take(environment: MutableMapping[str, str] | None = None) -> Inherited:
    """Take what the environment says was passed, and take it out of the environment: a child must not believe it.

    Raises :class:`ConfigError` when a descriptor is no listening stream socket.
    """
    known = os.environ if environment is None else environment
    handover = known.pop(HANDOVER_VARIABLE, "")
    pid, count = known.pop("LISTEN_PID", ""), known.pop("LISTEN_FDS", "")
    names = known.pop("LISTEN_FDNAMES", "")
    if handover:
        return _from_process(handover)
    if pid != str(os.getpid()) or not count.isdigit() or not int(count):
        return Inherited()
    if int(count) > _DESCRIPTORS_MAX:
        raise ConfigError(f"LISTEN_FDS = {count}: at most {_DESCRIPTORS_MAX} sockets can be passed")
    return _from_manager(int(count), names.split(":"))


def _from_manager(count: int, names: list[str]) -> Inherited:
    found = Inherited()
    for index in range(count):
        name = names[index] if index < len(names) else ""
        sock = _listening(_FIRST_DESCRIPTOR + index, f"socket {index + 1} of LISTEN_FDS ({name or 'no name'})")
        (found.zeromq if name.startswith("zeromq") else found.http).append(sock)
    return found


def _from_process(text: str) -> Inherited:
    try:
        passed = msgspec.json.decode(text, type=Handover)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{HANDOVER_VARIABLE}: {error}") from None
    for descriptor in (passed.ready, passed.lock):
        os.set_inheritable(descriptor, False)
    return Inherited(
        http=[_listening(each, "a socket handed over") for each in passed.held_http],
        zeromq=[_listening(each, "a socket handed over") for each in passed.held_zeromq],
        own={key: [_listening(each, f"the socket of {key}") for each in found] for key, found in passed.own.items()},
        lock=passed.lock,
        ready=passed.ready,
    )


def _listening(descriptor: int, what: str) -> socket.socket:
    """Return a descriptor as a socket object that no child inherits; raises :class:`ConfigError`."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{what}: descriptor {descriptor} is no socket ({error.strerror})") from None
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if kind != socket.SOCK_STREAM or not accepts:
        sock.detach()
        raise ConfigError(f"{what}: descriptor {descriptor} does not listen for streams (ListenStream=, Accept=no)")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
