"""Log messages as fields of the systemd journal, through its native socket (systemd.journal-fields(7), and
https://systemd.io/JOURNAL_NATIVE_PROTOCOL).

A datagram a message, never waited for: what the journal does not take is dropped and counted, and the next message that
it takes says how many there were.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

SOCKET_PATH: Final = "/run/systemd/journal/socket"
_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""syslog(3)."""
_VALUE_BYTES_MAX: Final = 8192
_FIELDS_MAX: Final = 64
"""With that and the bound of a value a message stays below the 208 KiB that a datagram may have by default."""
_UNFIT: Final = re.compile(r"[^A-Z0-9_]")


def is_ours(environment: Mapping[str, str] | None = None) -> bool:
    """Whether standard error goes to the journal: ``$JOURNAL_STREAM`` names its device and inode."""
    known = os.environ if environment is None else environment
    stream = known.get("JOURNAL_STREAM", "")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}" and os.path.exists(SOCKET_PATH)


def render(_: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
    """Turn an event of structlog into a message of the journal: its last processor.

    The event and each of its values are fields (``RINGROUTER_HOST``, ...), and the text has them too, for people.
    """
    what = str(event.pop("event", ""))
    event.pop("level", None)
    event.pop("timestamp", None)  # the journal has its own
    values = {key: _as_text(value) for key, value in list(event.items())[:_FIELDS_MAX]}
    text = " ".join(
        [what, *(f"{key}={value!r}" if " " in value else f"{key}={value}" for key, value in values.items())]
    )
    parts = [
        field("MESSAGE", text),
        field("PRIORITY", str(_PRIORITIES.get(level, 6))),
        field("SYSLOG_IDENTIFIER", "ringrouter"),
        field("RINGROUTER_EVENT", what),
        *(field(f"RINGROUTER_{_UNFIT.sub('_', key.upper())}", value) for key, value in values.items()),
    ]
    return b"".join(parts)


def field(name: str, value: str) -> bytes:
    """Return one field; a value with line ends has its length before it."""
    raw = value.encode("utf-8", "replace")[:_VALUE_BYTES_MAX]
    if b"\n" not in raw:
        return b"%b=%b\n" % (name.encode(), raw)
    return b"%b\n%b%b\n" % (name.encode(), len(raw).to_bytes(8, "little"), raw)


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple | set):
        return ", ".join(str(each) for each in value)
    return str(value)


class JournalLogger:
    """What structlog writes to. All levels go the same way: the level is a field already."""

    def __init__(self, path: str = SOCKET_PATH) -> None:
        self.dropped_count = 0
        """Messages that the journal did not take."""
        self._path = path
        self._unsaid = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def msg(self, message: bytes) -> None:
        """Send a message, or drop it."""
        if self._unsaid:
            message += field("RINGROUTER_DROPPED_BEFORE", str(self._unsaid))
        try:
            self._socket.sendto(message, self._path)
        except OSError:  # its queue is full, or it is being restarted
            self.dropped_count += 1
            self._unsaid += 1
        else:
            self._unsaid = 0

    debug = info = warning = error = critical = exception = log = warn = fatal = failure = err = msg
