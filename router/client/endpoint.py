"""Where a router on this machine listens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_SUN_PATH_BYTES_MAX: Final = 107
"""sun_path of sockaddr_un, less its NUL."""
_LOOPBACK: Final = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:")


def default_endpoint(instance: str = "main") -> str:
    """Return ``ipc://RUN/INSTANCE/zmq.sock``, with RUN as a router without a configuration chooses it.

    RUN is ``$RUNTIME_DIRECTORY``, else ``$XDG_RUNTIME_DIR/ringrouter``, else ``/dev/shm/ringrouter-UID``; the last one
    too where only there a socket is (a router leaves a directory that is not on a tmpfs).
    """
    on_tmpfs = Path(f"/dev/shm/ringrouter-{os.getuid()}") / instance / "zmq.sock"  # noqa: S108 - only looked up
    wanted = _run_dir()
    if wanted is None:
        return f"ipc://{on_tmpfs}"
    path = wanted / instance / "zmq.sock"
    return f"ipc://{on_tmpfs if not path.exists() and on_tmpfs.exists() else path}"


def _run_dir() -> Path | None:
    if from_systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "ringrouter"
    return None


def check(endpoint: str) -> str:
    """Return the endpoint; raises :class:`ValueError` for one that libzmq could not connect to."""
    if endpoint.startswith("ipc:///"):
        if len(os.fsencode(endpoint.removeprefix("ipc://"))) <= _SUN_PATH_BYTES_MAX:
            return endpoint
        raise ValueError(f"{endpoint!r}: expected a path of at most {_SUN_PATH_BYTES_MAX} bytes")
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if endpoint.startswith("tcp://") and host and colon and port.isdigit() and 0 < int(port) <= 65535:
        return endpoint
    raise ValueError(f"{endpoint!r}: expected ipc:///absolute/path or tcp://address:port")


def describe(endpoint: str) -> str:
    """Return the endpoint for an error that nobody answers there, with what can be seen from here."""
    try:
        if endpoint.startswith("ipc://"):
            os.stat(endpoint.removeprefix("ipc://"))
    except (FileNotFoundError, NotADirectoryError):
        return f"{endpoint} (there is no such file)"
    except OSError as error:
        return f"{endpoint} ({error.strerror})"
    return endpoint


def same_clock(endpoint: str) -> bool:
    """Return whether a router there has the clock of this process."""
    return endpoint.startswith(("ipc:", *_LOOPBACK))
