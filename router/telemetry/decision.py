"""What a done record says of decisions: its decision part, written field by field by whoever decided something, and the
hosts that routing looked at; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.routing import Reason
from router.telemetry.records import CANDIDATE_COUNT, CANDIDATES, DECISION, DECISION_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.request import Request
    from router.routing import Verdict

_POSITIONS: Final = {name: position for position, (name, _, _) in enumerate(DECISION_FIELDS)}
_MOST: Final = {name: (1 << 8 * {"B": 1, "H": 2, "I": 4, "Q": 8}[code[0]]) - 1 for name, code, _ in DECISION_FIELDS
                if code[0] != "f"}  # fmt: skip
_ZEROS: Final[list[Any]] = list(DECISION.unpack(bytes(DECISION.size)))
_UNHEALTHY: Final = int(Reason.UNHEALTHY)
_NO_CANDIDATES: Final = (0,) * (3 * CANDIDATE_COUNT)


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


def pack_verdicts(verdicts: Sequence[Verdict], bars: dict[int, int]) -> bytes:
    """Return the first verdicts as a record has them.

    ``bars`` says by host why it could not be used, as far as that is known better than by the verdict.
    """
    values: list[float] = []
    for host_id, reason, score in verdicts[:CANDIDATE_COUNT]:
        values += (host_id, bars.get(host_id, 0) or reason if reason == _UNHEALTHY else reason, score)
    return CANDIDATES.pack(*values, *_NO_CANDIDATES[len(values) :])
