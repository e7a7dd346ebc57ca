"""Minutes of torture between processes, on each pairing of backends. RING_TORTURE_S sets the seconds of each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.torture import torture

SECONDS = float(os.environ.get("RING_TORTURE_S", "30"))
PAIRS = [("c", "c"), ("c", "plain"), ("plain", "c"), ("plain", "plain")]
pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * SECONDS + 60)]


@pytest.mark.parametrize(("writing", "reading"), PAIRS)
def test_lossy_readers_get_no_torn_record_and_their_losses_add_up(tmp_path: Path, writing: str, reading: str) -> None:
    published, results = torture(tmp_path, (writing, "write_lossy"), [(reading, "read_lossy")] * 4, SECONDS)
    assert all(delivered + lost == published and delivered > 0 for delivered, lost in results)


@pytest.mark.parametrize(("writing", "reading"), PAIRS)
def test_gating_consumers_get_every_record_once(tmp_path: Path, writing: str, reading: str) -> None:
    readers = [(reading, "consume"), (writing, "consume"), (reading, "consume"), (reading, "read_lossy")]
    published, results = torture(tmp_path, (writing, "write_gating"), readers, SECONDS)
    assert results[:-1] == [(published, 0)] * 3
    assert sum(results[-1]) == published
