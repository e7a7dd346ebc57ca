"""Bugs that are planted into the router are found: each kind of check fails when it should."""

from __future__ import annotations

import pytest

from tests.simulation.drawing import draw
from tests.simulation.plants import PLANTS
from tests.simulation.replay import safely
from tests.support.waiting import shared_memory_directory

SEEDS = 150
FIRST_SEED = {
    "draining slots are not counted": 39,
    "who waits for a host that is barred is forgotten": 104,
    "a stream is retried behind its first token": 11,
    "queue_s is forgotten": 15,
    "connect_s is forgotten": 47,
    "first_token_s is forgotten": 11,
    "idle_s is forgotten": 12,
    "a deadline is forgotten": 23,
    "limits.attempts does not hold": 22,
    "a request is lost behind a fallback": 841,
    "a reload stops half-way": 98,
    "a part of a reload is left out": 8,
    "a host of another kind has slots of its own": 28,
}
"""Where to begin with those that few scenarios reach; only to save time."""


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    first = FIRST_SEED.get(name, 0)
    with shared_memory_directory() as directory:
        with PLANTS[name]():
            seeds = range(first, first + SEEDS)
            found = next((seed for seed in seeds if safely(draw(seed), directory).violations), None)
        assert found is not None, f"{name}: no scenario from seed {first} to {first + SEEDS} shows it"
        assert safely(draw(found), directory).violations == []
