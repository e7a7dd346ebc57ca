"""A request for embeddings as the cache sees it: its texts, and the key of each; pure.

A key is 24 bytes: 8 of the *space* (model, revision, dimensions) and 16 of BLAKE2b of the text. Nobody can make two
texts with one key, so no client can plant a vector that another one is answered with.

What is not plainly understood is none of the cache's: a body with further fields may ask for vectors of another kind,
so it goes to a host as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

import msgspec

from router.errors import UNDECODABLE

SPACE_BYTES: Final = 8
KEY_BYTES: Final = 24
_TEXT_DIGEST_BYTES: Final = KEY_BYTES - SPACE_BYTES
_DIMENSIONS_MAX: Final = 1 << 20
Form = Literal["float", "base64"]


class Space(msgspec.Struct, frozen=True, array_like=True):
    """Vectors that can be compared: of one model, revision and number of dimensions (0: as many as the model has)."""

    model: str
    revision: str = ""
    dimensions: int = 0
    echo: str = ""
    """What hosts call the model in their answers; no part of its identity."""

    def record(self) -> bytes:
        """Return it as MessagePack."""
        return _encode_record(self)

    def space_id(self) -> bytes:
        """Return the first bytes of the keys of its texts."""
        identity = _encode_record((self.model, self.revision, self.dimensions))
        return blake2b(identity, digest_size=SPACE_BYTES).digest()


class Texts(NamedTuple):
    """A request's texts. ``items`` are the texts, or lists of token ids, in their order."""

    items: Sequence[str | list[int]]
    form: Form
    dimensions: int


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Any = None
    metadata: Any = None


_decode_body: Final = msgspec.json.Decoder(_Body).decode
_encode_record: Final = msgspec.msgpack.Encoder().encode
_encode_json: Final = msgspec.json.Encoder().encode


def read_texts(body: bytes) -> Texts | None:
    """Return the texts of a request's body, ``None`` where it is for a host to judge."""
    try:
        asked = _decode_body(body)
    except UNDECODABLE:
        return None
    given = asked.input
    dimensions = asked.dimensions
    if dimensions is None:
        dimensions = 0
    elif not 0 < dimensions <= _DIMENSIONS_MAX:
        return None
    if type(given) is str:
        items: Sequence[Any] = (given,)
    elif all(type(item) is int for item in given):
        items = (given,)
    elif all(type(item) is str for item in given) or all(type(item) is list for item in given):
        items = given
    else:
        return None
    if not all(items):  # an empty text, or none at all
        return None
    return Texts(items, asked.encoding_format or "float", dimensions)


def key_of(space_id: bytes, item: str | list[int]) -> bytes:
    """Return the key of a text, or of a list of token ids, which is not the key of any text."""
    data = b"s" + item.encode() if type(item) is str else b"t" + _encode_json(item)
    return space_id + blake2b(data, digest_size=_TEXT_DIGEST_BYTES).digest()


def call_body(model: str, texts: Sequence[bytes], form: Form, dimensions: int) -> bytes:
    """Return the body of a host's call; ``texts`` are JSON."""
    more = b',"dimensions":%d' % dimensions if dimensions else b""
    return b'{"model":%b,"input":[%b],"encoding_format":"%b"%b}' % (
        _encode_json(model), b",".join(texts), form.encode(), more,
    )  # fmt: skip


def as_json(item: str | list[int]) -> bytes:
    """Return a text as it stands in the body of a call."""
    return _encode_json(item)
