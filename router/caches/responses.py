"""Whole answers, kept for requests that are the same in everything that matters; pure.

An answer is kept under a hash of the model, the endpoint, whether it is streamed, whose key asked, and the body in
canonical form without the fields that only say who asks (:data:`_IDENTITIES`). The bound is of memory: what an entry
takes is what its parts take, as the interpreter counts them, with the entry itself; answers that are being recorded
count too. The least lately used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from sys import getsizeof
from typing import Any, Final, NamedTuple

import msgspec

from router.errors import UNDECODABLE

_IDENTITIES: Final = ("user", "metadata", "safety_identifier", "prompt_cache_key", "stream")
_KEY_BYTES: Final = 32
_CREDENTIALS: Final = (b"authorization", b"x-api-key")
_NODE_BYTES: Final = 160
"""Of an entry in an :class:`OrderedDict`: its place in the table and its node, measured with ``tracemalloc``."""
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder(order="sorted").encode


class Answer(NamedTuple):
    """One whole answer, without framing and without ``[DONE]``."""

    body: bytes
    content_type: bytes
    sentinel: bytes
    """The event that ends the stream, empty for an answer that is none."""
    usage: bytes | None
    choice_count: int
    made_ns: int
    took_ns: int
    """From the loop's taking the request to the end of the answer."""


def size_of(answer: Answer) -> int:
    """Return the bytes of memory that an entry takes, key and all."""
    parts = (answer.body, answer.content_type, answer.sentinel, answer.usage, answer.made_ns, answer.took_ns)
    return getsizeof(answer) + sum(getsizeof(part) for part in parts) + getsizeof(b"") + _KEY_BYTES + _NODE_BYTES


def key_of(
    body: bytes, model: str, endpoint: int, headers: Mapping[bytes, bytes], *, streams: bool, owner: str = ""
) -> bytes | None:
    """Return the hash under which an answer is kept; ``None`` for a body that has no canonical form.

    ``model`` is the one that answers: by the rules of a feature it may be another than the body names. ``owner`` is the
    name of the router's own key that asks; the key itself is in no header any more.
    """
    try:
        fields = _decode(body)
        for name in _IDENTITIES:
            fields.pop(name, None)
        canonical = _encode(fields)
    except (*UNDECODABLE, OverflowError):
        return None
    digest = blake2b(digest_size=_KEY_BYTES, person=b"%d%d" % (endpoint, streams))
    for part in (model.encode(), owner.encode(), *(headers.get(name, b"") for name in _CREDENTIALS)):
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(part)
    digest.update(canonical)
    return digest.digest()


class Responses:
    """The answers that are kept. They take ``used_bytes``, of which ``recording_bytes`` are of answers not complete."""

    def __init__(self, total_bytes: int, ttl_ns: int) -> None:
        self.used_bytes = 0
        self.recording_bytes = 0
        self.evicted_count = 0
        self.expired_count = 0
        self._total_bytes = total_bytes
        self._ttl_ns = ttl_ns
        self._answers: OrderedDict[bytes, tuple[Answer, int]] = OrderedDict()

    @property
    def count(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    def oldest_ns(self) -> int:
        """Return when the answer was made that was used longest ago, 0 without any."""
        return next(iter(self._answers.values()))[0].made_ns if self._answers else 0

    def get(self, key: bytes, now: int) -> Answer | None:
        """Return an answer that is not too old."""
        found = self._answers.get(key)
        if found is None:
            return None
        if now - found[0].made_ns >= self._ttl_ns:
            self._remove(key)
            self.expired_count += 1
            return None
        self._answers.move_to_end(key)
        return found[0]

    def put(self, key: bytes, answer: Answer) -> bool:
        """Keep an answer in the place of an older one; false where it is larger than everything may be."""
        size = size_of(answer)
        if key in self._answers:
            self._remove(key)
        if not self._make_room(size):
            return False
        self._answers[key] = answer, size
        self.used_bytes += size
        return True

    def reserve(self, size: int) -> bool:
        """Count bytes of an answer that is being recorded; false where there is no room for them."""
        if not self._make_room(size):
            return False
        self.used_bytes += size
        self.recording_bytes += size
        return True

    def release(self, size: int) -> None:
        """Count them no more."""
        self.used_bytes -= size
        self.recording_bytes -= size

    def expire(self, now: int, count_max: int) -> None:
        """Let go of answers that are too old, of the ``count_max`` that were used longest ago."""
        old = [key for key, _ in zip(self._answers, range(count_max), strict=False)]
        for key in old:
            if now - self._answers[key][0].made_ns >= self._ttl_ns:
                self._remove(key)
                self.expired_count += 1

    def _make_room(self, size: int) -> bool:
        if size + self.recording_bytes > self._total_bytes:
            return False
        while self.used_bytes + size > self._total_bytes:
            self._remove(next(iter(self._answers)))
            self.evicted_count += 1
        return True

    def _remove(self, key: bytes) -> None:
        self.used_bytes -= self._answers.pop(key)[1]


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Whole(msgspec.Struct):
    choices: list[_Choice] = []


_decode_whole: Final = msgspec.json.Decoder(_Whole).decode


def is_finished(body: bytes) -> bool:
    """Return whether a whole answer has choices and each says why it ended."""
    try:
        choices = _decode_whole(body).choices
    except UNDECODABLE:
        return False
    return bool(choices) and all(isinstance(choice.finish_reason, str) for choice in choices)
