"""What a configuration struct allows, in words: one wording for error messages and for the reference.

msgspec checks the values; this module says what it would have accepted. The bounds are read from the annotations, so
that they stand in one place. Where a bound cannot be said in words (a pattern), the annotation carries the words
itself: ``Meta(pattern=..., extra={"allowed": "..."})``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from router.masking import masked

VALUE_CHARS_MAX: Final = 80
"""Longest part of a refused value that an error message repeats."""
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def number(value: float) -> str:
    """Write a number as TOML takes it, with ``_`` between thousands where it has five digits or more."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:_}" if abs(value) >= 10_000 else f"{value}"


def shown(value: Any) -> str:
    """Write a value as it would stand in the file, cut to :data:`VALUE_CHARS_MAX` characters and without keys."""
    text = masked(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}…"


def allowed(kind: Any) -> str:
    """Return what a type accepts: ``a whole number between 1 and 4``, ``one of "auto", "json"``."""
    return _words(inspect.type_info(kind))


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(extra={"allowed": words}):
            return str(words)
        case inspect.Metadata():
            return _words(kind.type)
        case inspect.UnionType():
            return " or ".join(_words(t) for t in kind.types if not isinstance(t, inspect.NoneType))
        case inspect.LiteralType():
            values = [shown(value) for value in kind.values]
            return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.ListType():
            return f"a list{_length(kind)}, each {_words(kind.item_type)}"
        case inspect.DictType():
            return f"a table, each value {_words(kind.value_type)}"
        case inspect.StructType():
            return f"a table with the keys {', '.join(sorted(f.encode_name for f in kind.fields))}"
    return "text"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" between {number(kind.ge)} and {number(kind.le)}"
    bounds = ((kind.gt, "above"), (kind.ge, "at least"), (kind.lt, "below"), (kind.le, "at most"))
    return " " + ", ".join(f"{word} {number(bound)}" for bound, word in bounds if bound is not None)


def _length(kind: inspect.ListType) -> str:
    least, most = kind.min_length, kind.max_length
    if least and most is not None:
        return f" of {least} to {most}"
    if most is not None:
        return f" of at most {most}"
    return f" of at least {least}" if least else ""


def explain(kind: type[msgspec.Struct], value: Any) -> str:
    """Name the first fault of a value that msgspec refused: key, value and what is allowed."""
    return _fault(kind, value, "")


def _fault(kind: Any, value: Any, key: str) -> str:
    """Descend to the innermost value that is refused and describe it."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if _is_struct(bare) and isinstance(value, Mapping) and (fault := _wrong_keys(bare, value, key)):
        return fault
    if get_origin(bare) is dict and isinstance(value, Mapping):
        for name in value:
            if not _fits(name, get_args(bare)[0]):
                return f"{_joined(key, name)} is not a known key (allowed: {allowed(get_args(bare)[0])})"
    for inner_key, inner_kind, inner_value in _inner(bare, value, key):
        try:
            msgspec.convert(inner_value, inner_kind)
        except msgspec.ValidationError:
            return _fault(inner_kind, inner_value, inner_key)
    return f"{key} = {shown(value)}: expected {allowed(kind)}"


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _wrong_keys(kind: type[msgspec.Struct], value: Mapping[str, Any], key: str) -> str:
    """Say which key of a table is not known or is missing; empty when all are right."""
    fields = msgspec.structs.fields(kind)
    known = sorted(field.encode_name for field in fields)
    for given in value:
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{_joined(key, given)} is not a known key{hint} (allowed: {', '.join(known)})"
    for field in fields:
        if field.required and field.encode_name not in value:
            return f"{_joined(key, field.encode_name)} is missing: expected {allowed(field.type)}"
    return ""


def _inner(kind: Any, value: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, type and value of everything that stands directly inside a value of the right shape."""
    if get_origin(kind) in {Union, UnionType}:
        for member in get_args(kind):
            yield from _inner(member, value, key)
    elif _is_struct(kind) and isinstance(value, Mapping):
        for field in msgspec.structs.fields(kind):
            if field.encode_name in value:
                yield _joined(key, field.encode_name), field.type, value[field.encode_name]
    elif get_origin(kind) is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield f"{key}[{index}]", get_args(kind)[0], item
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        for name, item in value.items():
            yield _joined(key, name), get_args(kind)[1], item


def _joined(key: str, name: str) -> str:
    """Append a name to a dotted key, quoted where TOML would need it."""
    step = shown_key(name)
    return f"{key}.{step}" if key else step


def shown_key(name: str) -> str:
    """Write a key as TOML takes it: quoted where it must be."""
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
