"""What hosts report of a request: bounded to what a record holds, whatever they say."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import native
from router.telemetry import records as rec
from router.telemetry.host_report import read_report
from tests.support.stream_damage import damage

LARGEST = 0xFFFFFFFF


def test_counts_that_are_added_stay_within_a_record() -> None:
    usage = b'{"input_tokens":%d,"cache_read_input_tokens":10,"output_tokens":1}' % LARGEST
    report = read_report(usage, None, None)
    assert (report.n_in, report.n_cached, report.n_out) == (LARGEST, 10, 1)


COUNTS = st.integers(0, 9) | st.sampled_from([0xFFFFFFFF, 0x100000000, -1, 1.0, 1.5, True, None, "1", [], {}])
DETAILS = st.none() | st.fixed_dictionaries(
    {}, optional={"cached_tokens": COUNTS, "reasoning_tokens": COUNTS, "audio_tokens": COUNTS}
)
USAGE = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "total_tokens": COUNTS,
        "prompt_tokens_details": DETAILS | COUNTS,
        "completion_tokens_details": DETAILS | COUNTS,
        "input_tokens": COUNTS,
        "eval_duration": COUNTS,
        "vendor": st.dictionaries(st.text(max_size=3), COUNTS, max_size=2),
    },
)


def packed_plainly(usage: bytes) -> bytes:
    report = read_report(usage, None, None)
    assert report.has_usage
    assert not report.source
    return rec.TOKENS.pack(report.n_in, report.n_out, report.n_cached, report.n_reasoning, 1 if report.n_out else 0)


@pytest.mark.skipif(native.scan is None, reason="the native code is not compiled here")
@given(usage=USAGE, style=st.sampled_from([{"separators": (",", ":")}, {}]), seed=st.none() | st.integers())
def test_usage_of_the_usual_shape_is_packed_as_it_is_read(usage: Any, style: Any, seed: int | None) -> None:
    raw = json.dumps(usage, **style).encode()
    if seed is not None:
        raw = damage(raw, random.Random(seed))
    packed = native.scan.pack_usage(raw)
    if packed is not None:
        assert packed == packed_plainly(raw)


@pytest.mark.skipif(native.scan is None, reason="the native code is not compiled here")
def test_usage_of_the_usual_shape_is_taken() -> None:
    usual = b'{"prompt_tokens":200,"completion_tokens":7,"total_tokens":207'
    more = b',"prompt_tokens_details":{"cached_tokens":9},"completion_tokens_details":{"reasoning_tokens":3},"x":[1]'
    for raw, numbers in ((usual + b"}", (200, 7, 0, 0, 1)), (usual + more + b"}", (200, 7, 9, 3, 1))):
        assert native.scan.pack_usage(raw) == rec.TOKENS.pack(*numbers) == packed_plainly(raw)
    for odd in (
        b"{}",
        b"",
        b"null",
        usual,
        usual + b"} x",
        b'{"prompt_tokens":01}',
        b'{"prompt_tokens":1,"prompt_tokens":1}',
    ):
        assert native.scan.pack_usage(odd) is None
    with pytest.raises(TypeError):
        native.scan.pack_usage("{}")
