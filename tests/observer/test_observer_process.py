"""The observer's parts put together, in this process: what a turn does, what is told, and what goes wrong."""

from __future__ import annotations

import asyncio
import operator
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router import config
from router.config import Config
from router.observer import cost, parquet, process, segments
from router.observer.follow import LOOK_EVERY_NS
from router.observer.pipeline import Pipeline, Steps
from router.observer.positions import FILE
from router.observer.process import Observer
from router.observer.query import JournalReader
from router.observer.rows import RequestRow, RowCost
from router.observer.segments import JOURNAL
from tests.support.told_requests import MS, ToldRouter

DOCUMENT = Path(__file__).parents[2] / "docs" / "observer.md"
SETTLE_NS = 3_000_000_000
PRICED = """
[[hosts]]
name = "gpu-0"
url = "http://127.0.0.1:1"
cost_per_hour = 1.0
"""


@pytest.fixture
def router(directory: Path) -> Iterator[ToldRouter]:
    router = ToldRouter(directory / "run" / "main")
    yield router
    router.die()


def settings(directory: Path, more: str = "") -> Config:
    return config.parse(f'version = 1\n[observer]\nhttp = "127.0.0.1:0"\ndata_dir = "{directory}/data"\n{more}')


class Turning:
    """A pipeline whose clock is set by hand: behind now, where the told requests are."""

    def __init__(self, directory: Path, more: str = "", begin_ns: int | None = None) -> None:
        self.pipeline = Pipeline(settings(directory, more), directory / "run", time.time_ns())
        self.now_ns = begin_ns or time.monotonic_ns()
        self.turn()

    def turn(self, after_ns: int = LOOK_EVERY_NS) -> None:
        self.now_ns += after_ns
        self.pipeline.turn(self.now_ns, time.time_ns())

    def settle(self) -> None:
        """Take turns until costs have settled and rows are on disk."""
        for _ in range(8):
            self.turn(SETTLE_NS // 4)


def answer(router: ToldRouter, begin_ns: int | None = None, **given: Any) -> None:
    """Let a request be answered with four tokens 10 ms apart, ending now."""
    t_ns = begin_ns or time.monotonic_ns() - 100 * MS
    request = router.ask(t_ns)
    request.dispatch(t_ns + 1 * MS)
    for number in range(4):
        request.event(t_ns + (20 + 10 * number) * MS)
    request.finish(t_ns + 60 * MS, **given)


def rows(directory: Path) -> list[tuple[Any, ...]]:
    reader = JournalReader(directory / "data" / JOURNAL)
    try:
        return list(reader.ask("select request_seq, cost_amount, cost_missing from requests order by 1"))
    finally:
        reader.close()


class TestPipeline:
    def test_a_request_is_counted_at_once_and_written_once_its_cost_has_settled(
        self, directory: Path, router: ToldRouter
    ) -> None:
        turning = Turning(directory)
        answer(router)
        turning.turn()
        pipeline = turning.pipeline
        assert pipeline.aggregate.row_count == 1
        assert [row.n_out for row in pipeline.slowest.top(9, 60 * 10**9, turning.now_ns)] == [4]
        turning.settle()
        assert pipeline.cost.pending_count == 0
        assert len(rows(directory)) == 1
        pipeline.close(time.time_ns())

    def test_the_next_observer_goes_on_behind_what_was_written(self, directory: Path, router: ToldRouter) -> None:
        first = Turning(directory)
        answer(router)
        first.turn()
        first.pipeline.close(time.time_ns())
        assert len(rows(directory)) == 1, "what was read is written, settled or not"
        answer(router)
        second = Turning(directory)
        second.settle()
        assert second.pipeline.follower.row_count == 1, "the first request is not read again"
        second.pipeline.close(time.time_ns())
        assert [seq for seq, *_ in rows(directory)] == [0, 1]

    @pytest.mark.parametrize("how", ["another run directory", "the position is removed", "another instance"])
    def test_rows_that_went_to_parquet_are_not_written_again_without_the_position(
        self, directory: Path, router: ToldRouter, how: str
    ) -> None:
        first = Turning(directory)
        for _ in range(3):
            answer(router)
        first.turn()
        first.pipeline.close(time.time_ns())
        journal = directory / "data" / JOURNAL
        for segment in segments.segment_paths(journal):
            parquet.convert(journal, segment)
            segment.unlink()
        if how == "another run directory":
            wrong = Pipeline(settings(directory), directory / "nothing", time.time_ns())
            wrong.turn(time.monotonic_ns(), time.time_ns())
            wrong.close(time.time_ns())
        elif how == "another instance":
            Turning(directory, 'instances = ["other"]').pipeline.close(time.time_ns())
        else:
            (directory / "data" / FILE).unlink()
        answer(router)
        second = Turning(directory)
        second.settle()
        assert second.pipeline.follower.row_count == 1
        assert second.pipeline.follower.lost_request_count == 0
        second.pipeline.close(time.time_ns())
        assert [seq for seq, *_ in rows(directory)] == [0, 1, 2, 3]

    def test_a_request_after_a_restart_has_its_cost(self, directory: Path, router: ToldRouter) -> None:
        first = Turning(directory, PRICED)
        for _ in range(3):
            answer(router, first.now_ns)
        first.settle()
        first.pipeline.close(time.time_ns())
        second = Turning(directory, PRICED, first.now_ns)
        answer(router, second.now_ns)  # beside an idle router
        second.settle()
        second.pipeline.close(time.time_ns())
        assert [(seq, missing) for seq, _, missing in rows(directory)] == [(0, ""), (1, ""), (2, ""), (3, "")]

    @pytest.mark.parametrize("step", ["aggregate.add", "slowest.add", "cost._clocks.take", "aggregate.add_costs"])
    def test_a_step_that_fails_loses_no_row(
        self, directory: Path, router: ToldRouter, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        turning = Turning(directory)
        name, _, method = step.rpartition(".")
        part = operator.attrgetter(name)(turning.pipeline)

        def fail(*_: object) -> None:
            raise ValueError("odd row")

        answer(router)
        with monkeypatch.context() as patched:
            patched.setattr(part, method, fail)
            with pytest.raises(ValueError, match="odd row"):
                turning.settle()
        turning.settle()
        (life,) = turning.pipeline.follower._lives.values()
        assert life.position().done_seq == 1, "the position has passed it"
        turning.pipeline.close(time.time_ns())
        assert [seq for seq, *_ in rows(directory)] == [0]

    def test_an_odd_cost_keeps_no_row_from_the_journal(
        self, directory: Path, router: ToldRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turning = Turning(directory)
        for _ in range(3):
            answer(router, turning.now_ns)
        price = cost.row_cost

        def fail_once(row: RequestRow, *rest: Any) -> RowCost:
            if row.request_seq == 1:
                raise ValueError("odd row")
            return price(row, *rest)

        monkeypatch.setattr(cost, "row_cost", fail_once)
        with pytest.raises(ValueError, match="odd row"):
            turning.settle()
        turning.settle()
        turning.pipeline.close(time.time_ns())
        assert [(seq, missing) for seq, _, missing in rows(directory)] == [(0, "no_price"), (1, None), (2, "no_price")]

    def test_without_a_journal_the_position_moves_on_all_the_same(self, directory: Path, router: ToldRouter) -> None:
        off = "[observer.journal]\nenabled = false"
        first = Turning(directory, off)
        answer(router)
        first.settle()
        assert first.pipeline.journal_state == "off"
        first.pipeline.close(time.time_ns())
        second = Turning(directory, off)
        second.turn()
        assert second.pipeline.follower.row_count == 0
        second.pipeline.close(time.time_ns())
        assert not (directory / "data" / JOURNAL).exists()

    def test_a_disk_that_does_not_take_the_position_is_said_and_tried_again(
        self, directory: Path, router: ToldRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turning = Turning(directory)
        answer(router)

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", refuse)
            turning.settle()
        (problem,) = turning.pipeline.problems()
        assert problem == f"journal: {directory}/data cannot be written: No space left on device"
        answer(router)
        turning.settle()
        assert turning.pipeline.problems() == []
        turning.pipeline.close(time.time_ns())
        second = Turning(directory)
        assert second.pipeline.follower.row_count == 0, "the position was saved after all"
        second.pipeline.close(time.time_ns())

    def test_every_reading_has_a_name_and_a_meaning(self, directory: Path, router: ToldRouter) -> None:
        pipeline = Turning(directory).pipeline
        readings = list(pipeline.readings())
        assert {"ringrouter_lost_requests", "ringrouter_journal_dropped_rows"} <= {each.name for each in readings}
        document = (DOCUMENT.parent / "metrics.md").read_text(encoding="utf-8")
        for each in readings:
            assert each.meaning, each.name
            assert each.name in document, f"{each.name} is not in docs/metrics.md"
        pipeline.close(time.time_ns())


def test_of_several_steps_that_fail_the_first_is_raised_and_tells_of_the_others() -> None:
    taken: list[int] = []

    def step(number: int) -> None:
        taken.append(number)
        if number:
            raise ValueError(f"odd {number}")

    def take_all() -> None:
        with Steps() as steps:
            for number in (0, 1, 2, 0):
                steps.take(step, number)

    with pytest.raises(ValueError, match="odd 1") as raised:
        take_all()
    assert taken == [0, 1, 2, 0]
    assert raised.value.__notes__ == ["after it: ValueError('odd 2')"]


class TestObserver:
    @pytest.fixture
    def turning(self, directory: Path, router: ToldRouter) -> Iterator[Turning]:
        turning = Turning(directory)
        yield turning
        turning.pipeline.close(time.time_ns())

    def make(self, turning: Turning, directory: Path) -> Observer:
        async def make() -> Observer:
            return Observer(settings(directory), turning.pipeline, SimpleNamespace(error=self.logged.append))

        return asyncio.run(make())

    @pytest.fixture(autouse=True)
    def _log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logged: list[Any] = []
        monkeypatch.setattr(process, "log_unhandled", lambda _, context: self.logged.append(context["message"]))

    def test_what_is_counted_and_what_is_present_come_together(
        self, turning: Turning, router: ToldRouter, directory: Path
    ) -> None:
        observer = self.make(turning, directory)
        answer(router)
        running = router.ask(time.monotonic_ns())
        running.dispatch(time.monotonic_ns())
        running.show(0)
        turning.turn()
        state = observer.state(60.0, "")
        assert state.slices is not None
        assert state.slices.by == "model", "the first entry, unless asked for another"
        assert [row.value for row in state.slices.rows] == ["chat"]
        assert state.traffic.outcomes == {"ok": 1}
        assert state.traffic.running_count == 1
        assert [(host.name, host.running_count, host.request_count) for host in state.hosts] == [("gpu-0", 1, 1)]
        assert [source.state for source in state.sources] == ["alive"]
        assert state.slowest[0].longest_stage == "decode"
        assert {stage.name: stage.n for stage in state.stages}["host_first_token"] == 1

    def test_long_windows_are_not_read_anew_each_time_but_what_is_present_is(
        self, turning: Turning, router: ToldRouter, directory: Path
    ) -> None:
        observer = self.make(turning, directory)
        assert observer.state(600.0, "").traffic.running_count == 0
        running = router.ask(time.monotonic_ns())
        running.dispatch(time.monotonic_ns())
        running.show(0)
        answer(router)
        turning.turn()
        kept, fresh = observer.state(600.0, ""), observer.state(60.0, "")
        assert (kept.traffic.request_count, fresh.traffic.request_count) == (0, 1)
        assert kept.traffic.running_count == fresh.traffic.running_count == 1
        assert kept.observer.row_count == 1

    def test_a_turn_that_fails_is_told_and_the_next_one_goes_on(
        self, turning: Turning, router: ToldRouter, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        observer = self.make(turning, directory)

        def fail(*_: object) -> None:
            raise ValueError("odd record")

        assert observer._timed(fail) >= 0
        assert self.logged == ["a turn failed"]
        assert observer.health().status == "degraded"
        assert observer.state(60.0, "").observer.fault_count == 1
        answer(router)
        monkeypatch.setattr(time, "monotonic_ns", lambda now_ns=turning.now_ns + LOOK_EVERY_NS: now_ns)
        observer._timed(turning.pipeline.turn)
        assert observer.state(60.0, "").traffic.request_count == 1

    def test_a_full_ring_is_read_on_without_a_pause(
        self, turning: Turning, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        observer = self.make(turning, directory)
        assert 0 < observer._timed(lambda *_: None) <= process.TURN_S
        monkeypatch.setattr(Pipeline, "is_behind", True)
        assert observer._timed(lambda *_: None) == 0


def test_the_document_shows_a_configuration_that_works() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    parsed = config.parse(f"version = 1\n{example}")
    assert parsed.hosts[0].cost_per_hour == 2.49
    assert parsed.observer.slices.tags[-1] == "feature_name,prompt_version"
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCUMENT.parent / path).exists(), path
