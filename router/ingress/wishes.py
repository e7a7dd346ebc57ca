"""What a request says of how it wants to be served: its class, its deadline, its feature; and what follows from that.

A class or a deadline comes from the request's own header, else from the rules of its feature (``[features.NAME]``), a
class else from its tags ``realtime`` and ``workload_class``, both else from the model (``[models.NAME.admission]``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from router.admission import CLASS_NAMES, CLASS_NUMBERS, REALTIME, class_name
from router.config.admission import DEADLINE_MS_MAX, LeverRules
from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.messages import edit_body, lever_fields
from router.telemetry.counters import Counter
from router.telemetry.records import OTHER_ID, TAGS, Endpoint, Lever
from router.telemetry.tags import TagReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router import levers
    from router.config import FeatureConfig
    from router.loop import Loop
    from router.request import Request

CLASS_HEADER: Final = b"x-ringrouter-class"
DEADLINE_HEADER: Final = b"x-ringrouter-deadline-ms"
_TAG_PREFIX: Final = b"x-ringrouter-tag-"
_TAG_NAMES: Final = ("feature_name", "workload_class", "realtime")
_POSITIONS: Final = tuple(TAGS.index(name) for name in _TAG_NAMES)
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NUMBER: Final = re.compile(rb"[0-9]{1,12}(\.[0-9]{1,9})?")
_SHOWN_BYTES_MAX: Final = 40
_MS_NS: Final = 1_000_000
_read_tags: Final = TagReader(()).read
_GENERATING: Final = {
    Endpoint.CHAT: "max_tokens",
    Endpoint.COMPLETION: "max_tokens",
    Endpoint.RESPONSES: "max_output_tokens",
    Endpoint.MESSAGES: "max_tokens",
}
"""Endpoints whose answers are written by a model, and how their APIs name the most tokens of one."""
_LLAMA_PATHS: Final = {"/completion": "n_predict", "/infill": "n_predict"}
_NO_RULES: Final = LeverRules()
_MODEL_LEVER: Final = int(Lever.MODEL)
_U32: Final = 0xFFFFFFFF


class Wishes(NamedTuple):
    """What a head says, with ``fault`` where it cannot be meant. 0 and empty where nothing is said.

    ``says_more`` than the feature: a request that says no more is as any other while no features are configured.
    """

    request_class: int = 0
    deadline_ms: float = 0.0
    feature: str = ""
    tagged_class: int = 0
    fault: tuple[str, str] | None = None
    """What to tell the client, and the header at fault."""
    says_more: bool = False


NO_WISHES: Final = Wishes()


def read_wishes(headers: Mapping[bytes, bytes], *, has_features: bool) -> Wishes | None:
    """Return what a head says, ``None`` where it says nothing: its feature is nothing while none is configured."""
    said = CLASS_HEADER in headers or DEADLINE_HEADER in headers
    if not (said or b"baggage" in headers or any(name.startswith(_TAG_PREFIX) for name in headers)):
        return None
    wishes = _with_tags(NO_WISHES, headers, None)
    if said:
        wishes = _with_headers(wishes, headers)
    return wishes if wishes.says_more or (has_features and wishes.feature) else None


def with_metadata(wishes: Wishes | None, headers: Mapping[bytes, bytes], metadata: Mapping[str, Any]) -> Wishes | None:
    """Return what a head and the ``metadata`` of a body say together."""
    if not any(name in metadata for name in _TAG_NAMES):
        return wishes
    return _with_tags(wishes or NO_WISHES, headers, metadata)


def _with_tags(wishes: Wishes, headers: Mapping[bytes, bytes], metadata: Mapping[str, Any] | None) -> Wishes:
    ids = _read_tags(headers, "", "", None, metadata).ids
    feature, workload_class, realtime = (ids.get(position, "") for position in _POSITIONS)
    tagged = REALTIME if realtime.lower() in _YES else CLASS_NUMBERS.get(workload_class.lower(), 0)
    return wishes._replace(feature=feature, tagged_class=tagged, says_more=wishes.says_more or bool(tagged))


def _with_headers(wishes: Wishes, headers: Mapping[bytes, bytes]) -> Wishes:
    raw = headers.get(CLASS_HEADER, b"")
    request_class = CLASS_NUMBERS.get(raw.decode("latin-1").strip().lower(), 0)
    if CLASS_HEADER in headers and not request_class:
        text = f"{_text(CLASS_HEADER)} is {_shown(raw)}: expected {', '.join(CLASS_NAMES[:-1])} or {CLASS_NAMES[-1]}"
        return wishes._replace(fault=(text, _text(CLASS_HEADER)), says_more=True)
    deadline_ms = 0.0
    if DEADLINE_HEADER in headers:
        raw = headers[DEADLINE_HEADER].strip()
        deadline_ms = float(raw) if _NUMBER.fullmatch(raw) else 0.0
        if not 1 <= deadline_ms <= DEADLINE_MS_MAX:
            name = _text(DEADLINE_HEADER)
            text = f"{name} is {_shown(raw)}: expected milliseconds, a number from 1 to {DEADLINE_MS_MAX}"
            return wishes._replace(fault=(text, name), says_more=True)
    return wishes._replace(request_class=request_class, deadline_ms=deadline_ms, says_more=True)


def model_for(loop: Loop, wishes: Wishes, endpoint: Endpoint, asked: str) -> str:
    """Return the name of the model that answers, by the rules of a request's feature."""
    if endpoint not in _GENERATING:  # a feature's vectors come from another model than its texts
        return asked
    feature = loop.config.features.get(wishes.feature)
    return asked if feature is None or not feature.model else feature.model


def settle(loop: Loop, request: Request, wishes: Wishes) -> None:
    """Give a request the class, the deadline and the limits that hold for it.

    Raises :class:`RequestError` where its head says what cannot be meant.
    """
    if wishes.fault is not None:
        raise RequestError(ErrorKind.BAD_REQUEST, *wishes.fault)
    model, features = request.model, loop.config.features
    feature = features.get(wishes.feature) if wishes.feature and features else None
    of_feature = CLASS_NUMBERS.get(feature.default_class or "", 0) if feature is not None else 0
    request.own_terms().workload = wishes.request_class or of_feature or wishes.tagged_class or model.default_class
    _set_deadline(request, wishes, feature)
    if request.endpoint in _GENERATING or request.path in _LLAMA_PATHS:
        _pull_levers(loop, request, feature)


def _set_deadline(request: Request, wishes: Wishes, feature: FeatureConfig | None) -> None:
    admission = request.model.config.admission
    deadline_ms = wishes.deadline_ms or (feature.deadline_ms if feature is not None else None)
    deadline_ms = deadline_ms or admission.of(class_name(request.workload)).deadline_ms
    if not deadline_ms:
        return
    request.terms.deadline_ns = request.recv + int(deadline_ms * _MS_NS)
    on_deadline = (feature.on_deadline if feature is not None else None) or admission.on_deadline
    request.terms.serves_late = on_deadline == "serve"


def _pull_levers(loop: Loop, request: Request, feature: FeatureConfig | None) -> None:
    """Apply the rules of the feature and the model to a request, and note what they changed."""
    rules = request.model.config.levers
    if feature is None and rules == _NO_RULES:
        return
    from router import levers  # noqa: PLC0415 - only who configures levers loads them

    flags, notes = 0, []
    asked = request.fields.model
    if feature is not None and feature.model and asked and loop.by_name.get(asked) is not request.model:
        known = loop.by_name.get(asked)
        request.terms.asked_model = known.model_id if known is not None else OTHER_ID
        flags = _MODEL_LEVER
        notes.append(f"model={_printable(request.model.name)} (asked {_printable(asked)})")
    limits = levers.limits_of(feature, rules)
    levered = _limited(request, limits) if limits.have_rules else None
    if levered is not None:
        flags |= levered.flags
        notes += levered.notes
    if not flags:
        return
    request.terms.levered = (levered or levers.NOTHING)._replace(flags=flags, notes=tuple(notes))
    request.terms.answer_lines += b"x-ringrouter-levers: %b\r\n" % ", ".join(notes).encode("ascii")
    loop.counters.add(Counter.LEVERS_APPLIED)


def _limited(request: Request, limits: levers.Limits) -> levers.Levered | None:
    """Edit the body as rules say; return what was changed."""
    from router import levers  # noqa: PLC0415

    limit_field = _LLAMA_PATHS.get(request.path) or _GENERATING[request.endpoint]
    try:
        fields = lever_fields(request.body)
        levered = levers.apply(limits, fields, limit_field)
        if levered is None:
            return None
        add: dict[str, bytes] = {}
        replace: dict[str, bytes] = {}
        for name, value in levered.edits.items():
            (replace if name in fields else add)[name] = msgspec.json.encode(value)
        request.body_bytes = len(request.body)  # what came in
        request.body = edit_body(request.body, add, replace)
    except UNDECODABLE as error:  # what could just be decoded may be too deep to be edited
        raise RequestError(ErrorKind.BAD_REQUEST, f"the body cannot be edited: {error}") from None
    if levered.max_tokens is not None:
        request.max_tokens = min(levered.max_tokens, _U32)
    if levered.temperature is not None:
        request.temperature = levered.temperature
    return levered


def _text(name: bytes) -> str:
    return name.decode("ascii")


def _shown(raw: bytes) -> str:
    return repr(raw[:_SHOWN_BYTES_MAX].decode("latin-1"))


def _printable(name: str) -> str:
    """Return a model's name as it may stand in a header line."""
    return name[:_SHOWN_BYTES_MAX].encode("unicode_escape").decode("ascii")
