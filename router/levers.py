"""Levers, pure: what rules change of a request before a host gets it.

Rules stand in ``[features.NAME]`` and ``[models.NAME.levers]``; each key of the feature goes before the same key of the
model. Values in, edits and what to tell of them out: nothing else of the body is touched.

* ``max_output_tokens`` is a cap: a request for more, for no number or for no limit (null, -1) gets the cap. It
  holds for every name that hosts know for the number, whichever of them the body has.
* ``default_max_output_tokens`` is for requests that say nothing.
* ``temperature_min`` and ``temperature_max`` bound what a request says; one that says nothing gets
  ``default_temperature``, and without that the host's own default stands, which the router does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.telemetry.records import Lever

if TYPE_CHECKING:
    from router.config import LeverRules

LIMIT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
"""Names of the number in the APIs; the first that is given is taken for what the client asked for. llama.cpp takes
``n_predict`` in chats too, where it goes before the others."""
TEMPERATURE: Final = "temperature"
NOT_ASKED: Final = -1.0
"""In a record: the request said no temperature."""
_MAX_TOKENS, _TEMPERATURE = int(Lever.MAX_TOKENS), int(Lever.TEMPERATURE)


class Limits(NamedTuple):
    """The rules that hold for one request."""

    max_output_tokens: int | None
    default_max_output_tokens: int | None
    temperature_min: float | None
    temperature_max: float | None
    default_temperature: float | None

    @property
    def have_rules(self) -> bool:
        """Whether there is any."""
        return any(value is not None for value in self)


class Levered(NamedTuple):
    """What becomes of a request. ``edits`` are fields of its body with their new values.

    ``asked_max_tokens`` is 0 and ``asked_temperature`` :data:`NOT_ASKED` where the request said none; ``max_tokens``
    and ``temperature`` are what the host gets, ``None`` where the router sets none. ``notes`` say what was changed.
    """

    flags: int
    edits: dict[str, float]
    notes: tuple[str, ...]
    asked_max_tokens: int
    asked_temperature: float
    max_tokens: int | None
    temperature: float | None


NOTHING: Final = Levered(0, {}, (), 0, NOT_ASKED, None, None)
"""Of a request of which only the model was changed."""


def limits_of(feature: LeverRules | None, model: LeverRules) -> Limits:
    """Return the rules that hold: each of the feature where it has one, else the model's.

    Where that leaves a default outside its bounds (the one of the feature, the other of the model), the bound holds.
    """
    return Limits(*(_first(feature, model, name) for name in Limits._fields))


def _first(feature: LeverRules | None, model: LeverRules, name: str) -> Any:
    own = getattr(feature, name) if feature is not None else None
    return getattr(model, name) if own is None else own


def apply(limits: Limits, fields: Mapping[str, Any], limit_field: str) -> Levered | None:
    """Return what rules change of a request, ``None`` for nothing.

    ``fields`` are those of :data:`LIMIT_FIELDS` and ``temperature`` that its body has, with their values;
    ``limit_field`` is the name of the number in its API, for a body that has none.
    """
    edits = _token_edits(limits, fields, limit_field)
    temperature = _temperature(limits, fields.get(TEMPERATURE))
    flags = _MAX_TOKENS if edits else 0
    if temperature is not None:
        edits[TEMPERATURE] = temperature
        flags |= _TEMPERATURE
    if not flags:
        return None
    asked = next((int(fields[name]) for name in LIMIT_FIELDS if _is_count(fields.get(name))), 0)
    given = fields.get(TEMPERATURE)
    counts = [int(value) for name, value in {**fields, **edits}.items() if name in LIMIT_FIELDS and _is_count(value)]
    return Levered(
        flags,
        edits,
        tuple(_note(name, value, fields.get(name)) for name, value in edits.items()),
        asked,
        float(given) if given is not None and _is_number(given) else NOT_ASKED,
        min(counts) if flags & _MAX_TOKENS and counts else None,
        temperature,
    )


def _token_edits(limits: Limits, fields: Mapping[str, Any], limit_field: str) -> dict[str, float]:
    """Return the new values of the names under which a body limits its tokens."""
    most = limits.max_output_tokens
    given = [name for name in LIMIT_FIELDS if fields.get(name) is not None]
    if not given:  # a null says as little as nothing
        usual = limits.default_max_output_tokens
        value = most if usual is None or (most is not None and usual > most) else usual
        named = next((name for name in LIMIT_FIELDS if name in fields), limit_field)
        return {} if value is None else {named: value}
    if most is None:
        return {}
    return {name: most for name in given if not _is_count(fields[name]) or fields[name] > most}


def _temperature(limits: Limits, given: Any) -> float | None:
    """Return the temperature to set, ``None`` where what is given stands."""
    if given is None:
        given = limits.default_temperature
        return None if given is None else _bounded(limits, given)
    if not _is_number(given):  # for the host to judge
        return None
    bounded = _bounded(limits, given)
    return None if bounded == given else bounded


def _bounded(limits: Limits, value: float) -> float:
    if limits.temperature_max is not None:
        value = min(value, limits.temperature_max)
    return value if limits.temperature_min is None else max(value, limits.temperature_min)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    """Whether a value limits tokens: hosts take a negative one for no limit."""
    return _is_number(value) and value >= 0


def _note(name: str, value: float, asked: Any) -> str:
    said = f"asked {asked:.10g}" if _is_number(asked) else "not asked"
    return f"{name}={value:.10g} ({said})"
