"""The files of ``systemd/`` as they are installed: with the path of this program, and for a user's own manager without
what only root may ask for. Text in, text out.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

SYSTEM_PROGRAM: Final = "/usr/bin/ringrouter"
"""Stands in the files as they come, for distributions that install the program there."""
_MARK: Final = (
    "# Installed by `ringrouter service install`. Change it with `systemctl edit`, which survives the next one. "
)
_SEAL: Final = re.compile(re.escape(_MARK) + r"seal ([0-9a-f]{16})\n")
_NOT_FOR_USERS: Final = re.compile(
    r"(^#.*\n)*^(User|Group|SocketUser|SocketGroup|OOMScoreAdjust|CPUWeight|CapabilityBoundingSet|AmbientCapabilities|DevicePolicy"
    r"|PrivateDevices|PrivateTmp|PrivateMounts|PrivateUsers|Protect\w+|RemoveIPC|KeyringMode|IPAddress\w+|LoadCredential"
    r"|ConfigurationDirectory\w*)=.*\n",
    re.MULTILINE,
)


def for_system(text: str, program: str) -> str:
    """Return a unit for the system's manager, run by ``program`` (a path, or a path and its first arguments)."""
    return text.replace(SYSTEM_PROGRAM, program)


def for_user(text: str, program: str) -> str:
    """Return a unit for a user's own manager: its directories, and none of the settings that need root.

    What is left out is the sandbox: the router runs with all rights of that user.
    """
    text = _NOT_FOR_USERS.sub("", text.replace(SYSTEM_PROGRAM, program))
    text = text.replace("/etc/ringrouter/", "%E/ringrouter/").replace("/run/ringrouter/", "%t/ringrouter/")
    return text.replace("multi-user.target", "default.target")


def sealed(text: str) -> str:
    """Return a file with a first line that tells whether somebody has changed the rest since."""
    return f"{_MARK}seal {_digest(text)}\n{text}"


def is_untouched(installed: str) -> bool:
    """Whether a file is as an installation has left it, of whatever version."""
    match = _SEAL.match(installed)
    return match is not None and _digest(installed[match.end() :]) == match.group(1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
