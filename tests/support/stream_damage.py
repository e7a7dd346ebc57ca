"""Streams as no host should send them."""

from __future__ import annotations

import random

SPICE = (
    b"\r\n\r\n",
    b"\n\n",
    b"data: ",
    b"[DONE]",
    b'"error"',
    b'"content":"',
    b"0\r\n\r\n",
    b"\\",
    b'"',
    b"\0",
    b"\xff",
)


def damage(framed: bytes, rng: random.Random) -> bytes:
    """Return a stream with some of its bytes left out, changed, or put in twice."""
    data = bytearray(framed)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randint(1, 40)]
            case 1:
                data[at:at] = rng.choice(SPICE)
            case 2:
                data[at:at] = bytes(data[rng.randrange(len(data) + 1) :][: rng.randint(1, 300)])
            case _:
                data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)
