"""The store of vectors alone, and what is kept in it: bounds, order of eviction, damage."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringbuffer import Generation
from router.caches import entries, keys
from router.caches.memory import MemoryMap, cost_bytes
from router.caches.outbox import HEAD, OP_PUT, OP_TOUCH, RECORD_BYTES_MAX, SLOT_BYTES, Outbox
from router.keep import check
from router.keep.inbox import Inbox
from router.keep.store import PURGES_MAX, Put, Store

STORE_BYTES = 4 << 20
SPACE = keys.Space("m")


def a_put(n: int, count: int = 64, space: keys.Space = SPACE) -> Put:
    key = keys.key_of(space.space_id(), f"text {n}")
    kind, numbers = entries.from_floats([float(n)] * count)
    entry = entries.pack(key, kind, numbers, tokens=n, host_us=1, made_s=2, exact=True)
    return Put(space.record(), key, entry)


def some_puts(count: int, size: int = 64) -> list[Put]:
    return [a_put(n, size) for n in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", STORE_BYTES)
    yield store
    store.close()


# ---------------------------------------------------------------- entries
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_every_number_comes_back_bit_for_bit(values: list[float]) -> None:
    kind, numbers = entries.from_floats(values)
    entry = entries.pack(b"k" * 24, kind, numbers, tokens=1, host_us=1, made_s=1, exact=False)
    import json  # noqa: PLC0415

    told = json.loads(entries.float_text(entry))
    assert struct.pack(f"<{len(values)}d", *told) == struct.pack(f"<{len(values)}d", *values)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_numbers_of_32_bits_are_kept_in_32_bits(values: list[float]) -> None:
    kind, numbers = entries.from_floats(values)
    assert (kind, len(numbers)) == (entries.F32, 4 * len(values))


@given(st.integers(0, 23 + 24 + 256), st.integers(1, 255))
def test_a_changed_byte_is_noticed_but_for_the_generation(position: int, change: int) -> None:
    put = a_put(1)
    damaged = bytearray(put.entry)
    position %= len(damaged)
    damaged[position] ^= change
    assert entries.is_whole(put.key, bytes(damaged)) == (20 <= position < 24)
    assert not entries.is_whole(b"x" * 24, put.entry), "it is of another key"


def test_keys_tell_spaces_texts_and_tokens_apart() -> None:
    spaces = [keys.Space("m"), keys.Space("n"), keys.Space("m", "r2"), keys.Space("m", "", 8)]
    items: list[str | list[int]] = ["a", "b", [1, 2], "[1,2]", [12]]
    found = {keys.key_of(space.space_id(), item) for space in spaces for item in items}
    assert len(found) == len(spaces) * len(items)
    assert keys.Space("m", echo="x").space_id() == keys.Space("m").space_id()


# ---------------------------------------------------------------- the memory map
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 400)), max_size=200), st.integers(1, 20_000))
def test_memory_never_holds_more_than_its_bound(asked: list[tuple[int, int]], bytes_max: int) -> None:
    memory = MemoryMap(bytes_max)
    held: dict[bytes, bytes] = {}
    for n, size in asked:
        put = a_put(n, size)
        memory.put(put.key, put.entry)
        held[put.key] = put.entry
        there = {key: entry for key, entry in held.items() if memory.get(key) is not None}
        assert memory.used_bytes == sum(cost_bytes(key, memory.get(key) or b"") for key in there) <= bytes_max
        assert len(memory) == len(there)


def test_what_was_of_use_stays_longest_and_is_handed_out_when_it_goes() -> None:
    puts = some_puts(4)
    memory = MemoryMap(3 * cost_bytes(puts[0].key, puts[0].entry))
    for put in puts[:3]:
        memory.put(put.key, put.entry)
    assert memory.get(puts[0].key) is not None
    assert memory.put(puts[3].key, puts[3].entry) == [], "the second was of no use"
    assert memory.get(puts[1].key) is None
    gone = [memory.put(a_put(n).key, a_put(n).entry) for n in (5, 6, 7)]
    assert gone[1] == [(puts[0].key, puts[0].entry)]


# ---------------------------------------------------------------- the store
def test_what_is_written_is_there_for_the_next_one(store: Store, tmp_path: Path) -> None:
    puts = some_puts(100)
    assert store.write(puts).put_count == 100
    store.close()
    again = Store(tmp_path / "store", STORE_BYTES)
    try:
        for put in puts:
            entry = again.get(put.key)
            assert entry is not None
            assert entries.is_whole(put.key, entry)
            assert entries.with_generation(entry, 0) == put.entry
        assert again.usage().entry_count == 100
        assert list(again.problems()) == []
    finally:
        again.close()


def test_what_is_there_is_not_written_again(store: Store) -> None:
    assert store.write(some_puts(10)).put_count == 10
    assert store.write(some_puts(10)) == (0, 0, 0, 0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), min_size=1, max_size=400), st.data())
def test_the_store_stays_in_its_bounds_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("bounds") / "store"
    store = Store(path, STORE_BYTES)
    try:
        puts = [a_put(n, size) for n, size in asked]
        while puts:
            count = data.draw(st.integers(1, len(puts)))
            done = store.write(puts[:count], [put.key for put in puts[count : count + 3]])
            assert done.dropped_count == 0
            puts = puts[count:]
            usage = store.usage()
            assert usage.used_bytes <= usage.limit_bytes
            assert (path / "data.mdb").stat().st_size <= STORE_BYTES
        assert list(store.problems()) == []
    finally:
        store.close()


def test_a_full_store_evicts_the_oldest_and_keeps_what_is_used(store: Store) -> None:
    puts = some_puts(12_000, 64)
    used = [put.key for put in puts[:20]]
    evicted = 0
    for begin in range(0, len(puts), 500):
        evicted += store.write(puts[begin : begin + 500], used).evicted_count
    assert evicted > 0
    assert all(store.has(key) for key in used), "they were used in each generation"
    assert not store.has(puts[100].key), "it was not"
    assert store.has(puts[-1].key)
    usage = store.usage()
    assert usage.generation > 1
    assert usage.entry_count == len(puts) - evicted


def test_purge_removes_a_space_with_its_name_and_nothing_else(store: Store) -> None:
    other = keys.Space("n", "r1", 32)
    store.write([*some_puts(3000, 8), *(a_put(n, 32, other) for n in range(5))])
    assert store.purge(SPACE.space_id()) == 3000
    assert store.count_by_space() == {other.space_id(): 5}
    assert list(store.spaces().values()) == [other]
    assert list(store.problems()) == []


def test_a_damaged_entry_is_found_by_looking(store: Store, tmp_path: Path) -> None:
    puts = some_puts(50)
    store.write(puts)
    store.close()
    data = tmp_path / "store" / "data.mdb"
    raw = data.read_bytes()
    numbers = puts[7].entry[24:]
    assert raw.count(numbers) >= 1
    data.write_bytes(raw.replace(numbers, bytes(len(numbers))))
    assert "its vector is damaged" in check.problem_of(tmp_path / "store", STORE_BYTES)


# ---------------------------------------------------------------- purges
def test_purges_are_remembered_by_the_store_and_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path / "purged", STORE_BYTES)
    put = a_put(1)
    store.write([put])
    assert not store.is_purged(put)
    assert store.purge(put.key) == 1
    assert store.is_purged(put), "made long before"
    assert not store.is_purged(a_put(2)), "another key"
    store.close()
    store = Store(tmp_path / "purged", STORE_BYTES)
    assert store.is_purged(put), "also to the next keeper"
    for n in range(PURGES_MAX + 5):
        store.purge(a_put(n + 10).key)
    times_ns = [purge.wall_ns for purge in store.purges]
    assert len(times_ns) == PURGES_MAX
    assert times_ns == sorted(set(times_ns))
    assert store.purges[0].prefix == b"", "of those before it is only known that there were some"
    assert store.is_purged(put)
    store.close()


# ---------------------------------------------------------------- rings
def test_a_damaged_ring_is_left_and_the_others_are_read_on(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        generation = Generation.create(tmp_path / name)
        generation.activate()
        found.append((generation, Outbox(generation.path, 64)))
    warnings: list[dict[str, str]] = []
    inbox = Inbox(tmp_path, SimpleNamespace(warning=lambda _, **facts: warnings.append(facts)))
    taken: list[bytes] = []
    assert inbox.poll(lambda _, record: taken.append(record)) == 0, "both are registered with"
    (_, damaged), (_, good) = found
    damaged._ring.try_publish_batch(HEAD.pack(RECORD_BYTES_MAX + 1, OP_PUT, 0) + bytes(SLOT_BYTES - 8 - HEAD.size))
    assert good.send(OP_TOUCH, b"k" * 24)
    inbox.poll(lambda _, record: taken.append(record))
    assert taken == [b"k" * 24]
    assert len(inbox.generations) == 1
    assert len(warnings) == 1
    assert "at most" in warnings[0]["reason"]
    inbox.close()
    for generation, outbox in found:
        outbox.close()
        generation.close()


# ---------------------------------------------------------------- texts of vectors
def entry_of(numbers: list[float]) -> bytes:
    kind, packed = entries.from_floats(numbers)
    return entries.pack(b"k" * keys.KEY_BYTES, kind, packed, tokens=1, host_us=1, made_s=1, exact=True)


def test_the_text_of_a_vector_is_that_of_its_numbers_however_often_it_is_asked_for() -> None:
    dice = random.Random(7)
    vectors = [[dice.gauss(0, 1) for _ in range(dice.randrange(1, 50))] for _ in range(600)]
    for _ in range(2):
        for vector in vectors:
            assert msgspec.json.decode(entries.float_text(entry_of(vector))) == vector
    assert entries._remembered_text.cache_info().currsize == entries._REMEMBERED_MAX, "no more are remembered"


def test_the_texts_of_large_vectors_are_not_remembered() -> None:
    before = entries._remembered_text.cache_info()
    large = entry_of([float(n) + 0.5 for n in range(3000)])
    assert len(large) > entries._REMEMBERED_BYTES_MAX
    assert msgspec.json.decode(entries.float_text(large))[2999] == 2999.5
    assert entries._remembered_text.cache_info() == before


def test_what_hosts_call_a_model_outlives_a_writer_that_does_not_know_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", STORE_BYTES)
    try:
        space_id = SPACE.space_id()
        store.write([a_put(1)])
        assert store.spaces()[space_id].echo == ""
        for n, echo in enumerate(("org/m-v1", "", "org/m-v2", ""), 2):
            store.write([a_put(n, space=keys.Space("m", echo=echo))])
        assert store.spaces()[space_id].echo == "org/m-v2"
    finally:
        store.close()


def test_what_hosts_call_a_model_is_learned_of_an_entry_that_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", STORE_BYTES)
    try:
        store.write([a_put(1)])
        written = store.write([a_put(1, space=keys.Space("m", echo="org/m-v1"))])
        assert (written.put_count, store.spaces()[SPACE.space_id()].echo) == (0, "org/m-v1")
    finally:
        store.close()
