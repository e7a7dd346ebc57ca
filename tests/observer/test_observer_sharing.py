"""Processor sharing: the charges of all requests and the idle time are the host's time, to the nanosecond."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.observer.sharing import UNITS_PER_NS, HostMeter, Share

_BEGIN = 1_000
_times = st.integers(_BEGIN, _BEGIN + 5_000_000_000)
_spans = st.lists(st.tuples(_times, st.integers(0, 2_000_000_000)), max_size=40)
_cuts = st.lists(_times, max_size=10)


def shared(spans: list[tuple[int, int]], cuts: list[int]) -> tuple[HostMeter, list[Share]]:
    """Run a meter over (begin, length) spans, letting its clock stop at ``cuts`` on the way to the end of all."""
    meter = HostMeter(_BEGIN)
    shares = []
    for begin, length in spans:
        shares.append(share := Share())
        meter.begin(begin, share)
        meter.end(begin + length, share)
    for cut in sorted(cuts):
        meter.advance(cut)
    meter.advance(max([_BEGIN, *cuts, *(begin + length for begin, length in spans)]))
    return meter, shares


def exact(spans: list[tuple[int, int]]) -> list[Fraction]:
    """The definition itself: in each piece of time between two turns everyone who runs gets an equal part."""
    edges = sorted({t for begin, length in spans for t in (begin, begin + length)})
    charges = [Fraction(0)] * len(spans)
    for left, right in pairwise(edges):
        running = [i for i, (begin, length) in enumerate(spans) if begin <= left and begin + length >= right]
        for i in running:
            charges[i] += Fraction(right - left, len(running))
    return charges


@given(_spans, _cuts)
def test_every_nanosecond_is_charged_once(spans: list[tuple[int, int]], cuts: list[int]) -> None:
    meter, shares = shared(spans, cuts)
    time = meter.time()
    assert time.attributed_ns == sum(share.ns for share in shares)
    charged_ns = time.attributed_ns + time.idle_ns
    whole_ns = meter.clock_ns - _BEGIN
    assert 0 <= whole_ns - charged_ns <= 1
    assert charged_ns * UNITS_PER_NS + meter.unsettled_units() == whole_ns * UNITS_PER_NS
    assert (time.lost_ns, time.gap_ns) == (0, 0)


@given(_spans, _cuts)
def test_each_charge_is_its_definition(spans: list[tuple[int, int]], cuts: list[int]) -> None:
    _, shares = shared(spans, cuts)
    for share, charge in zip(shares, exact(spans), strict=True):
        assert abs(share.ns - charge) <= 1
        assert share.ended
        assert not share.lost


@given(_spans, _cuts, st.tuples(_times, _times))
def test_nothing_is_charged_in_a_gap_and_the_sum_still_holds(
    spans: list[tuple[int, int]], cuts: list[int], gap: tuple[int, int]
) -> None:
    gap_begin, gap_end = sorted(gap)
    meter = HostMeter(_BEGIN)
    shares = []
    for begin, length in spans:
        shares.append(share := Share())
        meter.begin(begin, share)
        meter.end(begin + length, share)
    meter.advance(gap_begin)
    meter.gap(gap_end)
    for cut in sorted(cuts):
        meter.advance(cut)
    meter.advance(_BEGIN + 10_000_000_000)
    time = meter.time()
    assert time.gap_ns == gap_end - gap_begin
    units = (time.attributed_ns + time.lost_ns + time.idle_ns + time.gap_ns) * UNITS_PER_NS
    assert units + meter.unsettled_units() == (meter.clock_ns - _BEGIN) * UNITS_PER_NS
    for (begin, length), share in zip(spans, shares, strict=True):
        # A turn at the very edge of the gap may fall on either side of it.
        if begin < gap_end and begin + length > gap_begin and length and gap_begin < gap_end:
            assert share.lost
        elif begin > gap_end or begin + length < gap_begin:
            assert not share.lost


@given(_spans, _times)
def test_the_sum_holds_while_requests_run(spans: list[tuple[int, int]], now: int) -> None:
    meter = HostMeter(_BEGIN)
    for begin, length in spans:
        meter.begin(begin, share := Share())
        meter.end(begin + length, share)
    meter.advance(now)
    time = meter.time()
    units = (time.attributed_ns + time.idle_ns) * UNITS_PER_NS + meter.unsettled_units()
    assert units == (now - _BEGIN) * UNITS_PER_NS


def test_what_comes_from_before_the_clock_is_lost_and_changes_no_charge() -> None:
    meter = HostMeter(0)
    first, late = Share(), Share()
    meter.begin(0, first)
    meter.advance(100)
    meter.begin(50, late)
    meter.end(80, late)
    meter.end(100, first)
    meter.advance(200)
    assert (first.ns, first.lost) == (100, False)
    assert (late.ns, late.lost) == (0, True)
    assert meter.time().idle_ns == 100


def test_many_turns_lose_nothing() -> None:
    meter = HostMeter(0)
    shares = []
    for turn in range(20_000):
        for _ in range(3):
            shares.append(share := Share())
            meter.begin(turn * 7, share)
            meter.end(turn * 7 + 7, share)
    meter.advance(20_000 * 7)
    assert sum(share.ns for share in shares) == 20_000 * 7
    assert meter.unsettled_units() == 0
