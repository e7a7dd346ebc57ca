"""Datagrams to the service manager: the protocol of sd_notify(3), without its library.

Sending never blocks and never fails aloud: a manager that does not read costs the router nothing but the message.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from time import monotonic_ns
from typing import Final

_US_NS: Final = 1000
_STATUS_BYTES_MAX: Final = 512
"""systemd shows one line of it; what clients or hosts sent is never in it, but names of the configuration are."""


class Notifier:
    """Says how the service is to the socket that ``$NOTIFY_SOCKET`` names; without one it says nothing.

    ``watchdog_ns`` is how long the manager waits between two :meth:`alive` before it ends the process, 0 = it does not.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        self._address = _address(known.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_ns = _watchdog_ns(known)
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def send(self, *lines: str) -> bool:
        """Send assignments such as ``READY=1`` in one datagram; false when nobody took it."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError:  # nobody listens any more, or its queue is full: the next message says the same, later
            return False
        return True

    def ready(self, status: str) -> None:
        """The service is up, or a reload is over."""
        self.send("READY=1", f"STATUS={one_line(status)}")

    def took_over(self, status: str) -> None:
        """The service is up, and this process is its main one from now on."""
        self.send(f"MAINPID={os.getpid()}", "READY=1", f"STATUS={one_line(status)}")

    def reloading(self) -> None:
        """A reload begins. The time stamp is what lets systemd tell this reload from the one before (253 and later)."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // _US_NS}", "STATUS=reloading the configuration")

    def stopping(self, status: str) -> None:
        """The service is going down."""
        self.send("STOPPING=1", f"STATUS={one_line(status)}")

    def status(self, text: str) -> None:
        """Say in one line how the service is."""
        self.send(f"STATUS={one_line(text)}")

    def alive(self) -> None:
        """The loop has made progress since the last time."""
        if self.watchdog_ns:
            self.send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so much more time to start or to stop, from now."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def one_line(text: str) -> str:
    """Return a text without line ends, which would begin another assignment, cut to what a status may hold."""
    flat = " ".join(text.split())
    return flat.encode("utf-8", "replace")[:_STATUS_BYTES_MAX].decode("utf-8", "ignore")


def _address(name: str) -> str:
    """Return the socket's address: a path, or with ``@`` an abstract name. Other kinds are not spoken."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_ns(known: Mapping[str, str]) -> int:
    """Return the watchdog's time; 0 when there is none or it watches another process (sd_watchdog_enabled(3))."""
    text, pid = known.get("WATCHDOG_USEC", ""), known.get("WATCHDOG_PID", "")
    if not text.isdigit() or (pid and pid != str(os.getpid())):
        return 0
    return int(text) * _US_NS
