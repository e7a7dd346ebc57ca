"""Messages between the keeper and whoever asks it, on a unix socket; pure.

A frame is its length as u32, little-endian, and MessagePack. A question is ``[number, verb, payload]``, an answer
``[number, is_ok, payload]``; of one that is not ok the payload is the text that says why. Answers may come in any
order. Number 0 is none of a question: the keeper says how it does, ``[0, true, status]``, every second.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from router.errors import UNDECODABLE

FRAME_BYTES_MAX: Final = 64 << 20
"""The largest body of a request fits, as the largest answer of the tables does."""
_LENGTH: Final = struct.Struct("<I")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_question: Final = msgspec.msgpack.Decoder(tuple[int, str, Any]).decode
_decode_answer: Final = msgspec.msgpack.Decoder(tuple[int, bool, Any]).decode


class FrameError(ValueError):
    """Bytes that are no frame: the connection is of no more use."""


def question(number: int, verb: str, payload: Any) -> bytes:
    """Return the frame of a question."""
    return _framed(_encode((number, verb, payload)))


def answer(number: int, payload: Any, *, is_ok: bool = True) -> bytes:
    """Return the frame of an answer."""
    return _framed(_encode((number, is_ok, payload)))


def _framed(body: bytes) -> bytes:
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"a message of {len(body)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    return _LENGTH.pack(len(body)) + body


def read_question(body: bytes) -> tuple[int, str, Any]:
    """Decode the body of a question's frame; raises :class:`FrameError`."""
    try:
        return _decode_question(body)
    except UNDECODABLE as error:
        raise FrameError(f"not a question: {error}") from None


def read_answer(body: bytes) -> tuple[int, bool, Any]:
    """Decode the body of an answer's frame; raises :class:`FrameError`."""
    try:
        return _decode_answer(body)
    except UNDECODABLE as error:
        raise FrameError(f"not an answer: {error}") from None


class Deframer:
    """Cuts bytes as they come into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the bodies of the frames that are whole now. Raises :class:`FrameError`."""
        buffer = self._buffer
        buffer += data
        bodies = []
        begin = 0
        while len(buffer) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, begin)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"a message of {length} bytes, at most {FRAME_BYTES_MAX} are allowed")
            end = begin + _LENGTH.size + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[begin + _LENGTH.size : end]))
            begin = end
        del buffer[:begin]
        return bodies
