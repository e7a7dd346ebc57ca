"""The loads: how many streams at which pace, and what the hosts do meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from bench.config import UNBOUNDED_SLOTS
from bench.processes import RouterSetup

HOST_DEFAULTS = "close=0&slots=0&prefill_us=0&idle=-1"


@dataclass(frozen=True)
class Mode:
    """One load. ``slots`` per host; 0: the hosts take whatever comes."""

    name: str
    load: str
    meaning: str
    slots: int = 0
    prefill_us: int = 0
    close: bool = False

    @property
    def setup(self) -> RouterSetup:
        """What a router in front of such hosts is told."""
        return RouterSetup(slots=self.slots or UNBOUNDED_SLOTS, close=self.close)

    def host_options(self, slot_factor: int = 1) -> str:
        """Return the query of the mock host's ``/set``; ``slot_factor`` gives one host the slots of several."""
        return f"close={int(self.close)}&slots={self.slots * slot_factor}&prefill_us={self.prefill_us}&idle=-1"


S64_LOAD = "mode=stream conc=64 n=32 ttft=20000 itl=20000 dur=2.8 warm=0.8"

MODES = {
    mode.name: mode
    for mode in (
        Mode("low", "mode=stream conc=1 n=16 ttft=2000 itl=2000 dur=2.6 warm=0.2", "1 stream at a time, 500 tokens/s"),
        Mode("s64", S64_LOAD, "64 streams, 50 tokens/s each, spread"),
        Mode("sat-tok", "mode=stream conc=64 n=128 ttft=0 itl=0 dur=2.2 warm=0.4", "64 streams, unpaced hosts"),
        Mode("close64", S64_LOAD, "as s64; the hosts close the connection after every streamed answer", close=True),
        Mode(
            "slots8",
            "mode=stream conc=64 n=16 ttft=20000 itl=20000 dur=5 warm=1.5 drain=5",
            "64 streams for hosts with 8 slots each that let the rest wait in silence",
            slots=8,
            prefill_us=20_000,
        ),
        Mode(
            "burst64",
            "mode=stream conc=64 n=32 ttft=20000 itl=20000 sync=1 dur=2.8 warm=0.8",
            "64 streams, the tokens of a step all at once every 20 ms",
        ),
        Mode(
            "s256",
            "mode=stream conc=256 n=32 ttft=20000 itl=20000 dur=3 warm=0.9",
            "256 streams, 50 tokens/s each, spread",
        ),
        Mode(
            "s1000",
            "mode=stream conc=1000 n=32 ttft=50000 itl=50000 dur=4 warm=1.6",
            "1,000 streams, 20 tokens/s each, spread",
        ),
        Mode(
            "s5000",
            "mode=stream conc=5000 n=32 ttft=250000 itl=250000 dur=10 warm=7 drain=9",
            "5,000 streams, 4 tokens/s each, spread",
        ),
        Mode(
            "prompt200k",
            "mode=stream conc=1 n=4 ttft=2000 itl=2000 prompt=200000 dur=2 warm=0.2",
            "1 stream at a time, prompts of 200 KB",
        ),
        Mode("sat-req", "mode=closed conc=64 n=8 dur=2 warm=0.4", "64 closed loops, small whole answers"),
        Mode("rate200", "mode=rate rate=200 conc=512 n=8 dur=2.5 warm=0.3", "open loop, 200 whole answers a second"),
    )
}
DEFAULT_MODES = ("low", "s64", "sat-tok", "close64", "slots8")
