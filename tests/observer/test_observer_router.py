"""The follower behind a real router: what it makes of every way in which a request can go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.observer.follow import Follower
from router.observer.rows import RequestRow
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import End, ScriptedHost, chunk
from tests.support.waiting import shared_memory_directory, wait_until

GAP_S = 0.02
PACED: list[sh.Step] = [
    sh.stream_head(),
    chunk(sh.ROLE),
    *[step for i in range(5) for step in (GAP_S, chunk(sh.token(f"t{i}")))],
    chunk(sh.FINISH),
    chunk(sh.USAGE),
    chunk(sh.event(b"[DONE]")),
    b"0\r\n\r\n",
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[ScriptedHost, ScriptedHost]]:
    with ScriptedHost("bad", models=("m", "folded")) as bad, ScriptedHost("good", models=("m", "folded")) as good:
        yield bad, good


@pytest.fixture(scope="module")
def stage(hosts: tuple[ScriptedHost, ScriptedHost]) -> Iterator[Stage]:
    toml = f'{QUIET}{SHORT_TICK}[models.folded]\nfold = "always"\n' + "".join(host_entry(host) for host in hosts)
    with shared_memory_directory() as directory, Stage(directory, hosts, toml) as one:
        yield one


@pytest.fixture(scope="module")
def follower(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follower]:
    one = Follower(stage.router.run_dir, tmp_path_factory.mktemp("state"))
    yield one
    one.close()


class Seen:
    """What the follower hands out for the requests of one test."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self.rows: list[RequestRow] = []
        self.gaps: dict[int, list[int]] = {}

    def wait(self, count: int) -> list[RequestRow]:
        """Return the rows as soon as there are so many."""
        wait_until(lambda: self._look() >= count, f"{count} rows")
        assert len(self.rows) == count
        return self.rows

    def _look(self) -> int:
        batch = self._follower.poll(time.monotonic_ns())
        assert not batch.losses
        for index, gap_ns in zip(batch.pace.row.tolist(), batch.pace.gap_ns.tolist(), strict=True):
            self.gaps.setdefault(batch.rows[index].request_seq, []).append(gap_ns)
        self.rows += batch.rows
        self._follower.commit(batch.rows)
        return len(self.rows)


@pytest.fixture
def seen(stage: Stage, follower: Follower) -> Iterator[Seen]:
    follower.poll(time.monotonic_ns())  # what settling the test before has asked
    one = Seen(follower)
    yield one
    for row, record in zip(one.rows, stage.finished(len(one.rows)), strict=True):
        assert row.request_seq == record["request_seq"]
        assert not row.lossy
        assert (row.ttft_ns, row.e2e_ns, row.tpot_ns) == (record["ttft_ns"], record["e2e_ns"], record["tpot_ns"])
        assert {name: ns or 0 for name, ns in row.stages_ns().items()} == record["stages_ns"]
        assert (row.tags["model_name"], row.request_id) == (record["model"], record["request_id"])
    stage.settle()


def test_every_gap_of_a_stream_comes_and_they_make_up_its_decode_time(
    stage: Stage, hosts: tuple[ScriptedHost, ScriptedHost], seen: Seen
) -> None:
    for host in hosts:
        host.script(*PACED)
    clients = [stage.client() for _ in hosts]
    for client in clients:
        client.chat(more="x-ringrouter-tag-feature-name: search\r\nx-ringrouter-tag-user-id: u-7\r\n")
    for client in clients:
        assert client.answer().ended
    for row in seen.wait(2):
        gaps = seen.gaps[row.request_seq]
        assert (len(gaps), sum(gaps)) == (4, row.decode_ns)
        assert row.icl_p50_ns == sorted(gaps)[1]
        assert sum(gaps) >= len(gaps) * GAP_S * 1e9 * 0.5, "the host has paused before each"
        assert (row.n_in, row.n_out, row.n_out_estimated) == (7, 3, False)
        assert (row.tags["feature_name"], row.tags["user_id"]) == ("search", "u-7")
        assert row.attempts[0].end_mono_ns >= row.recv_mono_ns + (row.ttft_ns or 0)


@pytest.mark.parametrize("model", ["m", "folded"])
def test_a_whole_answer(stage: Stage, seen: Seen, model: str) -> None:
    client = stage.client()
    client.chat(model=model, stream=False)
    assert client.answer().status == 200
    (row,) = seen.wait(1)
    assert (row.stream, row.folded, row.outcome) == (False, model == "folded", "ok")
    assert row.ttft_ns == row.ttfc_ns == row.e2e_ns
    assert [each.outcome for each in row.attempts] == ["ok"]


def test_a_retry_is_two_attempts(stage: Stage, hosts: tuple[ScriptedHost, ScriptedHost], seen: Seen) -> None:
    bad, _ = hosts
    for _ in range(4):  # routing takes turns
        bad.script(chunk(b"not HTTP"), End.CLOSE)
    for _ in range(4):
        client = stage.client()
        client.chat()
        assert client.answer().ended
    bad.forget_scripts()
    rows = seen.wait(4)
    retried = [row for row in rows if row.retries]
    assert retried, "routing took the bad host first at least once"
    for row in retried:
        assert [(each.host, each.outcome) for each in row.attempts] == [("bad", "failed"), ("good", "ok")]
        assert row.attempts[0].end_mono_ns <= row.attempts[1].start_mono_ns
        assert row.retry_ns is not None


def test_a_client_that_leaves(stage: Stage, hosts: tuple[ScriptedHost, ScriptedHost], seen: Seen) -> None:
    for host in hosts:
        host.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), End.HANG)
    for _ in hosts:
        client = stage.client()
        client.chat(max_tokens=50)
        client.wait_for(b"a")
        client.close()
    for row in seen.wait(2):
        assert (row.outcome, row.tokens_saved) == ("client_gone", 49)
        assert row.cancel_latency_ns is not None
        assert row.cancel_latency_ns < stage.allowed_ns(100 * MS)
        (only,) = row.attempts
        assert (only.outcome, only.may_drain) == ("cancelled", True)
        assert row.left_ns == only.end_mono_ns - row.recv_mono_ns


def test_a_router_that_is_killed_leaves_what_ran_as_aborted(tmp_path: Path) -> None:
    with shared_memory_directory() as directory, ScriptedHost("alpha") as host:
        host.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), GAP_S, chunk(sh.token("b")), End.HANG)
        stage = Stage(directory, [host], QUIET + host_entry(host))
        with stage:
            follower = Follower(stage.router.run_dir, tmp_path)
            seen = Seen(follower)
            client = stage.client()
            client.chat(more="x-ringrouter-tag-feature-name: search\r\n")
            client.wait_for(b'"b"')
            # The router writes to its client first and to its records then.
            wait_until(lambda: [each["kind"] for each in stage.token_records()].count("text") == 2, "two records")
            assert follower.poll(time.monotonic_ns()).rows == []
            stage.router.kill()
            (row,) = seen.wait(1)
            assert (row.outcome, row.error, row.host, row.n_out) == ("aborted", "router_died", "alpha", 2)
            assert row.tags["feature_name"] == "search"
            assert len(seen.gaps[row.request_seq]) == 1
            stage.router.start()
            client.close()
            client = stage.client()
            client.chat()
            assert client.answer().ended
            seen.wait(2)
            assert [each.outcome for each in seen.rows] == ["aborted", "ok"]
            assert seen.rows[1].generation > seen.rows[0].generation
            follower.close()
            client.close()
