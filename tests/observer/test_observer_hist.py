"""Histograms: bucket for bucket those of HdrHistogram, quantiles within their promise, merging by addition, files."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given
from hypothesis import strategies as st

from router.observer import hist
from router.observer.hist import EMPTY, VALUE_MAX, Histogram
from router.observer.hist_files import Interval, encode, hgrm, hlog

VALUES = st.integers(0, VALUE_MAX)


def reference(values: list[int], highest: int = VALUE_MAX) -> HdrHistogram:
    made = HdrHistogram(1, highest, 2)
    for value in values:
        assert made.record_value(value)
    return made


def shapes() -> dict[str, list[int]]:
    random = np.random.default_rng(7)
    bimodal = np.concatenate([random.normal(2e6, 1e5, 2000), random.normal(8e8, 4e7, 500)])
    return {
        "log-normal": random.lognormal(17, 1.5, 4000).astype(int).tolist(),
        "bimodal": bimodal.astype(int).tolist(),
        "constant": [123_456_789] * 1000,
        "few": [0, 1, 255, 256, 257, 511, 512],
    }


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("highest", [VALUE_MAX, 600_000_000_000, 3_600_000_000_000])
def test_counts_are_those_of_hdrhistogram(shape: str, highest: int) -> None:
    values = shapes()[shape]
    counts = np.array(reference(values, highest).counts[:])
    ours = Histogram.of(values).dense()
    assert np.array_equal(ours[: counts.size], counts)
    assert not ours[counts.size :].any()


@given(st.lists(VALUES, max_size=60))
def test_any_values_land_in_the_reference_buckets(values: list[int]) -> None:
    assert Histogram.of(values).dense().tolist() == reference(values).counts[:]


@given(VALUES)
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    bucket = hist.buckets_of(np.array([value]))
    lowest, highest = int(hist.lowest_of(bucket)[0]), int(hist.highest_of(bucket)[0])
    assert lowest <= value <= highest
    assert (highest - lowest + 1) * 128 <= max(lowest, 128)
    assert lowest <= int(hist.middle_of(bucket)[0]) <= highest


def test_values_out_of_range_are_clipped() -> None:
    found = Histogram.of([-5, VALUE_MAX + 1])
    assert found.buckets.tolist() == [0, hist.BUCKET_COUNT - 1]
    assert (found.minimum, found.maximum) == (0, VALUE_MAX)


@pytest.mark.parametrize("shape", ["log-normal", "bimodal", "constant"])
@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0])
def test_quantiles_are_within_their_promise(shape: str, q: float) -> None:
    values = shapes()[shape]
    exact = np.quantile(values, q, method="inverted_cdf")
    found = Histogram.of(values).quantile(q)
    assert found == pytest.approx(exact, rel=0.004)


def test_the_exact_extremes_bound_a_quantile() -> None:
    assert Histogram.of([1_000_003]).quantile(0.5) == 1_000_003


def test_of_no_values_nothing_is_known() -> None:
    assert EMPTY.quantile(0.5) is None
    assert EMPTY.mean() is None
    assert Histogram.of([]) is EMPTY


def test_the_mean_is_exact() -> None:
    assert Histogram.of([1, 2, 3, 1_000_000_007]).mean() == 250_000_003.25


@given(st.lists(VALUES, max_size=40))
def test_the_encoding_is_the_reference_librarys_byte_for_byte(values: list[int]) -> None:
    def payload(text: str) -> bytes:
        raw = base64.b64decode(text)
        assert int.from_bytes(raw[4:8], "big") == len(raw) - 8
        return zlib.decompress(raw[8:])

    ours = encode(Histogram.of(values))
    assert payload(ours) == payload(reference(values).encode().decode())
    assert ours.startswith("HISTFAAA")
    assert HdrHistogram.decode(ours).get_total_count() == len(values)


def test_a_log_is_read_back_by_the_reference_library(tmp_path: Path) -> None:
    second_ns = 10**9
    start_ns = 1_763_900_000 * second_ns
    parts = [Histogram.of(shapes()["log-normal"]), Histogram.of(shapes()["bimodal"])]
    intervals = [Interval(start_ns + i * 10 * second_ns, 10 * second_ns, part) for i, part in enumerate(parts)]
    path = tmp_path / "ttft.hlog"
    path.write_text(hlog([("feature name, search", intervals)], start_ns))
    text = path.read_text()
    assert "Tag=feature_name__search,10.000,10.000," in text
    reader = HistogramLogReader(str(path), HdrHistogram(1, VALUE_MAX, 2))
    for part in parts:
        back = reader.get_next_interval_histogram()
        assert back.counts[:] == part.dense().tolist()
        assert back.tag == "feature_name__search"
    assert reader.get_start_time_sec() == start_ns / 1e9
    assert reader.get_next_interval_histogram() is None
    reader.close()


@pytest.mark.parametrize("shape", shapes())
def test_the_spectrum_is_the_reference_librarys(shape: str) -> None:
    values = shapes()[shape]
    out = io.BytesIO()
    reference(values).output_percentile_distribution(out, 1e6)
    expected = out.getvalue().decode().splitlines()
    found = hgrm(Histogram.of(values)).splitlines()
    deviation = [line.startswith("#[Mean") for line in expected].index(True)
    # The library in Python forgets to divide the deviation by the unit, as the original in Java does not.
    assert found[:deviation] == expected[:deviation]
    assert found[deviation].split(",")[0] == expected[deviation].split(",")[0]
    assert found[deviation + 1 :] == expected[deviation + 1 :]


def test_the_spectrum_of_nothing_is_a_head_and_a_foot() -> None:
    assert len(hgrm(EMPTY).splitlines()) == 5
