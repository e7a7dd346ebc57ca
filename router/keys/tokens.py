"""Keys as text, and their hashes; pure.

A key is 256 random bits, so a plain SHA-256 of it is as hard to turn round as the key is to guess: the slow, salted
hashes for passwords protect what people choose, and would cost milliseconds for each request here.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

PREFIX: Final = "rr_"
"""Tells scanners of repositories and logs what it is that they have found."""
_RANDOM_BYTES: Final = 32
TOKEN_BYTES_MAX: Final = 512
"""Longer ones are refused without being hashed."""


def new_token() -> str:
    """Return a new key: the prefix and 43 characters of base64url."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(token: bytes) -> bytes:
    """Return the SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(token).digest()


def hash_of(token: str) -> str:
    """Return what stands for a key in the configuration: ``sha256:`` and hexadecimal digits."""
    return f"sha256:{digest_of(token.encode()).hex()}"
