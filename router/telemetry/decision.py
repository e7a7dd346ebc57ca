"""The decision part of a done record, written field by field by whoever decided something; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.telemetry.records import DECISION, DECISION_FIELDS

if TYPE_CHECKING:
    from router.request import Request

_POSITIONS: Final = {name: position for position, (name, _, _) in enumerate(DECISION_FIELDS)}
_MOST: Final = {name: (1 << 8 * {"B": 1, "H": 2, "I": 4, "Q": 8}[code[0]]) - 1 for name, code, _ in DECISION_FIELDS
                if code[0] != "f"}  # fmt: skip
_ZEROS: Final[list[Any]] = list(DECISION.unpack(bytes(DECISION.size)))


def note(request: Request, **values: Any) -> None:
    """Set fields of a request's decision by name; what is set stays. A count is cut to the most its field can hold."""
    packed = request.packed_decision
    all_values = list(DECISION.unpack(packed)) if packed else _ZEROS.copy()
    for name, value in values.items():
        most = _MOST.get(name)
        if most is not None and not 0 <= value <= most:
            value = min(max(int(value), 0), most)  # noqa: PLW2901
        all_values[_POSITIONS[name]] = value
    request.packed_decision = DECISION.pack(*all_values)
