"""What changes with each token of a request: the fields that native code writes, and its plain twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from router import native
from router.telemetry.records import Kind

if TYPE_CHECKING:
    from router.request import Request

# As plain integers: reading a member of an enum costs more than the comparison it is for.
_CONTENT_FIRST: Final = int(Kind.TEXT)
_CONTENT_LAST: Final = int(Kind.TOOL_CALL)
_REASONING: Final = int(Kind.REASONING)
assert (Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL) == (4, 5, 6)
CONTENT_CAME: Final = 1
ANSWER_CAME: Final = 2


class PlainTokenState:
    """What changes with each token of a request; all zero at first.

    ``event_index`` counts the host's events, ``content_count`` those with content; ``tok_n`` and ``out_n`` are when the
    last of these came and when the client's socket took it, in ns; ``blocked_ns`` is 0 while that socket takes
    everything.
    """

    if not TYPE_CHECKING:  # a type checker would want a dataclass with slots to have all of them itself
        __slots__ = (
            "blocked_ns", "bytes_out", "content_count", "early_tokens", "event_index", "out_n", "stall_max_ns", "tok_n",
            "visible_tokens",
        )  # fmt: skip

    event_index: int
    content_count: int
    bytes_out: int
    tok_n: int
    out_n: int
    stall_max_ns: int
    early_tokens: int
    visible_tokens: int
    blocked_ns: int

    def __new__(cls, *_: Any, **__: Any) -> PlainTokenState:
        """Make one with all fields 0; a subclass need not call ``__init__``."""
        self = super().__new__(cls)
        self.event_index = self.content_count = self.bytes_out = self.tok_n = self.out_n = 0
        self.stall_max_ns = self.early_tokens = self.visible_tokens = self.blocked_ns = 0
        return self


if TYPE_CHECKING or native.relay is None:  # noqa: SIM108 - a type checker takes no expression for a base class
    TokenState = PlainTokenState
else:
    TokenState = native.relay.TokenState


def plain_record_events(
    state: Request,
    events: list[tuple[int, int]],
    publish: Callable[..., int],
    native_publish: object,  # noqa: ARG001 - what native code publishes by
    seq: int,
    host_bits: int,
    now: int,
    unsent: int,
    taken_ns: int,
    early_end_ns: int,
    visible_end_ns: int,
) -> int:
    """Publish one record for each event of a read, ``(code, bytes)`` each, and empty the list; count their tokens.

    They came at ``now``; the client's socket took them at ``taken_ns``, 0 = not yet. ``early_end_ns`` is the end of the
    two seconds behind a first token, ``visible_end_ns`` that of the two seconds behind the request.

    Return what came: :data:`CONTENT_CAME`, and :data:`ANSWER_CAME` if some of it is more than reasoning; 0 for neither.
    """
    came = content = 0
    for code, size in events:
        gap, kind = 0, code & 0xFF
        if _CONTENT_FIRST <= kind <= _CONTENT_LAST:
            if not content and state.tok_n:
                gap = now - state.tok_n
                state.stall_max_ns = max(state.stall_max_ns, gap)
            content += 1
            came |= CONTENT_CAME if kind == _REASONING else CONTENT_CAME | ANSWER_CAME
        index = state.event_index
        state.event_index = index + 1
        publish(now, seq, code | host_bits, index | size << 32, gap, unsent, 0)
    events.clear()
    if content:
        _count_tokens(state, content, now, taken_ns, early_end_ns, visible_end_ns)
    return came


def _count_tokens(
    state: Request, content: int, now: int, taken_ns: int, early_end_ns: int, visible_end_ns: int
) -> None:
    is_first = not state.tok_n
    state.tok_n = now
    state.content_count += content
    if taken_ns:
        state.out_n = taken_ns
    if not is_first and now > early_end_ns:
        return
    state.early_tokens += content - 1 if is_first else content  # the first is not within two seconds behind itself
    if taken_ns and taken_ns <= visible_end_ns:
        state.visible_tokens += content


record_events: Final[Callable[..., int]] = plain_record_events if native.relay is None else native.relay.record_events
"""As :func:`plain_record_events`, in one call where there is native code."""
