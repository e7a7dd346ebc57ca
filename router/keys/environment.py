"""The key of this project's own programs that ask a router: the keeper, ``ringrouter cache``, ``ringrouter run``."""

from __future__ import annotations

import os
from typing import Final

KEY_VARIABLE: Final = "RINGROUTER_KEY"
"""As :mod:`router.client` reads it."""


def bearer() -> dict[str, str]:
    """Return the header that shows the key of the environment, none without one."""
    key = os.environ.get(KEY_VARIABLE, "")
    return {"authorization": f"Bearer {key}"} if key and key.isascii() and key.isprintable() else {}
