"""Sessions that stay at their host, around any other policy; pure.

A request goes where the last one of its session went, as long as that host can take it and is not above the load bound
(:func:`router.routing.eligible.within_bound`); else the policy decides, and the session moves with the request. A
session is forgotten after a while of silence; so is, over the bound, the one that has been silent for longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, Reason, Verdict
from router.routing.eligible import load, takeable, tell, within_bound

if TYPE_CHECKING:
    from router.routing.policy import Ask, Policy

_STICKY, _NOT_ITS_SESSION = int(Reason.STICKY), int(Reason.NOT_ITS_SESSION)
_EXPIRED_MAX: Final = 2
"""Silent sessions forgotten with each request: more than come in, so that none of them piles up."""


class Sticky:
    """Keeps at most ``sessions_max`` sessions, each one small tuple."""

    wants_session = True

    def __init__(self, policy: Policy, sessions_max: int, idle_ns: int, load_bound: float, idle_share: float) -> None:
        self._policy = policy
        self._sessions_max = sessions_max
        self._idle_ns = idle_ns
        self._load_bound = load_bound
        self._idle_share = idle_share
        self._sessions: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()
        """By session: host, when it was last there, and the host's life then; the longest silent one first."""
        self._lives: dict[int, int] = {}
        """By host: how often it was emptied."""
        self._last: Sequence[Candidate] = ()
        self._free: list[int] = []
        self._chosen = NO_HOST
        self.number = policy.number
        self.wants_prompt = policy.wants_prompt

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the session's host, or of the one that the policy chooses."""
        self._chosen = NO_HOST
        host_id = self._host_of(ask)
        if host_id:
            free = takeable(candidates)
            within = within_bound(candidates, free, self._load_bound, self._idle_share)
            own = next((i for i in within if candidates[i][0] == host_id), NO_HOST)
            if own != NO_HOST:
                self._last, self._free, self._chosen = candidates, free, own
                return own
        return self._policy.choose(candidates, ask)

    def _host_of(self, ask: Ask) -> int:
        """Return where the session is, 0 where it is not known."""
        known = self._sessions.get(ask.session) if ask.session else None
        if known is None:
            return 0
        host_id, last_ns, life = known
        return host_id if ask.now_ns - last_ns < self._idle_ns and life == self._lives.get(host_id, 0) else 0

    def verdicts(self) -> list[Verdict]:
        """Return the shares of slots in use where the session decided, what the policy says elsewhere."""
        if self._chosen == NO_HOST:
            return self._policy.verdicts()
        scores = {i: load(self._last[i]) for i in self._free}
        return tell(self._last, self._chosen, _STICKY, _NOT_ITS_SESSION, scores)

    def sent(self, host_id: int, ask: Ask) -> None:
        """The session is at this host now."""
        sessions = self._sessions
        if ask.session:
            sessions[ask.session] = host_id, ask.now_ns, self._lives.get(host_id, 0)
            sessions.move_to_end(ask.session)
            if len(sessions) > self._sessions_max:
                sessions.popitem(last=False)
        self._expire(ask.now_ns)
        self._policy.sent(host_id, ask)

    def _expire(self, now_ns: int) -> None:
        sessions = self._sessions
        for _ in range(_EXPIRED_MAX):
            if not sessions:
                return
            oldest = next(iter(sessions))
            if now_ns - sessions[oldest][1] < self._idle_ns:
                return
            del sessions[oldest]

    def session_count(self) -> int:
        """Return how many sessions are remembered."""
        return len(self._sessions)

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """For the policy."""
        self._policy.first_token(host_id, ask, ttft_ns)

    def ended(self, host_id: int, ask: Ask) -> None:
        """For the policy."""
        self._policy.ended(host_id, ask)

    def emptied(self, host_id: int) -> None:
        """What a session had at this host is lost: it may as well go on elsewhere."""
        self._lives[host_id] = self._lives.get(host_id, 0) + 1
        self._policy.emptied(host_id)

    def forget(self, host_id: int) -> None:
        """Its sessions go on elsewhere: no candidate has its id any more."""
        self._lives.pop(host_id, None)
        self._policy.forget(host_id)
