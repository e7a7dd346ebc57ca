"""Credentials that systemd gives a process (``LoadCredential=``): small files that no other process can read."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from router.errors import ConfigError


@cache
def credential(name: str) -> str:
    """Return the text of a credential that systemd gave this process, empty without it. Read once: the file does not
    change while the process lives, and a request must not wait for it.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        return (Path(directory) / name).read_text(encoding="utf-8").strip() if directory else ""
    except (OSError, UnicodeDecodeError):
        return ""


def credential_file(name: str, key: str) -> Path:
    """Return where a credential is; raises :class:`ConfigError` that begins with ``key`` where systemd gave none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ConfigError(f"{key}: expected a credential that systemd gives this process (LoadCredential=)")
    return Path(directory) / name
