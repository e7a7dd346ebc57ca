"""The readers: ids become names, stamps become durations, losses are counted exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from done_records import MS, payload, stamps
from fake_router import FakeRouter

from ringbuffer import Missing, VersionMismatch
from router.errors import ErrorKind
from router.routing import PolicyId, Reason
from router.stamps import STAMPS
from router.telemetry import records as rec
from router.telemetry.reader import DoneReader, InflightReader, Names, TokenReader


@pytest.fixture
def router(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    yield fake
    fake.die()


class TestNames:
    def test_ids_become_text(self, router: FakeRouter) -> None:
        names = Names(router.directory)
        assert (names.host(1), names.model(1)) == ("gpu-0", "chat")

    def test_no_id_is_no_text_and_the_bound_has_its_own_name(self, router: FakeRouter) -> None:
        names = Names(router.directory)
        assert names.host(0) == ""
        assert names.text(0, rec.OTHER_ID) == "__other__"

    def test_a_name_added_later_is_found(self, router: FakeRouter) -> None:
        names = Names(router.directory)
        assert names.host(2) == "#2"
        router.add_name(rec.NAME_HOST, 2, "gpu-1")
        assert names.host(2) == "gpu-1"

    def test_tags_come_by_name_the_users_own_too(self, router: FakeRouter) -> None:
        router.add_name(rec.NAME_OWN_TAG, 1, "team")
        router.add_name(rec.NAME_OWN_TAG, 2, "tenant")
        router.add_name(rec.TAGS.index("channel"), 1, "web")
        router.add_name(rec.OWN_TAG_FIRST + 1, 1, "acme")
        tag_ids = [0] * rec.TAG_SLOT_COUNT
        tag_ids[rec.TAGS.index("channel")] = tag_ids[rec.OWN_TAG_FIRST + 1] = 1
        assert Names(router.directory).tags(tag_ids) == {"channel": "web", "tenant": "acme"}


class TestDone:
    def test_a_finished_request_is_text_and_durations(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        router.finish(
            "r-1",
            policy=PolicyId.LEAST_OUTSTANDING,
            candidates=[(1, Reason.CHOSEN, 0.5)],
            failed_attempts=[(1, ErrorKind.CONNECT_FAILED, 0, 1, 2, 3, 4, 5)],
        )
        (done,) = reader.poll()
        assert (done["host"], done["model"], done["endpoint"]) == ("gpu-0", "chat", "chat")
        assert (done["outcome"], done["error"], done["flags"]) == ("ok", "none", ["stream"])
        assert done["policy"] == "least_outstanding"
        assert done["candidates"] == [{"host": "gpu-0", "reason": "chosen", "score": 0.5}]
        assert [(a["host"], a["error"]) for a in done["failed_attempts"]] == [("gpu-0", "connect_failed")]
        assert done["ttft_ns"] == 101 * MS == sum(list(done["stages_ns"].values())[:11])
        assert done["e2e_ns"] == 301 * MS
        assert done["tpot_ns"] == 10 * MS
        assert done["router_overhead_ns"] == 6 * MS
        assert (done["early_tps"], done["visible_2s"]) == (100, 21)

    def test_early_tps_is_over_two_seconds_at_most(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        router.finish("r", stamps=stamps(time.monotonic_ns(), first_ms=100, last_ms=5100), early_tokens=30)
        assert reader.poll()[0]["early_tps"] == 15

    def test_what_never_happened_has_no_duration(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        router.finish("r", stamps=(100, *[0] * 13, 900), outcome=rec.Outcome.REJECTED, n_out=0)
        (done,) = reader.poll()
        durations = ("ttft_ns", "tpot_ns", "e2e_ns", "router_overhead_ns", "early_tps")
        assert [done[name] for name in durations] == [None] * 5
        assert set(done["stages_ns"].values()) == {0}

    def test_numbers_of_a_newer_minor_version_are_shown_not_refused(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        router.finish("r", outcome=200, error=201, endpoint=202)
        (done,) = reader.poll()
        assert (done["outcome"], done["error"], done["endpoint"]) == ("#200", "#201", "#202")

    def test_losses_are_counted_exactly(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        for number in range(100):
            router.finish(f"r-{number}")
        seen = [done["request_id"] for done in reader.poll()]
        assert seen[-1] == "r-99"
        assert len(seen) + reader.lost_count == reader.position == reader.published_count == 100

    def test_where_to_begin(self, router: FakeRouter) -> None:
        for number in range(5):
            router.finish(f"r-{number}")
        assert DoneReader(router.directory).poll() == []
        assert len(DoneReader(router.directory, "oldest").poll()) == 5
        assert [done["request_id"] for done in DoneReader(router.directory, 3).poll()] == ["r-3", "r-4"]

    def test_a_named_reader_is_seen_while_it_reads(self, router: FakeRouter) -> None:
        place = router.directory / "readers" / "somebody"
        with DoneReader(router.directory, name="somebody") as reader:
            assert reader.registered
            assert place.exists()
        assert not place.exists()

    def test_a_name_that_cannot_be_registered_does_not_stop_the_reader(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory, name="no/such/place")
        router.finish("r")
        assert not reader.registered
        assert len(reader.poll()) == 1

    def test_stamps_become_calendar_time(self, router: FakeRouter) -> None:
        reader = DoneReader(router.directory)
        assert abs(reader.wall_ns(time.monotonic_ns()) - time.time_ns()) < 10**9

    def test_no_router_is_missing(self, run_dir: Path) -> None:
        with pytest.raises(Missing):
            DoneReader(run_dir)


def test_another_major_version_of_the_records_is_refused(run_dir: Path) -> None:
    fake = FakeRouter(run_dir / "main", schema=(rec.RECORD_SCHEMA[0] + 1, 0))
    with pytest.raises(VersionMismatch):
        DoneReader(fake.directory)
    fake.die()


def test_token_records_are_text_where_a_person_reads_them(router: FakeRouter) -> None:
    reader = TokenReader(router.directory)
    flags = rec.TokenFlag.HOST_EVENT | rec.TokenFlag.FINISH
    router.tokens.publish(5, 7, rec.Kind.TEXT | flags << 8 | 1 << 16 | 3 << 48, 2 | 80 << 32, 1_000, 0, 0)
    assert reader.poll() == [
        {
            "t_ns": 5,
            "request_seq": 7,
            "kind": "text",
            "flags": ["host_event", "finish"],
            "host": "gpu-0",
            "choice": 0,
            "n_tokens": 3,
            "event_index": 2,
            "bytes": 80,
            "gap_ns": 1_000,
            "client_unsent_bytes": 0,
        }
    ]


def test_the_in_flight_table_shows_what_waits_and_runs(router: FakeRouter) -> None:
    router.inflight.write(3, payload(phase=rec.Phase.WAITING, model=1, stamps=(100, 101, *[0] * 13), request_id="w"))
    router.inflight.write(9, payload(phase=rec.Phase.DECODE, model=1, host=1, request_id="d"))
    shown = InflightReader(router.directory).read()
    assert [(r["phase"], r["host"], r["model"], r["request_id"]) for r in shown] == [
        ("waiting", "", "chat", "w"),
        ("decode", "gpu-0", "chat", "d"),
    ]
    assert shown[0]["stamps"] == dict(zip(STAMPS, (100, 101, *[0] * 13), strict=True))
    router.inflight.clear(3)
    assert [r["request_id"] for r in InflightReader(router.directory).read()] == ["d"]
