"""Requests that routers make themselves are in the journal and in no user's metric."""

from __future__ import annotations

import numpy as np
import pytest

from router.observer.batch import NO_PACE, PaceArrays, of_users
from tests.support.request_rows import row


def test_a_batch_of_users_alone_stays_as_it_is() -> None:
    rows = [row(done_seq=1), row(done_seq=2, tags={"workload_class": "batch"})]
    pace = PaceArrays(np.array([0, 1], np.int32), np.array([5, 6], np.int64))
    same_rows, same_pace = of_users(rows, pace)
    assert same_rows is rows
    assert same_pace is pace


@pytest.mark.parametrize("own", ["cache", "tools", "warm"])
def test_the_routers_own_are_left_out_with_their_gaps(own: str) -> None:
    rows = [row(done_seq=i, tags={"workload_class": own} if i in {0, 2} else {}) for i in range(4)]
    pace = PaceArrays(np.array([0, 0, 1, 1, 2, 3], np.int32), np.array([1, 2, 3, 4, 5, 6], np.int64))
    kept, gaps = of_users(rows, pace)
    assert [each.done_seq for each in kept] == [1, 3]
    assert gaps.row.tolist() == [0, 0, 1]
    assert gaps.gap_ns.tolist() == [3, 4, 6]
    assert gaps.row.dtype == np.int32
    assert of_users(rows[:1], NO_PACE)[0] == []
