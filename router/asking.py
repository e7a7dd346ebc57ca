"""From a request to what a routing policy may know of it; only models with a policy of their own have an asker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from router.messages import PassBody, messages_of
from router.routing.policy import BYTES_PER_TOKEN, Ask
from router.routing.prompt import chain
from router.telemetry import records as rec

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import RoutingConfig
    from router.request import Request
from router.routing.policy import Policy

_HEADER: Final = "header:"
_PROMPT_FIELDS: Final = ("messages", "prompt", "input")
_TEXT_START: Final = {name: 2 * rec.TAG_SLOT_COUNT + rec.TEXT_BYTES * i for i, name in enumerate(rec.TEXT_TAGS)}
"""Where the text tags stand in a request's identity."""


class Asker:
    """Makes asks for one model. ``identify`` packs the identity of a request, with the tags that sessions go by."""

    def __init__(self, policy: Policy, routing: RoutingConfig, identify: Callable[[Request], bytes]) -> None:
        self._policy = policy
        self._identify = identify
        self._block_bytes = routing.block_bytes
        self._blocks_max = routing.blocks_max
        is_header = routing.sticky.startswith(_HEADER)
        self._header = routing.sticky.removeprefix(_HEADER).encode() if is_header else b""
        self._tag_start = 0 if is_header else _TEXT_START.get(routing.sticky, 0)

    def ask(self, request: Request, now_ns: int) -> Ask:
        """Return what the policy wants to know of a request; its body must still be there."""
        policy = self._policy
        prompt_tokens, blocks = 0, []
        if policy.wants_prompt:
            prompt = _prompt(request)
            prompt_tokens = len(prompt) // BYTES_PER_TOKEN
            blocks = chain(prompt, self._block_bytes, self._blocks_max)
        session = self._session(request) if policy.wants_session else b""
        return Ask(now_ns, prompt_tokens, blocks, session, policy=policy)

    def _session(self, request: Request) -> bytes:
        """Return what the requests of a session share, at most :data:`~router.telemetry.records.TEXT_BYTES` of it."""
        if self._header:
            return request.headers.get(self._header, b"")[: rec.TEXT_BYTES]
        identity = request.identity or self._identify(request)
        return identity[self._tag_start : self._tag_start + rec.TEXT_BYTES].rstrip(b"\0")


def _prompt(request: Request) -> memoryview:
    """Return the canonical prompt; of a body that passes through, where it stands is not known, the whole body."""
    fields: Any = request.fields
    if isinstance(fields, PassBody):
        return memoryview(request.body)
    for name in _PROMPT_FIELDS:
        prompt = getattr(fields, name, None)
        if prompt is not None:
            found = memoryview(prompt)
            return found if found or name != "messages" else messages_of(request.body)
    return memoryview(request.body)
