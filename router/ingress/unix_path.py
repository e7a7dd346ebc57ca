"""The path of a unix socket, before somebody listens there."""

from __future__ import annotations

import os
import socket
import stat
from errno import EADDRINUSE, ENOTSOCK
from pathlib import Path


def make_free(path: str) -> None:
    """Remove the socket that a dead process left at a path; raises :class:`OSError` when anything else is there.

    Whoever listens need not answer to be seen: a connection is only begun.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(ENOTSOCK, "a file that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full
    raise OSError(EADDRINUSE, "another process listens there")
