"""The follower: every row once, every gap with its row, every loss counted, whatever dies in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ringbuffer import RingError
from ringbuffer.layout import Kind as SegmentKind
from ringbuffer.segment import attach
from router.errors import ErrorKind
from router.observer import life
from router.observer.batch import Batch, Loss
from router.observer.follow import LOOK_EVERY_NS, Follower
from router.observer.life import ROUTER_DIED
from router.observer.positions import FILE, GONE_MAX, FollowError, Position, Positions
from router.observer.rows import NO_DONE_SEQ, Origin, RequestRow, RowKey
from router.telemetry import records as rec
from router.telemetry.records import Kind
from tests.support.told_requests import MS, ToldRequest, ToldRouter
from tests.support.waiting import shared_memory_directory, wait_until

T0 = 10**12


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with shared_memory_directory() as directory:
        yield directory


class Observer:
    """A follower with a clock of its own, whose rows count as durable as soon as ``commit`` says so."""

    def __init__(self, run_dir: Path, state_dir: Path, **given: object) -> None:
        self.follower = Follower(run_dir, state_dir, **given)  # type: ignore[arg-type]
        self.now_ns = T0
        self.rows: list[RequestRow] = []
        self.losses: list[Loss] = []
        self.gaps: dict[RowKey, list[int]] = {}

    def poll(self) -> Batch:
        """Look, as late as makes it look for routers as well."""
        self.now_ns += LOOK_EVERY_NS
        batch = self.follower.poll(self.now_ns)
        self.rows += batch.rows
        self.losses += batch.losses
        for row in batch.rows:
            self.gaps.setdefault(row.key, [])
        for index, gap_ns in zip(batch.pace.row.tolist(), batch.pace.gap_ns.tolist(), strict=True):
            self.gaps[batch.rows[index].key].append(gap_ns)
        return batch

    def lost_count(self, what: str) -> int:
        return sum(loss.record_count for loss in self.losses if loss.what == what)


@pytest.fixture
def observer(run_dir: Path, tmp_path: Path) -> Iterator[Observer]:
    one = Observer(run_dir, tmp_path)
    yield one
    one.follower.close()


@pytest.fixture
def router(run_dir: Path) -> Iterator[ToldRouter]:
    one = ToldRouter(run_dir / "main")
    yield one
    one.die()


def answer(router: ToldRouter, times_ms: list[int], start_ns: int = T0) -> ToldRequest:
    """Tell of one whole answer with a content event at each of these times."""
    request = router.ask(start_ns)
    request.dispatch(start_ns + MS)
    for t_ms in times_ms:
        request.event(start_ns + t_ms * MS)
    request.event(start_ns + times_ms[-1] * MS, Kind.FINISH)
    request.finish(start_ns + times_ms[-1] * MS)
    return request


class TestOneRequest:
    def test_a_row_comes_with_the_gaps_between_its_tokens(self, router: ToldRouter, observer: Observer) -> None:
        answer(router, [100, 110, 130, 130, 1500])
        observer.poll()
        (row,) = observer.rows
        assert observer.gaps[row.key] == [10 * MS, 20 * MS, 0, 1370 * MS]
        assert (row.icl_count, row.icl_mean_ns, row.icl_p50_ns, row.icl_p95_ns) == (4, 350 * MS, 10 * MS, 1370 * MS)
        assert (row.stall_count, row.stall_ns, row.stall_max_ns) == (1, 1370 * MS, 1370 * MS)
        assert not row.lossy
        assert (row.instance, row.model, row.host, row.done_seq) == ("main", "chat", "gpu-0", 0)

    def test_a_single_token_has_no_gap(self, router: ToldRouter, observer: Observer) -> None:
        answer(router, [100])
        row = observer.poll().rows[0]
        assert (row.icl_count, row.icl_p50_ns, row.lossy, observer.gaps[row.key]) == (0, None, False, [])

    def test_its_tokens_may_come_in_many_polls(self, router: ToldRouter, observer: Observer) -> None:
        request = router.ask(T0)
        request.dispatch(T0)
        for t_ms in (5, 7, 10, 14):
            request.event(T0 + t_ms * MS)
            assert observer.poll().rows == []
        request.finish(T0 + 20 * MS)
        row = observer.poll().rows[0]
        assert observer.gaps[row.key] == [2 * MS, 3 * MS, 4 * MS]

    @pytest.mark.parametrize("polls", [True, False], ids=["seen between", "all in one poll"])
    def test_a_retry_begins_anew(self, router: ToldRouter, observer: Observer, *, polls: bool) -> None:
        request = router.ask(T0)
        request.dispatch(T0, host=2)
        for t_ms in (1, 2, 3):
            request.event(T0 + t_ms * MS)
        if polls:
            observer.poll()
        request.fail_attempt(T0 + 4 * MS, ErrorKind.NO_FINISH)
        request.dispatch(T0 + 5 * MS, host=1)
        for t_ms in (50, 60):
            request.event(T0 + t_ms * MS)
        request.finish(T0 + 60 * MS)
        row = observer.poll().rows[0]
        assert observer.gaps[row.key] == [10 * MS]
        assert not row.lossy
        assert [(each.host, each.outcome, each.error) for each in row.attempts] == [
            ("gpu-1", "failed", "no_finish"),
            ("gpu-0", "ok", ""),
        ]
        assert row.retries == 1

    def test_a_slow_client_is_no_slow_host(self, router: ToldRouter, observer: Observer) -> None:
        request = router.ask(T0)
        request.dispatch(T0)
        request.event(T0 + 10 * MS)
        request.tell(T0 + 10 * MS, Kind.BLOCKED)
        request.event(T0 + 20 * MS)
        request.event(T0 + 21 * MS, Kind.USAGE)
        request.tell(T0 + 40 * MS, Kind.DRAINED)
        request.tell(T0 + 45 * MS, Kind.BLOCKED)
        request.finish(T0 + 500 * MS)
        row = observer.poll().rows[0]
        assert row.blocked_ns == 30 * MS + 455 * MS
        assert row.attempts[0].end_mono_ns == T0 + 21 * MS, "the slot was free when the host had said its last"

    def test_a_whole_answer_has_no_events_and_lost_none(self, router: ToldRouter, observer: Observer) -> None:
        request = router.ask(T0)
        request.dispatch(T0)
        request.finish(T0 + 9 * MS, n_out=5)
        row = observer.poll().rows[0]
        assert (row.icl_count, row.lossy, row.n_out) == (0, False, 5)


class TestMany:
    @pytest.mark.parametrize("seed", range(6))
    def test_interleaved_requests_keep_their_own_gaps(self, router: ToldRouter, observer: Observer, seed: int) -> None:
        told = tell_many(router, observer, random.Random(seed), request_count=120)
        assert len(observer.rows) == len(told)
        for row in observer.rows:
            request = told[row.request_seq]
            assert observer.gaps[row.key] == request.gaps
            assert row.stall_max_ns == (request.stall_max_ns or None)
            assert not row.lossy
        assert observer.losses == []
        assert observer.follower._lives[observer.rows[0].key[:2]].open_count == 0

    @pytest.mark.parametrize("seed", range(6))
    def test_rows_come_in_the_order_of_their_ends(self, router: ToldRouter, observer: Observer, seed: int) -> None:
        tell_many(router, observer, random.Random(seed), request_count=60)
        ends = [row.done_mono_ns for row in observer.rows]
        assert ends == sorted(ends)

    def test_several_routers_are_merged(self, run_dir: Path, router: ToldRouter, observer: Observer) -> None:
        other = ToldRouter(run_dir / "second")
        answer(other, [5, 6], T0 + 2 * MS)
        answer(router, [5, 7], T0 + MS)
        answer(router, [5, 8], T0 + 4 * MS)
        observer.poll()
        assert [(row.instance, observer.gaps[row.key]) for row in observer.rows] == [
            ("main", [2 * MS]),
            ("second", [1 * MS]),
            ("main", [3 * MS]),
        ]
        other.die()

    def test_a_record_that_cannot_be_understood_takes_no_other_with_it(
        self, run_dir: Path, router: ToldRouter, observer: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = ToldRouter(run_dir / "second")
        for i in range(3):
            answer(router, [5, 6], T0 + i * MS)
            answer(other, [5, 6], T0 + i * MS)
        real = life.row_of

        def row_of(record: dict[str, Any], origin: Origin, done_seq: int, *rest: Any) -> RequestRow:
            if (origin.instance, done_seq) == ("main", 1):
                raise ValueError("odd record")
            return real(record, origin, done_seq, *rest)

        monkeypatch.setattr(life, "row_of", row_of)
        observer.poll()
        assert [row.instance for row in observer.rows] == ["second"] * 3
        with pytest.raises(ValueError, match="odd record"):
            observer.follower.raise_fault()
        observer.follower.raise_fault()
        observer.follower.commit(observer.rows)
        assert observer.follower._lives["main", int(router.directory.name)].position().done_seq == 0
        observer.poll()
        observer.follower.raise_fault()
        assert [row.done_seq for row in observer.rows if row.instance == "main"] == [0, 2]
        observer.follower.commit(observer.rows)
        assert observer.follower._lives["main", int(router.directory.name)].position().done_seq == 3
        other.die()

    def test_only_named_instances_are_followed(self, run_dir: Path, router: ToldRouter, tmp_path: Path) -> None:
        other = ToldRouter(run_dir / "second")
        answer(other, [5])
        answer(router, [5])
        chosen = Observer(run_dir, tmp_path, instances=["second"])
        chosen.poll()
        assert [row.instance for row in chosen.rows] == ["second"]
        chosen.follower.close()
        other.die()


def tell_many(
    router: ToldRouter, observer: Observer | None, rng: random.Random, request_count: int
) -> dict[int, ToldRequest]:
    """Tell of many requests at once, in random order, with retries; poll now and then if there is an observer."""
    t_ns = T0
    running: list[ToldRequest] = []
    told: dict[int, ToldRequest] = {}
    while len(told) < request_count or running:
        t_ns += rng.randrange(1, 3 * MS)
        if len(told) < request_count and (not running or rng.random() < 0.1):
            request = router.ask(t_ns)
            told[request.seq] = request
            request.dispatch(t_ns)
            running.append(request)
            continue
        request = rng.choice(running)
        turn = rng.random()
        if turn < 0.05:
            running.remove(request)
            request.finish(t_ns)
        elif turn < 0.07:
            request.fail_attempt(t_ns, ErrorKind.NO_FINISH)
            request.dispatch(t_ns + 1, host=2)
        else:
            request.event(t_ns, rng.choice([Kind.HEAD, Kind.TEXT, Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL]))
        if observer is not None and rng.random() < 0.03:
            observer.poll()
    if observer is not None:
        observer.poll()
    return told


class TestLosses:
    @pytest.mark.parametrize("seed", range(8))
    def test_only_what_a_loss_touches_is_lossy(self, run_dir: Path, tmp_path: Path, seed: int) -> None:
        router = ToldRouter(run_dir / "main", token_slots=256, done_slots=1024)
        observer = Observer(run_dir, tmp_path)
        observer.poll()
        rng = random.Random(seed)
        told: dict[int, ToldRequest] = {}
        lost_seqs: set[int] = set()
        for _ in range(12):
            begin = observer_token_position(observer)
            told |= tell_many(router, None, rng, rng.choice([2, 5, 12, 30]))
            end = router.tokens.segment.published
            lost_seqs.update(range(begin, max(begin, end - 256)))
            observer.poll()
        assert observer.lost_count("tokens") == len(lost_seqs), "lost records are counted exactly"
        assert len(observer.rows) == len(told)
        assert 0 < len(lost_seqs) < router.tokens.segment.published, "the scenario loses something, not everything"
        assert {row.lossy for row in observer.rows} == {True, False}
        for row in observer.rows:
            request = told[row.request_seq]
            touched = any(seq in lost_seqs for seq in request.host_event_seqs)
            assert row.lossy == touched
            if not touched and not lost_seqs.intersection(request.token_seqs):
                assert observer.gaps[row.key] == request.gaps
        observer.follower.close()
        router.die()

    def test_lost_rows_are_counted_with_the_time_they_ended_in(self, run_dir: Path, tmp_path: Path) -> None:
        router = ToldRouter(run_dir / "main", done_slots=16)
        observer = Observer(run_dir, tmp_path)
        first = answer(router, [1, 2], T0)
        observer.poll()
        later = [answer(router, [1, 2], T0 + 10 * i * MS) for i in range(1, 41)]
        observer.poll()
        assert len(observer.rows) == 1 + 16
        (loss,) = observer.losses
        assert (loss.what, loss.record_count, loss.first_seq) == ("requests", 24, 1)
        assert (loss.begin_mono_ns, loss.end_mono_ns) == (first.at["done"], later[24].at["done"])
        assert observer.follower.lost_request_count == 24
        assert observer.follower._lives[observer.rows[0].key[:2]].open_count == 0, "the ends of lost rows are let go"
        observer.follower.close()
        router.die()

    def test_a_request_whose_end_was_lost_is_let_go(self, run_dir: Path, tmp_path: Path) -> None:
        router = ToldRouter(run_dir / "main", token_slots=64, done_slots=16)
        observer = Observer(run_dir, tmp_path)
        for i in range(20):
            request = router.ask(T0 + i)
            request.dispatch(T0 + i)
            if i < 18:
                request.event(T0 + i)
        observer.poll()
        life = next(iter(observer.follower._lives.values()))
        assert life.open_count == 20
        running = [router.ask(T0), router.ask(T0)]
        for request in running:
            request.dispatch(T0)
            request.show(request.seq % 64)
        for i in range(200):
            running[0].event(T0 + i)
        for _ in range(4):
            observer.now_ns += 10**9
            observer.poll()
        assert life.open_count == 1, "the running request that was seen"
        observer.follower.close()
        router.die()


def observer_token_position(observer: Observer) -> int:
    (life,) = observer.follower._lives.values()
    return life._tokens.position


class TestGenerations:
    def test_the_old_one_is_finished_before_the_new_one(self, run_dir: Path, observer: Observer) -> None:
        old = ToldRouter(run_dir / "main")
        answer(old, [5, 6])
        observer.poll()
        answer(old, [5, 7])
        old.die()
        new = ToldRouter(run_dir / "main")
        answer(new, [5, 8])
        observer.poll()
        observer.poll()
        assert [(row.generation, observer.gaps[row.key]) for row in observer.rows] == [
            (int(old.directory.name), [1 * MS]),
            (int(old.directory.name), [2 * MS]),
            (int(new.directory.name), [3 * MS]),
        ]
        assert observer.losses == []
        new.die()

    def test_what_a_new_one_has_overwritten_is_lost(self, run_dir: Path, observer: Observer) -> None:
        old = ToldRouter(run_dir / "main", done_slots=16)
        for i in range(20):
            answer(old, [5], T0 + i)
        observer.poll()
        assert (len(observer.rows), observer.losses) == (16, []), "what was before the first observer is history"
        old.die()
        new = ToldRouter(run_dir / "main", done_slots=16)
        for i in range(20):
            answer(new, [5], T0 + i)
        observer.poll()
        observer.poll()
        assert (len(observer.rows), observer.lost_count("requests")) == (32, 4)
        new.die()

    def test_what_was_found_already_dead_is_read_too(self, run_dir: Path, tmp_path: Path) -> None:
        old = ToldRouter(run_dir / "main")
        answer(old, [5, 6])
        old.die()
        late = Observer(run_dir, tmp_path)
        late.poll()
        assert len(late.rows) == 1
        late.follower.close()

    def test_a_dead_routers_requests_are_closed_as_aborted(self, run_dir: Path, observer: Observer) -> None:
        router = ToldRouter(run_dir / "main")
        ended = answer(router, [5, 6])
        request, waiting = router.ask(T0), router.ask(T0 + MS)
        request.dispatch(T0 + 2 * MS)
        request.show(3, rec.Phase.PREFILL)
        waiting.show(4, rec.Phase.WAITING)
        ended.show(5)  # the router died between writing its record and clearing its row
        for t_ms in (20, 30, 45):
            request.event(T0 + t_ms * MS)
        observer.poll()
        assert len(observer.rows) == 1, "what runs is no row"
        (view,) = observer.follower.routers()
        assert (view.state, view.loads.running_by_host, view.loads.waiting_count) == ("alive", {"gpu-0": 2}, 1)
        router.die()
        observer.poll()
        aborted, waited = sorted(observer.rows[1:], key=lambda row: row.request_seq)
        assert (aborted.outcome, aborted.error, aborted.done_seq) == ("aborted", ROUTER_DIED, NO_DONE_SEQ)
        assert observer.gaps[aborted.key] == [10 * MS, 15 * MS]
        assert (aborted.n_out, aborted.n_out_estimated, aborted.host) == (3, True, "gpu-0")
        assert aborted.host_ttft_ns == 18 * MS
        assert aborted.attempts[0].outcome == "aborted"
        assert (waited.outcome, waited.host, waited.attempts, waited.n_out) == ("aborted", "", (), 0)
        assert waited.duration_ns > 0
        observer.poll()
        assert len(observer.rows) == 3, "aborted once"

    def test_a_router_that_is_gone_and_read_needs_no_memory(self, run_dir: Path, observer: Observer) -> None:
        router = ToldRouter(run_dir / "main")
        answer(router, [5, 6])
        router.die()
        observer.poll()
        observer.follower.commit(observer.rows)
        assert observer.follower._lives == {}
        assert [view.state for view in observer.follower.routers()] == ["dead"]
        assert observer.poll().rows == []

    def test_one_that_cannot_be_read_is_a_problem_not_an_end(self, run_dir: Path, observer: Observer) -> None:
        router = ToldRouter(run_dir / "main")
        other = ToldRouter(run_dir / "other")
        (other.directory / "tokens.ring").write_bytes(b"x" * 5000)
        answer(router, [5])
        observer.poll()
        assert len(observer.rows) == 1
        assert "does not begin with the magic" in observer.follower.problems["other"]
        router.die()
        other.die()

    def test_no_run_directory_yet_is_no_error(self, tmp_path: Path) -> None:
        early = Observer(tmp_path / "run", tmp_path / "state")
        assert early.poll().rows == []
        (tmp_path / "run").mkdir()
        assert early.poll().rows == []
        early.follower.close()


class TestResuming:
    def test_committed_rows_do_not_come_again(self, run_dir: Path, router: ToldRouter, tmp_path: Path) -> None:
        first = Observer(run_dir, tmp_path)
        answer(router, [5, 6])
        first.poll()
        first.follower.commit(first.rows)
        running = router.ask(T0)
        running.dispatch(T0)
        for t_ms in (10, 12):
            running.event(T0 + t_ms * MS)
        answer(router, [5, 7])
        first.poll()  # never committed
        first.follower._positions.close()  # as if it had been killed

        second = Observer(run_dir, tmp_path)
        running.event(T0 + 15 * MS)
        running.finish(T0 + 15 * MS)
        second.poll()
        assert [second.gaps[row.key] for row in second.rows] == [[2 * MS], [2 * MS, 3 * MS]]
        assert not any(row.lossy for row in second.rows), "the beginning of what still ran was read again"
        second.follower.close()

    def test_rows_that_were_durable_but_not_committed_do_not_come_again(
        self, run_dir: Path, router: ToldRouter, tmp_path: Path
    ) -> None:
        first = Observer(run_dir, tmp_path)
        for i in range(5):
            answer(router, [5, 6], T0 + i * MS)
        first.poll()
        first.follower._positions.close()
        durable = {row.key: row.done_seq for row in first.rows[:3]}
        second = Observer(run_dir, tmp_path, durable=durable)
        second.poll()
        assert [row.key for row in second.rows] == [row.key for row in first.rows[3:]]
        second.follower.close()

    def test_what_ran_before_the_position_is_told_apart(
        self, run_dir: Path, router: ToldRouter, tmp_path: Path
    ) -> None:
        first = Observer(run_dir, tmp_path)
        for i in range(5):
            answer(router, [5, 6], T0 + i * MS)
        first.poll()
        first.follower.commit(first.rows[:2])
        first.follower._positions.close()
        second = Observer(run_dir, tmp_path, durable={row.key: row.done_seq for row in first.rows[2:4]})
        second.poll()
        assert [row.done_seq for row in second.rows] == [4]
        assert [row.done_seq for row in second.follower.take_known()] == [0, 1, 2, 3]
        assert second.follower.take_known() == [], "each once"
        second.follower.close()

    def test_what_was_lost_since_the_journal_put_rows_away_is_counted(self, run_dir: Path, tmp_path: Path) -> None:
        router = ToldRouter(run_dir / "main", done_slots=16)
        for i in range(40):
            answer(router, [5, 6], T0 + i * MS)
        generation = int(router.directory.name)
        asked: list[tuple[str, int, int]] = []

        def sealed(*what: Any) -> dict[RowKey, int]:
            asked.append(what)
            return {("main", generation, 9): 9}

        observer = Observer(run_dir, tmp_path, sealed=sealed)
        observer.poll()
        assert asked == [("main", generation, 24)]
        assert (len(observer.rows), observer.lost_count("requests")) == (16, 14)
        observer.follower.close()
        router.die()

    def test_a_router_that_began_later_is_not_looked_for_in_the_journal(self, run_dir: Path, tmp_path: Path) -> None:
        def sealed(*_: object) -> dict[RowKey, int]:
            raise AssertionError("it takes a moment")

        observer = Observer(run_dir, tmp_path, sealed=sealed)
        observer.poll()
        router = ToldRouter(run_dir / "main")
        answer(router, [5, 6])
        observer.poll()
        assert len(observer.rows) == 1
        observer.follower.close()
        router.die()

    def test_positions_of_what_is_not_there_are_kept_up_to_a_bound(self, tmp_path: Path) -> None:
        positions = Positions(tmp_path)
        for generation in range(GONE_MAX + 5):
            positions.put(Position("main", generation, "boot", 1, 1))
        positions.forget_gone({("main", 0)})
        positions.save()
        positions.close()
        again = Positions(tmp_path)
        kept = [generation for generation in range(GONE_MAX + 5) if again.get("main", generation) is not None]
        assert kept == [0, *range(5, GONE_MAX + 5)]
        again.close()

    def test_what_was_lost_while_nobody_read_is_counted_exactly(self, run_dir: Path, tmp_path: Path) -> None:
        router = ToldRouter(run_dir / "main", done_slots=16)
        first = Observer(run_dir, tmp_path)
        for i in range(6):
            answer(router, [5, 6], T0 + i * MS)
        first.poll()
        first.follower.commit(first.rows[:2])
        first.follower._positions.close()
        durable = {row.key: row.done_seq for row in first.rows[:4]}  # two more than was committed
        for i in range(30):
            answer(router, [5, 6], T0 + (10 + i) * MS)
        second = Observer(run_dir, tmp_path, durable=durable)
        second.poll()
        assert (len(second.rows), second.lost_count("requests")) == (16, 36 - 16 - 4)
        second.follower.close()
        router.die()

    def test_aborted_rows_do_not_come_again_either(self, run_dir: Path, tmp_path: Path) -> None:
        router = ToldRouter(run_dir / "main")
        for row in range(3):
            router.ask(T0 + row).show(row)
        router.die()
        first = Observer(run_dir, tmp_path)
        first.poll()
        assert len(first.rows) == 3
        first.follower.commit(first.rows[:2])
        first.follower._positions.close()
        durable = {row.key: row.done_seq for row in first.rows[:2]}
        second = Observer(run_dir, tmp_path, durable=durable)
        second.poll()
        assert [row.key for row in second.rows] == [first.rows[2].key]
        second.follower.commit(second.rows)
        second.follower.close()
        third = Observer(run_dir, tmp_path)
        assert third.poll().rows == []
        third.follower.close()

    def test_positions_of_another_boot_are_not_used(self, run_dir: Path, router: ToldRouter, tmp_path: Path) -> None:
        first = Observer(run_dir, tmp_path)
        answer(router, [5, 6])
        first.poll()
        first.follower.commit(first.rows)
        first.follower.close()
        file = tmp_path / FILE
        text = file.read_text()
        boot_id = msgspec.json.decode(text)["positions"][0]["boot_id"]
        file.write_text(text.replace(boot_id, "0" * 32))
        second = Observer(run_dir, tmp_path)
        assert len(second.poll().rows) == 1
        second.follower.close()

    def test_two_observers_do_not_share_a_position(self, run_dir: Path, tmp_path: Path) -> None:
        one = Follower(run_dir, tmp_path)
        with pytest.raises(FollowError, match="another observer uses"):
            Follower(run_dir, tmp_path)
        one.close()
        Follower(run_dir, tmp_path).close()

    @pytest.mark.parametrize("text", ["{", "[]", '{"schema": "other/1", "positions": []}', "\xff"])
    def test_a_position_that_cannot_be_understood_is_told(self, run_dir: Path, tmp_path: Path, text: str) -> None:
        (tmp_path / FILE).write_bytes(text.encode("latin-1"))
        with pytest.raises(FollowError, match=rf"{FILE} .*remove it"):
            Follower(run_dir, tmp_path)
        (tmp_path / FILE).unlink()
        Follower(run_dir, tmp_path).close()


CHILD = """
import os, sys, time
from pathlib import Path
from router.observer.follow import Follower

run_dir, state_dir, book = map(Path, sys.argv[1:])
lines = [line.split() for line in book.read_text().splitlines() if line.endswith(".")] if book.exists() else []
durable = {(line[0], int(line[1]), int(line[2])): int(line[3]) for line in lines if line[0] != "lost"}
follower = Follower(run_dir, state_dir, durable=durable)
with open(book, "ab", buffering=0) as out:
    out.write(b"\\n")  # the last line may have been cut off by a kill
    while True:
        batch = follower.poll(time.monotonic_ns())
        for loss in batch.losses:
            out.write(f"lost {loss.what} {loss.record_count} {loss.first_seq} .\\n".encode())
        counts = [0] * len(batch.rows)
        for index in batch.pace.row.tolist():
            counts[index] += 1
        text = "".join(
            f"{r.instance} {r.generation} {r.request_seq} {r.done_seq} {counts[i]} {int(r.lossy)} .\\n"
            for i, r in enumerate(batch.rows)
        )
        if text:
            out.write(text.encode())
        follower.commit(batch.rows)
"""


class TestKilled:
    def test_no_row_is_doubled_and_none_is_missing(self, run_dir: Path, tmp_path: Path) -> None:
        """The observer is killed again and again while a router writes; each row stands in its book exactly once."""
        router = ToldRouter(run_dir / "main", token_slots=1 << 16, done_slots=1 << 12)
        rng = random.Random(1)
        book = tmp_path / "book"
        command = [sys.executable, "-c", CHILD, str(run_dir), str(tmp_path / "state"), str(book)]
        told: dict[int, ToldRequest] = {}
        for _ in range(5):
            child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
            before = read_count = len(lines_of(book))
            while read_count < before + 100:
                if len(told) - read_count < 300:  # nothing is to be lost while it starts
                    told |= tell_many(router, None, rng, 30)
                assert child.poll() is None
                read_count = len(lines_of(book))
            child.send_signal(signal.SIGKILL)
            child.wait()
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        wait_until(lambda: len({line[2] for line in lines_of(book)}) == len(told), "all rows")
        child.kill()
        child.wait()
        lines = lines_of(book)
        assert [line for line in lines if line[0] == "lost"] == []
        assert len({line[2] for line in lines}) == len(lines), "no row twice"
        for _, _, request_seq, done_seq, gap_count, lossy, _ in lines:
            request = told[int(request_seq)]
            assert (int(done_seq), int(gap_count), lossy) == (request.done_seq, len(request.gaps), "0")
        router.die()

    def test_what_is_missing_was_told(self, run_dir: Path, tmp_path: Path) -> None:
        """A router that does not wait for anybody: rows and losses together are all that it wrote."""
        router = ToldRouter(run_dir / "main", token_slots=1 << 16, done_slots=64)
        rng = random.Random(2)
        book = tmp_path / "book"
        command = [sys.executable, "-c", CHILD, str(run_dir), str(tmp_path / "state"), str(book)]
        told_count = 0
        for _ in range(3):
            child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
            wait_until(partial(is_read_by, router, child.pid), "the observer has begun")
            before = read_count = len(lines_of(book))
            while read_count < before + 40:
                told_count += len(tell_many(router, None, rng, 10))
                read_count = len(lines_of(book))
            child.send_signal(signal.SIGKILL)
            child.wait()
        with_loss = tell_many(router, None, rng, 100)
        told_count += len(with_loss)
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        last_done_seq = str(max(request.done_seq for request in with_loss.values()))
        wait_until(lambda: any(line[3] == last_done_seq for line in lines_of(book)), "the last row")
        child.kill()
        child.wait()
        rows = {line[2] for line in lines_of(book) if line[0] != "lost"}
        # A loss behind the position of a killed observer is told again, longer perhaps, by the next one.
        losses: dict[str, int] = {}
        for line in lines_of(book):
            if line[:2] == ["lost", "requests"]:
                losses[line[3]] = int(line[2])
        assert losses
        assert len(rows) + sum(losses.values()) == told_count
        router.die()


def is_read_by(router: ToldRouter, pid: int) -> bool:
    """Whether this process reads the done records: its position file says who wrote it."""
    try:
        own = attach(router.directory / "readers" / "observer-done", tuple(SegmentKind))
    except RingError:
        return False
    return own.header.writer_pid == pid


def lines_of(book: Path) -> list[list[str]]:
    """Return the whole lines of the book; what a kill cut off is not one."""
    if not book.exists():
        return []
    return [line.split() for line in book.read_text().splitlines() if line.endswith(".")]


def test_a_torn_row_of_a_dead_router_is_told(run_dir: Path, observer: Observer) -> None:
    router = ToldRouter(run_dir / "main")
    router.ask(T0).show(0)
    table = router.inflight.segment
    at = table.header.header_size
    table.words.store_release(at // 8, table.words.load_acquire(at // 8) | 1)
    router.die()
    observer.poll()
    assert observer.rows == []
    assert observer.lost_count("inflight") == 1


def test_memory_stays_bounded_by_what_is_open(router: ToldRouter, observer: Observer) -> None:
    """Whatever went through, only open requests are kept."""
    sizes = []
    for _ in range(5):
        tell_many(router, observer, random.Random(3), 60)
        (life,) = observer.follower._lives.values()
        sizes.append((life.open_count, life._assembler.kept_bytes, len(life._assembler._ended)))
    assert sizes == [(0, 0, 0)] * 5


def test_position_file_is_replaced_not_rewritten(router: ToldRouter, observer: Observer, tmp_path: Path) -> None:
    inodes = []
    for _ in range(3):
        answer(router, [5])
        observer.follower.commit(observer.poll().rows)
        inodes.append((tmp_path / FILE).stat().st_ino)
    assert all(a != b for a, b in pairwise(inodes))
    assert threading.active_count() == 1
