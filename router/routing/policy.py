"""What a routing policy is: a choice among candidates, and what it learns of what became of it. Pure.

A policy has no clock and does no I/O: the time comes with the :class:`Ask`, chance from a seeded generator that was
given to it. All it keeps is bounded. The default, least outstanding requests, needs none of this: a model without a
policy of its own has ``policy = None``, and the loop calls :func:`router.routing.choose` directly.

The life of a request, as the loop tells it::

    ask = Ask(...)                            once, when it is first routed
    chosen = policy.choose(candidates, ask)   each time it is routed
    verdicts = policy.verdicts()              of that choice, for the record
    policy.sent(host_id, ask)                 it holds a slot of the host
    policy.first_token(host_id, ask, ttft_ns) its first content came, of streams and folded answers
    policy.ended(host_id, ask)                it holds the slot no more; exactly once for each ``sent``

``choose`` alone changes nothing but whose turn it is: a choice that was not ``sent`` leaves no trace in what a policy
believes of hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.routing.candidates import Candidate, Verdict

BYTES_PER_TOKEN = 4
"""Bytes of a prompt's JSON for one token, roughly: an estimate is enough to compare hosts with each other."""


class Ask:
    """What a policy may know of one request. The loop makes it, policies keep what belongs to the attempt in it.

    ``now_ns`` is the time of the decision, ``prompt_tokens`` an estimate from the prompt's bytes (0 where the policy
    wants no prompt), ``blocks`` the chain of hashes of its beginning (:mod:`router.routing.prompt`), ``session`` what
    requests that belong together share (empty: nothing).
    """

    __slots__ = (
        "blocks", "features", "held", "held_tokens", "new_tokens", "now_ns", "policy", "predicted_ttft_ns",
        "prompt_tokens", "reading", "session", "verdicts",
    )  # fmt: skip

    def __init__(
        self,
        now_ns: int,
        prompt_tokens: int = 0,
        blocks: Sequence[int] = (),
        session: bytes = b"",
        policy: Policy | None = None,
    ) -> None:
        self.now_ns = now_ns
        self.prompt_tokens = prompt_tokens
        self.blocks = blocks
        self.session = session
        self.policy = policy
        """Whom it is for: what became of an attempt is told to who chose, whatever the configuration says by then."""
        self.held: Mapping[int, int] | None = None
        """By host: how much of the prompt each is thought to hold, from the choice until the request is sent."""
        self.held_tokens = 0
        """Of the host that was chosen: how much of the prompt it was thought to hold."""
        self.predicted_ttft_ns = 0
        """What was foretold of the host that was chosen, 0 where nothing was."""
        self.new_tokens = 0
        """Tokens that this attempt adds to what its host has to read; 0 once it has."""
        self.reading: list[int] = []
        """Where they were added."""
        self.verdicts: Sequence[Verdict] = ()
        """What the policy said of the candidates, the chosen one first."""
        self.features: tuple[float, ...] = ()
        """From what the time to the first token was foretold."""


class Policy(Protocol):
    """Chooses a host for each request of one model.

    ``number`` is its :class:`~router.routing.candidates.PolicyId`; ``wants_prompt`` whether it looks at
    ``Ask.blocks`` and ``Ask.prompt_tokens``, ``wants_session`` whether at ``Ask.session``.
    """

    number: int
    wants_prompt: bool
    wants_session: bool

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the candidate to send the request to, :data:`~router.routing.NO_HOST` if none can.

        Never one that cannot be used or has no free slot; one that failed the request already only when every host
        that can be used has.
        """

    def verdicts(self) -> list[Verdict]:
        """Return what was said of each candidate of the last choice: the chosen one first, then those that came near.

        Only right after a host was chosen.
        """

    def sent(self, host_id: int, ask: Ask) -> None:
        """A request takes a slot of a host."""

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """Its first content came so long after the request was written."""

    def ended(self, host_id: int, ask: Ask) -> None:
        """It holds the slot no more, however that came."""

    def emptied(self, host_id: int) -> None:
        """A host may have been started anew: what it held of prompts is taken for lost, how fast it is is not."""

    def forget(self, host_id: int) -> None:
        """A host is gone for good."""
