"""What changes with each token of a request: the fields that native code writes, and its plain twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router import native


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
