"""Seconds of torture between processes; minutes of it run in tests/long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.torture import torture

SECONDS = 1.5
PAIRS = [("c", "c"), ("c", "plain"), ("plain", "c"), ("plain", "plain")]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    if "c" in request.param:
        pytest.importorskip("ringbuffer._words", reason="the C extension was not built: no compiler")
    return request.param[0], request.param[1]


def test_lossy_readers_get_no_torn_record_and_their_losses_add_up(tmp_path: Path, pair: tuple[str, str]) -> None:
    writing, reading = pair
    published, results = torture(tmp_path, (writing, "write_lossy"), [(reading, "read_lossy")] * 3, SECONDS)
    assert published > 10_000
    for delivered, lost in results:
        assert delivered + lost == published
        assert delivered > 0


def test_gating_consumers_get_every_record_once(tmp_path: Path, pair: tuple[str, str]) -> None:
    writing, reading = pair
    readers = [(reading, "consume"), (writing, "consume"), (reading, "read_lossy")]
    published, results = torture(tmp_path, (writing, "write_gating"), readers, SECONDS)
    assert published > 1_000
    *consumers, (seen, lost) = results
    assert consumers == [(published, 0)] * 2, "every record came to each, once and in order"
    assert seen + lost == published, "an observer gates nothing and still counts exactly"
