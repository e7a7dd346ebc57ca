"""Tools of a source as they are published: named, checked, and in the bytes that requests get; pure.

Names. A tool ``create`` of the source ``calendar`` is called ``calendar.create`` in requests to the router. Models and
clients see a function name, which may only have ``A-Za-z0-9_-`` and 64 characters: there it is ``calendar__create`` (or
``create`` where the source has ``prefix = false``), and every dot of a tool's own name is ``__`` too. Two tools whose
function names would be the same are not both published: the later one is refused by name.

Schemas are checked against the JSON Schema dialect that they name, 2020-12 where they name none
(https://json-schema.org/draft/2020-12). What is wrong with one tool leaves the others alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import jsonschema
import msgspec
from jsonschema.validators import validator_for

from router.caches.published import PublishedTool
from router.config.tools import ToolsCache, ToolSource
from router.errors import UNDECODABLE

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REASON_CHARS_MAX: Final = 200
_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_encode: Final = msgspec.json.Encoder().encode


class SchemaError(ValueError):
    """A tool, or a file of tools, is not what it should be; the message says what and why."""


class Tools(NamedTuple):
    """Tools of one source: those that can be published, and ``NAME: why`` of those that cannot."""

    accepted: list[PublishedTool]
    refused: list[str]


def function_name(source: ToolSource, tool_name: str) -> str:
    """Return the name under which models and clients see a tool; raises :class:`SchemaError` where it has none."""
    if not _TOOL_NAME.fullmatch(tool_name):
        raise SchemaError("its name must be 1 to 128 of A-Za-z0-9_.-")
    name = tool_name.replace(".", "__")
    if source.prefix:
        name = f"{source.name}__{name}"
    if not _FUNCTION_NAME.fullmatch(name):
        raise SchemaError(
            f"its function name would be {name}, which has {len(name)} characters, at most 64 are allowed"
        )
    return name


def functions_in(data: bytes, *, is_toml: bool) -> list[Any]:
    """Return the functions of a file; raises :class:`SchemaError`.

    JSON: a list of functions, or an object with such a list as ``tools``; TOML: tables ``[[tools]]``. A function stands
    there itself or as ``{"type": "function", "function": …}``.
    """
    try:
        value: Any = tomllib.loads(data.decode()) if is_toml else msgspec.json.decode(data)
    except (*UNDECODABLE, tomllib.TOMLDecodeError) as error:
        raise SchemaError(f"it is not {'TOML' if is_toml else 'JSON'}: {error}") from None
    if isinstance(value, dict):
        value = value.get("tools")
    if not isinstance(value, list):
        raise SchemaError("expected a list of functions, or one named tools")
    return [_inner(each) for each in value]


def _inner(value: Any) -> Any:
    return value["function"] if isinstance(value, dict) and isinstance(value.get("function"), dict) else value


def make_tools(source: ToolSource, functions: Iterable[Any], limits: ToolsCache) -> Tools:
    """Return the tools of a source from OpenAI functions: ``name``, ``description``, ``parameters`` and what else."""
    accepted: dict[str, PublishedTool] = {}
    refused = []
    for index, function in enumerate(functions):
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            refused.append(f"{source.name}[{index}]: it has no name")
            continue
        full_name = f"{source.name}.{name[:128]}"
        try:
            tool = PublishedTool(full_name, _body(source, function, limits.tool_bytes))
        except SchemaError as error:
            refused.append(f"{full_name}: {error}")
            continue
        if full_name in accepted:
            refused.append(f"{full_name}: it stands twice")
        else:
            accepted[full_name] = tool
    return Tools(list(accepted.values()), refused)


def _body(source: ToolSource, function: dict[str, Any], bytes_max: int) -> bytes:
    own_name = function_name(source, function["name"])
    parameters = function.get("parameters", _NO_PARAMETERS)
    _check_parameters(parameters)
    if not isinstance(function.get("description", ""), str):
        raise SchemaError("its description is not text")
    try:
        body = _encode({"type": "function", "function": {**function, "name": own_name, "parameters": parameters}})
    except (TypeError, RecursionError, ValueError) as error:  # a date of TOML, say
        raise SchemaError(f"it cannot be said in JSON: {error}") from None
    if len(body) > bytes_max:
        raise SchemaError(f"it has {len(body)} bytes, at most {bytes_max} are allowed (cache.tools.tool_bytes)")
    return body


def _check_parameters(parameters: Any) -> None:
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise SchemaError("its parameters are not a JSON Schema of type object")
    try:
        validator_for(parameters, default=jsonschema.Draft202012Validator).check_schema(parameters)
    except jsonschema.SchemaError as error:
        at = "/".join(str(part) for part in error.absolute_path) or "the top"
        raise SchemaError(f"its parameters are no JSON Schema: at {at}: {error.message[:_REASON_CHARS_MAX]}") from None
    except Exception as error:
        raise SchemaError(f"its parameters cannot be checked: {type(error).__name__}") from None


def merge(sources: Sequence[Tools], limits: ToolsCache) -> list[Tools]:
    """Return the tools of all sources within the bounds of all together, each function name once."""
    owners: dict[str, str] = {}
    count = size = 0
    merged = []
    for tools in sources:
        accepted, refused = [], list(tools.refused)
        for tool in tools.accepted:
            own_name = msgspec.json.decode(tool.body)["function"]["name"]
            reason = ""
            if own_name in owners:
                reason = f"its function name {own_name} is that of {owners[own_name]}"
            elif count >= limits.tools:
                reason = f"there are {limits.tools} tools already (cache.tools.tools)"
            elif size + len(tool.body) > limits.total_bytes:
                reason = f"all tools together would exceed {limits.total_bytes} bytes (cache.tools.total_bytes)"
            if reason:
                refused.append(f"{tool.name}: {reason}")
                continue
            owners[own_name] = tool.name
            count, size = count + 1, size + len(tool.body)
            accepted.append(tool)
        merged.append(Tools(accepted, refused))
    return merged
