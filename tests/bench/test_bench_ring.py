"""The measurement of the rings: every peer hands over every record in every load, and the table says what was kept."""

from __future__ import annotations

import math

import pytest

from bench import ring
from bench.alternatives.peer import Load, Peer
from bench.ring import MEASURES, PEERS, YARDSTICK, Run
from ringbuffer import words

CASES = [(peer, load) for load in MEASURES for peer in PEERS if load in peer.loads]


@pytest.fixture(autouse=True)
def same_backend_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers change the backend of the process."""
    monkeypatch.setattr(words, "core", words.core)


@pytest.mark.parametrize(("peer", "load"), CASES, ids=[f"{load}-{peer.name}" for peer, load in CASES])
def test_every_peer_can_be_measured(peer: type[Peer], load: Load) -> None:
    ((measured, name, value),) = ring.measure([load], rounds=1, share=0.0001, peers=[peer])
    assert (measured, name) == (load, peer.name)
    assert 0 < value < math.inf


def test_every_load_has_a_ring_and_a_rival() -> None:
    for load in MEASURES:
        names = [peer.name for peer in PEERS if load in peer.loads]
        assert any("(c)" in name or "(plain)" in name for name in names), load
        assert any("(" not in name for name in names), load
    assert {name for measured in MEASURES.values() for name in measured.targets} <= {
        f"{kind} ({backend})" for kind in ("broadcast", "gating") for backend in ("c", "plain")
    }


def test_a_consumer_that_fails_ends_the_measurement() -> None:
    class Broken(Peer):
        name = "broken"

        def receive(self, count: int, batch: int) -> None:
            raise AssertionError("a record is missing")

        def send(self, count: int, batch: int) -> None:
            return

    with pytest.raises(RuntimeError, match="the consumer failed"):
        list(ring.measure(["singly"], rounds=1, share=0.0001, peers=[Broken]))


def test_promises_are_held_against_the_medians() -> None:
    runs = [Run("publish", "broadcast (c)", value) for value in (100.0, 149.0, 900.0)]
    runs += [Run("publish", "gating (c)", 151.0), Run("singly", "gating (c)", 2.9), Run("batch", "gating (c)", 10.0)]
    runs += [Run("visibility", YARDSTICK, 100.0), Run("visibility", "broadcast (c)", 151.0)]
    verdicts = [ring.verdict(runs, run.load, run.peer) for run in runs[2:]]
    assert verdicts == ["kept", "missed", "missed", "kept", "", "missed"]
    table = ring.table(runs)
    assert "| publish | broadcast (c) | 149 (100–900) ns | ≤ 150 ns | kept |" in table
    assert "| visibility | broadcast (c) | 151 (151–151) ns | ≤ 1.5 × bare memoryview spin | missed |" in table
    assert ring.verdict(runs[-1:], "visibility", "broadcast (c)") == "", "nothing to compare it with"
