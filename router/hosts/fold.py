"""Folding: the events of a stream become the plain answer that the same host would have given.

Some hosts notice that their client has left only while they stream. Of these a plain answer is asked for as a stream,
and folded here. Measured on llama.cpp, at temperature 0 and a fixed seed, the result equals its plain answer in every
field but ``id``, ``created`` and the values of ``timings``. What its stream does not hold, no folding can give back:
the log probability of the stop token, and the U+FFFD by which its plain answer marks a character that ``max_tokens``
cut in two. Log probabilities together with tools it refuses to stream at all.

Text is never decoded: two JSON strings are joined by joining what stands between their quotation marks, two arrays by
joining what stands between their brackets. An event is taken apart into fields and the rest stays as the host wrote it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from router.errors import UNDECODABLE

_Object = dict[str, Raw]

_decode_object: Final = msgspec.json.Decoder(_Object).decode
_decode_objects: Final = msgspec.json.Decoder(list[_Object]).decode
_decode_index: Final = msgspec.json.Decoder(int).decode
_encode: Final = msgspec.json.Encoder().encode

_NULL: Final = b"null"
_EMPTY_TEXT: Final = b'""'
_NOT_ENDED: Final = frozenset({_NULL, _EMPTY_TEXT})
_TEXTS: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal", "text", "arguments"})
"""Fields that a stream gives in pieces; of every other field the last value that is not null stands."""
_NEVER_CLOSED: Final = 1 << 62
"""Sorts the usage of a stream in which no choice had ended yet behind that of any choice."""


class FoldError(Exception):
    """The stream cannot be folded; ``too_large`` tells that the answer exceeds its bound."""

    def __init__(self, text: str, *, too_large: bool = False) -> None:
        super().__init__(text)
        self.too_large = too_large


class _Fields:
    """One JSON object in the making: single values, and texts in pieces."""

    __slots__ = ("_pieces", "_values")

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._pieces: dict[str, list[bytes]] = {}

    def take(self, name: str, value: bytes) -> int:
        """Take one value; return by how many bytes the object grew, its marks left out."""
        if name in _TEXTS and value[:1] == b'"':
            self._pieces.setdefault(name, []).append(value[1:-1])
            return len(value) - 2
        before = self._values.get(name)
        if before is None:
            self._values[name] = value
            return len(name) + len(value)
        if value == _NULL:
            return 0
        self._values[name] = value
        return len(value) - len(before)

    def values(self) -> dict[str, Raw]:
        """Return the fields as JSON values."""
        out = {name: Raw(value) for name, value in self._values.items()}
        for name, pieces in self._pieces.items():
            out[name] = Raw(b'"%b"' % b"".join(pieces))
        return out


class _Calls:
    """The tool calls of one choice, by index; the index itself is no part of a plain answer."""

    __slots__ = ("_calls", "_functions")

    def __init__(self) -> None:
        self._calls: dict[int, _Fields] = {}
        self._functions: dict[int, _Fields] = {}

    def take(self, data: Raw) -> int:
        size = 0
        for position, call in enumerate(_decode_objects(data)):
            index = call.pop("index", None)
            key = position if index is None else _decode_index(index)
            fields = self._calls.setdefault(key, _Fields())
            function = call.pop("function", None)
            if function is not None:
                size += _take_all(self._functions.setdefault(key, _Fields()), _decode_object(function))
            size += _take_all(fields, call)
        return size

    def values(self) -> list[dict[str, Raw]]:
        out = []
        for key in sorted(self._calls):
            call = self._calls[key].values()
            if key in self._functions:
                call["function"] = Raw(_encode(self._functions[key].values()))
            out.append(call)
        return out


def _take_all(fields: _Fields, given: _Object) -> int:
    return sum(fields.take(name, bytes(value)) for name, value in given.items())


def _given(fields: _Object, name: str) -> Raw | None:
    """Take a field out that is there and not null."""
    if name not in fields:
        return None
    value = fields[name]
    if bytes(value) == _NULL:
        return None
    del fields[name]
    return value


class _Lists:
    """Log probabilities: an object whose arrays grow from event to event."""

    __slots__ = ("_items", "_rest")

    def __init__(self) -> None:
        self._items: dict[str, list[bytes]] = {}
        self._rest = _Fields()

    def take(self, data: Raw) -> int:
        size = 0
        for name, raw in _decode_object(data).items():
            value = bytes(raw)
            if value[:1] != b"[":
                size += self._rest.take(name, value)
                continue
            items = self._items.setdefault(name, [])
            inner = value[1:-1].strip()
            if inner:
                items.append(inner)
                size += len(inner)
        return size

    def values(self) -> dict[str, Raw]:
        out = self._rest.values()
        for name, items in self._items.items():
            out[name] = Raw(b"[%b]" % b",".join(items))
        return out


class _Choice:
    """One choice in the making."""

    __slots__ = ("_calls", "_fields", "_function", "_last_fields", "_logprobs", "_message")

    def __init__(self) -> None:
        self._fields = _Fields()
        self._last_fields: _Object = {}
        self._message = _Fields()
        self._calls: _Calls | None = None
        self._function: _Fields | None = None
        self._logprobs: _Lists | None = None

    def take(self, given: _Object) -> int:
        size = 0
        delta = _given(given, "delta")
        if delta is not None:
            size += self._take_delta(_decode_object(delta))
        logprobs = _given(given, "logprobs")
        if logprobs is not None:
            self._logprobs = self._logprobs or _Lists()
            size += self._logprobs.take(logprobs)
        text = _given(given, "text")  # taken from each event: two tokens in a row may spell the same
        if text is not None:
            size += self._fields.take("text", bytes(text))
        if given != self._last_fields:
            self._last_fields = given
            size += _take_all(self._fields, given)
        return size

    def _take_delta(self, delta: _Object) -> int:
        size = 0
        calls = _given(delta, "tool_calls")
        if calls is not None:
            self._calls = self._calls or _Calls()
            size += self._calls.take(calls)
        function = _given(delta, "function_call")
        if function is not None:
            self._function = self._function or _Fields()
            size += _take_all(self._function, _decode_object(function))
        return size + _take_all(self._message, delta)

    def values(self, *, chat: bool) -> dict[str, Raw]:
        out = self._fields.values()
        if chat:
            out["message"] = Raw(_encode(self._message_values()))
        if self._logprobs is not None:
            out["logprobs"] = Raw(_encode(self._logprobs.values()))
        return out

    def _message_values(self) -> dict[str, Raw | list[dict[str, Raw]]]:
        given = self._message.values()
        # A stream opens with content null; the plain answer has "" where nothing was said, tool calls or not.
        content = given.get("content")
        if content is None or bytes(content) == _NULL:
            given["content"] = Raw(_EMPTY_TEXT)
        out: dict[str, Raw | list[dict[str, Raw]]] = {"role": Raw(b'"assistant"'), **given}
        if self._calls is not None:
            out["tool_calls"] = self._calls.values()
        if self._function is not None:
            out["function_call"] = Raw(_encode(self._function.values()))
        return out


class Fold:
    """Folds one stream: :meth:`add` for the JSON of each event, :meth:`answer` when every choice has ended.

    ``answer_bytes_max`` bounds what the answer may grow to. Both methods raise :class:`FoldError`.
    """

    __slots__ = (
        "_bytes_left",
        "_bytes_max",
        "_chat",
        "_choices",
        "_closing",
        "_fields",
        "_last_closed",
        "_last_fields",
        "_usages",
    )

    def __init__(self, *, chat: bool, answer_bytes_max: int) -> None:
        self._chat = chat
        self._bytes_max = answer_bytes_max
        self._bytes_left = answer_bytes_max
        self._fields = _Fields()
        self._last_fields: _Object = {}
        self._choices: dict[int, _Choice] = {}
        self._usages: dict[int, bytes] = {}
        self._last_closed = _NEVER_CLOSED
        self._closing = False

    def add(self, data: bytes) -> None:
        """Take one event, without ``data: ``."""
        try:
            size = self._take(_decode_object(data))
        except UNDECODABLE as error:
            raise FoldError(f"an event of the host's stream does not have the expected shape: {error}") from None
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise FoldError(f"the host's answer exceeds {self._bytes_max} bytes", too_large=True)

    def _take(self, event: _Object) -> int:
        event.pop("prompt_progress", None)  # how far the prefill is: no part of any plain answer
        choices = event.pop("choices", None)
        rides = False
        size = 0
        for given in _decode_objects(choices) if choices is not None and bytes(choices) != _NULL else ():
            rides = True
            index = _decode_index(given["index"]) if "index" in given else 0
            if index not in self._choices:
                self._choices[index] = _Choice()
            if bytes(given.get("finish_reason", _NULL)) not in _NOT_ENDED:
                self._last_closed = index
            size += self._choices[index].take(given)
        usage = event.pop("usage", None)
        if usage is not None and bytes(usage) != _NULL:
            size += self._take_usage(bytes(usage), rides=rides)
        if event != self._last_fields:  # id, model and the like are the same in every event
            self._last_fields = event
            size += _take_all(self._fields, event)
        return size

    def _take_usage(self, value: bytes, *, rides: bool) -> int:
        """Keep usage by the choice it belongs to.

        A host that counts each choice apart sends it with the choice's end or right behind it; one that counts them
        together sends it once, behind all of them. An event for it alone outweighs running counts on other events.
        """
        if rides and self._closing:
            return 0
        if not rides and not self._closing:
            self._closing = True
            self._usages.clear()
        before = self._usages.get(self._last_closed, b"")
        self._usages[self._last_closed] = value
        return len(value) - len(before)

    def answer(self) -> bytes:
        """Return the plain answer: the choices by index, and of several usages that of the first choice."""
        choices = [_indexed(index, self._choices[index].values(chat=self._chat)) for index in sorted(self._choices)]
        fields: dict[str, Raw | list[dict[str, Raw]]] = {"choices": choices, **self._fields.values()}
        fields["object"] = Raw(b'"chat.completion"' if self._chat else b'"text_completion"')
        if self._usages:
            fields["usage"] = Raw(self._usages[min(self._usages)])
        return _encode(fields)


def _indexed(index: int, choice: dict[str, Raw]) -> dict[str, Raw]:
    choice["index"] = Raw(b"%d" % index)
    return choice
