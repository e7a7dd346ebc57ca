"""Slices: each request in one slice of every entry; what overflows folds where it overflows and nowhere else."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from router.observer.slices import HALF_LIFE_NS, IDLE_NS, CappedEntry, Heavy, Sketch, Slicer, TopEntry
from router.telemetry.records import OTHER_VALUE
from tests.support.request_rows import row

NOW = 1_763_900_000 * 10**9


def capped(names: str, places_max: int) -> CappedEntry:
    return CappedEntry(tuple(names.split(",")), places_max, itertools.count())


def top(places_max: int) -> TopEntry:
    return TopEntry("user_id", places_max, itertools.count(), NOW)


def counted(entry: TopEntry, value: str, now_ns: int = NOW) -> tuple[str, ...]:
    entry.note(value, now_ns, failed=False)
    return entry.place((value,), now_ns).values


def heaviest(sketch: Sketch, now_ns: int) -> list[Heavy]:
    return sorted(sketch.weights(now_ns), key=lambda each: -each.weight)


class TestCappedEntry:
    def test_a_value_keeps_its_slice(self) -> None:
        entry = capped("feature_name", 8)
        first = entry.place(("search",), NOW)
        assert entry.place(("search",), NOW + 1) is first
        assert entry.place(("",), NOW) is not first
        assert entry.folded_count == 0

    def test_values_beyond_the_bound_fold_and_are_counted(self) -> None:
        entry = capped("feature_name", 8)
        placed = [entry.place((f"f{i}",), NOW).values[0] for i in range(20)]
        assert placed == [f"f{i}" for i in range(7)] + [OTHER_VALUE] * 13
        assert entry.folded_count == 13
        assert len(entry.slices) == 8

    def test_of_a_pair_only_the_overflowing_tag_folds(self) -> None:
        entry = capped("feature_name,prompt_version", 64)
        for version in range(1000):
            for feature in ("search", "chat"):
                placed = entry.place((feature, f"v{version}"), NOW).values
                assert placed[0] == feature
        assert placed == ("chat", OTHER_VALUE)
        swapped = capped("prompt_version,feature_name", 64)
        for version in range(1000):
            last = swapped.place((f"v{version}", "search"), NOW).values
        assert last == (OTHER_VALUE, "search")

    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=400), st.integers(8, 40))
    def test_an_entry_is_bounded_whatever_comes(self, pairs: list[tuple[int, int]], places_max: int) -> None:
        entry = capped("a,b", places_max)
        for a, b in pairs:
            values = (f"a{a}", f"b{b}")
            placed = entry.place(values, NOW).values
            assert all(there in {asked, OTHER_VALUE} for there, asked in zip(placed, values, strict=True))
        assert len(entry.slices) <= places_max

    def test_one_that_was_idle_for_an_hour_gives_up_its_place(self) -> None:
        entry = capped("prompt_version", 8)
        old = [entry.place((f"v{i}",), NOW) for i in range(7)]
        busy = entry.place(("v3",), NOW + IDLE_NS)
        assert busy is old[3]
        new = entry.place(("v100",), NOW + IDLE_NS + 1)
        assert new.values == ("v100",)
        assert new.id not in {each.id for each in old}, "an id is never used again"
        assert len(entry.slices) == 7

    def test_what_was_placed_before_is_not_counted_as_folded_again(self) -> None:
        entry = capped("feature_name", 8)
        for i in range(10):
            entry.place((f"f{i}",), NOW)
        entry.place(("f9",), NOW, again=True)
        assert entry.folded_count == 3


class TestSketch:
    def test_weights_are_exact_while_all_values_have_a_place(self) -> None:
        sketch = Sketch(10, NOW)
        for value, count in (("a", 5), ("b", 3), ("c", 1)):
            for _ in range(count):
                sketch.add(value, NOW)
        assert [(each.value, each.weight, each.error) for each in heaviest(sketch, NOW)[:2]] == [
            ("a", 5, 0),
            ("b", 3, 0),
        ]
        assert sketch.displaced_count == 0

    @given(st.lists(st.integers(0, 30), max_size=300))
    def test_every_weight_lies_within_its_bounds(self, values: list[int]) -> None:
        sketch = Sketch(8, NOW)
        for value in values:
            sketch.add(str(value), NOW)
        held = list(sketch.weights(NOW))
        assert len(held) <= 8
        assert sum(each.weight for each in held) == len(values), "Space-Saving loses no weight"
        for each in held:
            assert each.weight - each.error <= values.count(int(each.value)) <= each.weight
        for value in set(values):
            if values.count(value) > len(values) / 8:
                assert str(value) in sketch

    def test_what_was_busy_once_gives_way_to_what_is_busy_now(self) -> None:
        sketch = Sketch(4, NOW)
        for _ in range(100):
            sketch.add("then", NOW)
        later_ns = NOW + 10 * HALF_LIFE_NS
        for _ in range(3):
            sketch.add("now", later_ns)
        first, second = heaviest(sketch, later_ns)
        assert (first.value, first.weight) == ("now", 3)
        assert (second.value, round(second.weight, 3)) == ("then", round(100 / 2**10, 3))

    def test_weights_stay_in_range_for_years(self) -> None:
        sketch = Sketch(3, NOW)
        for step in range(3000):
            now_ns = NOW + step * HALF_LIFE_NS
            sketch.add("steady", now_ns)
            sketch.add(str(step), now_ns)
        first = heaviest(sketch, now_ns)[0]
        assert first.value == "steady"
        assert 1.9 < first.weight <= 2.5


class TestTopEntry:
    def test_while_there_is_room_every_value_has_a_slice(self) -> None:
        entry = top(10)
        assert [counted(entry, f"u{i}") for i in range(10)] == [(f"u{i}",) for i in range(10)]
        assert entry.folded_count == 0

    def test_the_busiest_of_many_are_kept(self) -> None:
        entry = top(20)
        chance = random.Random(5)
        for step in range(40_000):
            busy = chance.random() < 0.5
            counted(entry, f"busy{chance.randrange(10)}" if busy else f"u{chance.randrange(100_000)}")
            if step % 1000 == 0:
                entry.tick(NOW)
        names = {values[0] for values in entry.slices}
        assert {f"busy{i}" for i in range(10)} <= names
        assert len(names) <= 22
        assert OTHER_VALUE in names
        assert entry.folded_count > 15_000

    def test_users_come_and_go_without_end_and_memory_stays(self) -> None:
        entry = top(10)
        for user in range(100_000):
            counted(entry, f"u{user}", NOW + user * 10**6)
            if user % 1000 == 0:
                entry.tick(NOW + user * 10**6)
        assert len(entry.slices) <= 12
        assert len(list(entry._sketch.weights(NOW))) <= 40

    def test_two_near_the_edge_do_not_take_turns(self) -> None:
        entry = top(2)
        for value in ("a", "b", *(f"x{i}" for i in range(20))):
            counted(entry, value)
        for _ in range(30):
            for value in ("a", "b", "c"):
                counted(entry, value)
        entry.tick(NOW)
        before = set(entry.slices)
        for _ in range(3):
            counted(entry, "c")
            entry.tick(NOW)
        assert set(entry.slices) - {(OTHER_VALUE,)} <= before | {(OTHER_VALUE,)}

    def test_a_rare_value_that_fails_is_seen(self) -> None:
        entry = top(5)
        for i in range(2000):
            entry.note(f"u{i % 100}", NOW, failed=False)
        for _ in range(5):
            entry.note("broken", NOW, failed=True)
        entry.tick(NOW)
        assert ("broken",) in entry.slices


class TestSlicer:
    def test_a_request_has_one_slice_in_every_entry(self) -> None:
        slicer = Slicer(["", "model", "feature_name,device_type", "model"], 16, ["user_id"], 5, NOW)
        tags = {"feature_name": "search", "user_id": "alice"}
        placed = slicer.place(row(model="llama", tags=tags), NOW, failed=False)
        assert [each.values for each in placed] == [(), ("llama",), ("search", ""), ("alice",)]
        assert [entry.names for entry in slicer.entries()] == [
            (), ("model",), ("feature_name", "device_type"), ("user_id",),
        ]  # fmt: skip
        assert slicer.ids() == {each.id for each in placed}
        assert slicer.entry("feature_name,device_type") is slicer.capped[2]
        assert slicer.entry("nothing") is None
