"""By what a router knows its client: a key in each request, or CURVE keys of the connection."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

KEY_VARIABLE: Final = "RINGROUTER_KEY"
"""Where the key is found that was not given otherwise."""
_Z85_CHARS: Final = 40


class Curve(NamedTuple):
    """The public key of the routers, and this client's own keys; 40 characters of Z85 each."""

    server_key: bytes
    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Curve(server_key={self.server_key!r}, public={self.public!r}, secret not shown)"


class Identity(NamedTuple):
    """Who asks. ``key`` is empty and ``curve`` is ``None`` for nobody in particular."""

    key: str = ""
    curve: Curve | None = None

    def __repr__(self) -> str:
        return f"Identity(key {'not shown' if self.key else 'not given'}, curve={self.curve!r})"


def identity(key: str | None, server_key: str | None, curve_key_file: str | Path | None) -> Identity:
    """Return who asks, with the key of the environment where ``key`` is ``None``; raises :class:`ValueError` that shows
    neither.
    """
    key = os.environ.get(KEY_VARIABLE, "") if key is None else key
    if key and not (key.isascii() and key.isprintable()):
        raise ValueError("key (not shown): expected printable ASCII")
    if (server_key is None) != (curve_key_file is None):
        raise ValueError("server_key and curve_key_file: expected both of them, or neither")
    if server_key is None or curve_key_file is None:
        return Identity(key)
    if len(server_key) != _Z85_CHARS or not server_key.isascii():
        raise ValueError(f"server_key = {server_key!r}: expected 40 characters, as `ringrouter keys curve` prints them")
    public, secret = _read(Path(curve_key_file))
    return Identity(key, Curve(server_key.encode(), public, secret))


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return the public and the secret key of a file of `ringrouter keys curve`."""
    what = f"curve_key_file = {str(path)!r}"
    try:
        if path.stat().st_mode & stat.S_IRWXO:
            raise ValueError(f"{what}: expected a file that others cannot read (chmod o-rwx)")
        values = tomllib.loads(path.read_text(encoding="ascii"))
        keys = [values.get(name, "") for name in ("public", "secret")]
    except OSError as error:
        raise ValueError(f"{what}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise ValueError(f"{what}: expected a file of `ringrouter keys curve`") from None
    if not all(isinstance(each, str) and len(each) == _Z85_CHARS for each in keys):
        raise ValueError(f"{what}: expected a file of `ringrouter keys curve`")
    return keys[0].encode(), keys[1].encode()
