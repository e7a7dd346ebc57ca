"""How long a request that comes now would wait for its first token; pure.

Two things are observed of each model: how long a request holds its slot, and how long a host takes from the request
written to the first content. Both are averages over about the last :data:`_WEIGHT_COUNT` requests (each new one moves
the average by a tenth of the difference). With ``S`` slots that are each held for ``T`` on average, one comes free
every ``T / S``; so who has ``n`` before it is foretold to wait ``(n + 1) * T / S`` (Little's law for a full house), and
to have its first token so much later as hosts take.

Nothing is foretold from fewer than :data:`SAMPLES_MIN` observations or from ones that have grown old: a model that was
slow once would else refuse everybody and never see that it is fast again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SAMPLES_MIN: Final = 10
_WEIGHT_COUNT: Final = 10
_FRESH_NS: Final = 10_000_000_000
"""Age at which an average says nothing any more, unless twice of what it says is longer."""
_RETRY_AFTER_S_MAX: Final = 600
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000


class Average:
    """A moving average of durations."""

    __slots__ = ("count", "mean_ns", "noted_ns")

    def __init__(self) -> None:
        self.count = 0
        self.mean_ns = 0.0
        self.noted_ns = 0

    def note(self, duration_ns: int, now_ns: int) -> None:
        """Take in one observation."""
        self.count += 1
        self.noted_ns = now_ns
        self.mean_ns += (duration_ns - self.mean_ns) / min(self.count, _WEIGHT_COUNT)

    def known_ns(self, now_ns: int) -> int:
        """Return the average, -1 while it says nothing."""
        if self.count < SAMPLES_MIN or now_ns - self.noted_ns > max(_FRESH_NS, 2 * self.mean_ns):
            return -1
        return int(self.mean_ns)


class Foretold(NamedTuple):
    """What awaits a request. ``ahead`` start before it, -1 where a slot is free; ``first_ns`` is 0 where nothing is
    known of it."""

    ahead: int
    slots: int
    held_ns: int
    wait_ns: int
    first_ns: int

    @property
    def ttft_ns(self) -> int:
        """Time from now to the first token."""
        return self.wait_ns + self.first_ns

    def refusal(self, asked_ns: int, left_ns: int) -> tuple[str, int]:
        """Return why a request is refused whose deadline is ``left_ns`` away, ``asked_ns`` from when it came; and after
        how many seconds it would fit if nobody else came, 1 to 600.
        """
        parts = []
        if self.ahead >= 0:
            parts.append(f"{self.ahead} requests go first, {self.slots} slots are held {_ms(self.held_ns)} ms each")
        if self.first_ns:
            parts.append(f"a host takes {_ms(self.first_ns)} ms")
        text = (
            f"the first token is to be expected in {_ms(self.ttft_ns)} ms ({'; '.join(parts)}), "
            f"the deadline is in {_ms(max(left_ns, 0))} ms ({_ms(asked_ns)} ms after the request came)"
        )
        too_long_ns = min(self.wait_ns, self.ttft_ns - left_ns)
        return text, _retry_after_s(too_long_ns)


class Forecast:
    """What was observed of one model, and what follows from it."""

    def __init__(self) -> None:
        self.held = Average()
        self._first = (Average(), Average())
        """Of streams (and answers folded from one), of whole answers."""

    def note_held(self, duration_ns: int, now_ns: int) -> None:
        """A slot was held so long."""
        self.held.note(duration_ns, now_ns)

    def note_first(self, duration_ns: int, now_ns: int, *, whole: bool) -> None:
        """A host took so long from the request written to its first content, or to all of a ``whole`` answer."""
        self._first[whole].note(duration_ns, now_ns)

    def of(self, ahead: int, slots: int, now_ns: int, *, whole: bool) -> Foretold | None:
        """Return what awaits a request before which ``ahead`` others start (-1: a slot is free), at hosts with
        ``slots`` slots; ``None`` where too little is known.
        """
        first_ns = self._first[whole].known_ns(now_ns)
        if ahead < 0:
            return Foretold(ahead, slots, 0, 0, first_ns) if first_ns >= 0 else None
        held_ns = self.held.known_ns(now_ns)
        if held_ns < 0 or slots <= 0:
            return None
        wait_ns = (ahead + 1) * held_ns // slots
        return Foretold(ahead, slots, held_ns, wait_ns, max(first_ns, 0))

    def until_next_s(self, slots: int, now_ns: int) -> int:
        """Return after how many seconds one who waits starts, 1 to 600; 1 where too little is known."""
        held_ns = self.held.known_ns(now_ns)
        return 1 if held_ns < 0 or slots <= 0 else _retry_after_s(held_ns // slots)


def _retry_after_s(duration_ns: int) -> int:
    return min(max(-(-duration_ns // _NS), 1), _RETRY_AFTER_S_MAX)


def _ms(duration_ns: int) -> int:
    return round(duration_ns / _MS_NS)
