"""What hosts report of a request: bounded to what a record holds, whatever they say."""

from __future__ import annotations

from router.telemetry.host_report import read_report

LARGEST = 0xFFFFFFFF


def test_counts_that_are_added_stay_within_a_record() -> None:
    usage = b'{"input_tokens":%d,"cache_read_input_tokens":10,"output_tokens":1}' % LARGEST
    report = read_report(usage, None, None)
    assert (report.n_in, report.n_cached, report.n_out) == (LARGEST, 10, 1)
