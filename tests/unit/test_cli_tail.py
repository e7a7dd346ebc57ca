"""``ringrouter tail``: every finished request once, what was lost, and on through restarts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_router import FakeRouter

from ringbuffer import Missing
from router import cli
from router.cli import tail
from router.telemetry import records as rec


@pytest.fixture
def fake(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    yield fake
    fake.die()


class Idle(Exception):  # noqa: N818 - a signal of the test, not an error
    """The follower has nothing to do."""


def stop(_: float) -> None:
    raise Idle


def upto_idle(items: Iterator[tail.Item]) -> list[str]:
    """Return request ids and notes until the follower would wait."""
    seen = []
    try:
        for item in items:
            text = item if isinstance(item, str) else item["request_id"]
            seen.append(text)
    except Idle:
        return seen
    raise AssertionError("a follower never ends by itself")


class TestText:
    def test_a_request_is_one_line(self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
        fake.finish("r-1")
        fake.finish_late("r-2")
        assert cli.main(["tail", "--no-follow", "--run-dir", str(run_dir)]) == 0
        head, ok, late = capsys.readouterr().out.splitlines()
        assert head.split() == ["time", "model", "host", "outcome", "TTFT", "TPOT", "tokens", "E2E", "request", "id"]
        assert ok.split()[1:] == ["chat", "gpu-0", "ok", "101", "ms", "10.0", "ms", "21", "301", "ms", "r-1"]
        assert "timeout: first_token_timeout" in late
        assert late.endswith("r-2")

    def test_only_the_last_ones_are_shown(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(100):
            fake.finish(f"r-{number}")
        cli.main(["tail", "--no-follow", "-n", "2", "--run-dir", str(run_dir)])
        assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == ["r-98", "r-99"]

    def test_more_than_the_ring_holds_is_no_loss(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(100):
            fake.finish(f"r-{number}")
        cli.main(["tail", "--no-follow", "-n", "1000", "--run-dir", str(run_dir)])
        out = capsys.readouterr().out
        assert "overwritten" not in out
        assert len(out.splitlines()) == 1 + 64


def test_json_is_one_object_a_line_with_its_schema(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.finish("r-1")
    cli.main(["tail", "--no-follow", "--json", "--run-dir", str(run_dir)])
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["schema"] == "ringrouter.tail/1"
    assert (record["request_id"], record["ttft_ns"], record["host"]) == ("r-1", 101_000_000, "gpu-0")


def test_without_a_ring_the_exit_code_is_1(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tail", "--run-dir", str(run_dir)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no router to look at" in said.err


class TestWhere:
    @pytest.fixture
    def tagged(self, fake: FakeRouter) -> FakeRouter:
        """Requests of two features, one of them with a tag of the user's own, the last without any."""
        fake.add_name(rec.TAGS.index("feature_name"), 1, "search")
        fake.add_name(rec.TAGS.index("feature_name"), 2, "mail")
        fake.add_name(rec.NAME_OWN_TAG, 1, "team")
        fake.add_name(rec.OWN_TAG_FIRST, 1, "red")
        fake.finish("s-1", tag_ids={rec.TAGS.index("feature_name"): 1}, user_id="ann")
        fake.finish("m-1", tag_ids={rec.TAGS.index("feature_name"): 2, rec.OWN_TAG_FIRST: 1})
        fake.finish("s-2", tag_ids={rec.TAGS.index("feature_name"): 1})
        fake.finish_late("late")
        return fake

    def shown(self, run_dir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
        assert cli.main(["tail", "--no-follow", "--json", "--run-dir", str(run_dir), *arguments]) == 0
        return [json.loads(line)["request_id"] for line in capsys.readouterr().out.splitlines()]

    @pytest.mark.parametrize(
        ("where", "shown"),
        [
            (["feature_name=search"], ["s-1", "s-2"]),
            (["feature_name=search", "user_id=ann"], ["s-1"]),
            (["team=red"], ["m-1"]),
            (["feature_name="], ["late"]),
            (["outcome=timeout"], ["late"]),
            (["error=first_token_timeout"], ["late"]),
            (["error="], ["s-1", "m-1", "s-2"]),
            (["error=none", "team="], ["s-1", "s-2"]),
            (["request_id=s-2"], ["s-2"]),
            (["model=chat", "host=gpu-0", "endpoint=chat", "outcome=ok"], ["s-1", "m-1", "s-2"]),
            (["feature_name=sea"], []),
        ],
    )
    def test_only_requests_that_have_it_all_are_shown(
        self,
        run_dir: Path,
        tagged: FakeRouter,
        capsys: pytest.CaptureFixture[str],
        where: list[str],
        shown: list[str],
    ) -> None:
        options = [option for each in where for option in ("--where", each)]
        assert self.shown(run_dir, capsys, *options) == shown

    def test_the_last_ones_are_the_last_that_match(
        self, run_dir: Path, tagged: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(20):
            tagged.finish(f"other-{number}")
        assert self.shown(run_dir, capsys, "-n", "1", "--where", "feature_name=search") == ["s-2"]
        assert self.shown(run_dir, capsys, "-n", "0", "--where", "feature_name=search") == []

    def test_a_name_that_is_none_is_answered_with_those_there_are(
        self, run_dir: Path, tagged: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["tail", "--run-dir", str(run_dir), "--where", "colour=red"]) == 2
        error = capsys.readouterr().err
        assert "--where colour: expected one of batch_id, " in error
        assert "team" in error

    def test_what_comes_later_is_chosen_too(self, run_dir: Path, tagged: FakeRouter) -> None:
        turns = iter([lambda: tagged.finish("x"), lambda: tagged.finish("s-3", user_id="ann")])

        def turn(_: float) -> None:
            next(turns, lambda: stop(0))()

        items = tail.follow(run_dir / "main", 10, turn, [("user_id", "ann")])
        assert upto_idle(items) == ["s-1", "s-3"]


class TestFollow:
    def test_requests_come_as_they_end(self, run_dir: Path, fake: FakeRouter) -> None:
        turns = iter([lambda: fake.finish("b"), lambda: fake.finish("c")])

        def turn(_: float) -> None:
            next(turns, lambda: stop(0))()

        fake.finish("a")
        assert upto_idle(tail.follow(run_dir / "main", 10, turn)) == ["a", "b", "c"]

    def test_losses_are_said(self, run_dir: Path, fake: FakeRouter) -> None:
        def too_many(_: float) -> None:
            if fake.done.published > 1:
                raise Idle
            for number in range(76):
                fake.finish(f"r-{number}")

        fake.finish("a")
        seen = upto_idle(tail.follow(run_dir / "main", 10, too_many))
        notes = [text for text in seen if "overwritten" in text]
        assert len(seen) - len(notes) + int(notes[0].split()[0]) == 77, "every request is shown or said to be lost"
        assert "r-75" in seen[-2:], "a note of loss may stand last"

    def test_one_loss_is_not_several(self) -> None:
        assert tail._loss(1) == "1 request was overwritten before it was read"
        assert tail._loss(1200) == "1,200 requests were overwritten before they were read"

    def test_it_goes_on_in_the_generation_of_a_restarted_router(self, run_dir: Path) -> None:
        first = FakeRouter(run_dir / "main")
        first.finish("a")
        routers = []

        def restart(_: float) -> None:
            if routers:
                raise Idle
            first.finish("b")
            first.die()
            routers.append(FakeRouter(run_dir / "main"))
            routers[0].finish("c")

        seen = upto_idle(tail.follow(run_dir / "main", 10, restart))
        routers[0].die()
        assert [seen[0], seen[1], seen[3]] == ["a", "b", "c"], "what the old router wrote last is read first"
        assert seen[2].startswith("the router was restarted")

    def test_two_restarts_between_two_looks_hide_nothing(self, run_dir: Path) -> None:
        routers = [FakeRouter(run_dir / "main")]

        def restart_twice(_: float) -> None:
            if len(routers) == 3:
                raise Idle
            for request_id in ("b", "c"):
                routers[-1].die()
                routers.append(FakeRouter(run_dir / "main"))
                routers[-1].finish(request_id)

        seen = upto_idle(tail.follow(run_dir / "main", 10, restart_twice))
        routers[-1].die()
        assert [text for text in seen if " " not in text] == ["b", "c"]

    def test_its_position_can_be_seen_while_it_reads_and_not_after(self, run_dir: Path, fake: FakeRouter) -> None:
        place = fake.directory / "readers" / f"tail-{os.getpid()}"
        items = tail.follow(run_dir / "main", 10, stop)
        fake.finish("a")
        next(items)
        assert place.exists()
        assert upto_idle(items) == []
        assert not place.exists()

    def test_without_a_generation_there_is_nothing_to_follow(self, run_dir: Path) -> None:
        with pytest.raises(Missing):
            next(tail.follow(run_dir / "main", 10, stop))
