"""The observer beside a real router under real load: its numbers are the client's, no kill costs or doubles a row."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.build import compiler
from bench.config import MODEL
from bench.processes import MockHosts, run_load
from router.observer import client
from router.observer.client import ObserverError
from router.observer.query import JournalReader
from router.observer.segments import JOURNAL
from router.observer.state import State
from tests.support.processes import Program, RouterProcess, host_toml
from tests.support.waiting import free_port, shared_memory_directory, wait_until

pytestmark = pytest.mark.skipif(compiler() is None, reason="host and load are written in C and there is no compiler")

SETTLED_S = 60.0
TRIES = 3
"""Of what a busy machine may spoil."""


class Observed:
    """A router in front of a mock host, with an observer that can be killed and started again."""

    def __init__(self, directory: Path, host: MockHosts, *, rings: str = "") -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        self.data_dir = directory / "data"
        toml = f'[observer]\nhttp = "{self.address}"\ndata_dir = "{self.data_dir}"\n{rings}\n' + host_toml(
            "alpha", host.urls[0], kind="openai", models=[MODEL], slots=256, cost_per_hour=3.6
        )
        self.router = RouterProcess(directory, toml)
        self.target = f"127.0.0.1:{self.router.port}"
        command = [sys.executable, "-m", "router", "observe", "--config", str(self.router.config_path)]
        self.observer = Program("observer", command, directory / "observer.log")

    def state(self, *, window_s: float = 60.0, by: str = "") -> State:
        return client.state(self.address, window_s=window_s, by=by)

    def start_observer(self) -> None:
        self.observer.start()

    def wait_for(self, predicate: Callable[[State], bool], what: str) -> State:
        """Wait until the observer's state is as wanted."""

        def look() -> State | None:
            try:
                state = self.state()
            except ObserverError:
                self.observer.check_running()
                return None
            return state if predicate(state) else None

        found = wait_until(look, what, SETTLED_S)
        assert found is not None
        return found

    def wait_found(self) -> None:
        """Wait until the observer has found the router."""
        self.wait_for(lambda state: bool(state.sources), "the router to be found")

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Ask the journal."""
        reader = JournalReader(self.data_dir / JOURNAL)
        try:
            answer = reader.ask(sql)
            return [dict(zip(answer.columns, values, strict=True)) for values in answer]
        finally:
            reader.close()

    def run(self, *arguments: str) -> list[str]:
        """Run a command of this program and return the lines of its output."""
        command = [sys.executable, "-m", "router", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def wait_written(self, count: int) -> None:
        """Wait until the journal has so many rows."""
        wait_until(lambda: self.rows("select count(*) as n from requests")[0]["n"] >= count, "the rows", SETTLED_S)


@pytest.fixture
def host() -> Iterator[MockHosts]:
    with MockHosts(["127.0.0.1:0"]) as hosts:
        yield hosts


@pytest.fixture
def observed(host: MockHosts) -> Iterator[Observed]:
    with shared_memory_directory() as directory:
        setting = Observed(directory, host)
        with setting.router, setting.observer:
            setting.wait_found()
            yield setting


def load(observed: Observed, arguments: str) -> dict[str, Any]:
    """Put a load on the router; every answer must be right."""
    run = run_load(observed.target, arguments)
    assert not any(run["errors"].values()), run["errors"]
    assert run["ok"] == run["started"]
    return run


def difference(observed: Observed, state: State, run: dict[str, Any]) -> str:
    """Say where the observer's figures are further from the client's than 1 % + 1 ms; empty when nowhere.

    A client that a busy machine wakes late sees everything later than it was: nine tenths of its figures may be as much
    later as the latest hundredth of its tokens came.
    """
    late_ns = 1e3 * run["tok"]["p99"]
    seen = {metric.name: metric for metric in state.metrics}
    lines = []
    for name in ("ttft", "tpot", "e2e"):
        of_client, of_observer = run[name], seen[name]
        assert of_observer.n == of_client["n"] == run["ok"]
        (p90,) = observed.rows(f"select quantile_cont({name}_ns, 0.9) as ns from requests")
        pairs = {"mean": of_observer.mean, "p50": of_observer.p50, "p90": p90["ns"]}
        for figure, observer_ns in pairs.items():
            client_ns = 1e3 * of_client[figure]
            allowed_ns = 0.01 * client_ns + 1e6
            later_ns = late_ns if figure == "p90" else 0.0
            if not -allowed_ns <= client_ns - observer_ns <= allowed_ns + later_ns:
                lines.append(f"{name} {figure}: client {client_ns / 1e6:.2f} ms, observer {observer_ns / 1e6:.2f} ms")
    return "; ".join(lines)


def test_percentiles_are_those_that_the_client_measured(host: MockHosts) -> None:
    for attempt in range(TRIES):
        with shared_memory_directory() as directory:
            setting = Observed(directory, host)
            with setting.router, setting.observer:
                setting.wait_found()
                run = load(setting, "mode=stream conc=8 n=40 ttft=30000 itl=5000 dur=1.5 warm=0")
                state = setting.wait_for(lambda state, run=run: state.observer.row_count == run["ok"], "all rows")
                setting.wait_written(run["ok"])
                found = difference(setting, state, run)
        if not found or attempt == TRIES - 1:
            break
    assert not found
    icl = next(metric for metric in state.metrics if metric.name == "icl")
    assert icl.n == run["gap"]["n"], "every gap between two tokens is counted, once"
    assert state.observer.event_count > run["tokens_all"]
    assert state.traffic.outcomes == {"ok": run["ok"]}


def test_who_is_slow_where_and_at_what_cost_is_answered_from_the_terminal(observed: Observed) -> None:
    total = 0
    for feature, version, first_us in (("search", "v1", 5_000), ("search", "v2", 60_000), ("chat", "v1", 5_000)):
        tags = [f"x-ringrouter-tag-feature-name:{feature}", f"x-ringrouter-tag-prompt-version:{version}"]
        options = " ".join(f"hdr={tag}" for tag in tags)
        total += load(observed, f"mode=stream conc=4 maxreq=20 n=8 ttft={first_us} itl=1000 dur=5 warm=0 {options}")[
            "ok"
        ]
    observed.wait_written(total)
    state = observed.state(by="feature_name,prompt_version")
    assert state.slices is not None
    by_value = {row.value: row for row in state.slices.rows}
    slow, fast = by_value["search, v2"], by_value["search, v1"]
    assert (slow.request_count, fast.request_count) == (20, 20)
    assert slow.ttft_p50_ns is not None
    assert fast.ttft_p50_ns is not None
    assert slow.ttft_p50_ns > 50e6 > fast.ttft_p50_ns, "since which prompt version"
    assert slow.longest_stage == "host_first_byte", "in which stage"
    assert slow.cost_per_response is not None
    assert fast.cost_per_response is not None
    assert slow.cost_per_response > 2 * fast.cost_per_response, "at what cost"
    shown = "\n".join(observed.run("top", "--once", "--url", observed.address, "--by", "feature_name"))
    assert "search" in shown
    assert "chat" in shown
    place = ("--data-dir", str(observed.data_dir))
    report = "\n".join(observed.run("report", "--by", "feature_name,prompt_version", *place))
    assert "search" in report
    assert "v2" in report
    sql = "select feature_name, count(*) as n from requests group by 1 order by 1"
    assert observed.run("query", sql, "--csv", *place) == ["feature_name,n", "chat,20", "search,40"]


def test_kills_at_any_moment_double_no_row_and_lose_none(observed: Observed) -> None:
    rng = random.Random(6)
    enough = threading.Event()
    runs: list[dict[str, Any]] = []

    def put_load() -> None:
        while not enough.is_set():
            runs.append(run_load(observed.target, "mode=stream conc=16 n=20 ttft=10000 itl=5000 dur=0.5 warm=0"))

    thread = threading.Thread(target=put_load)
    thread.start()
    try:
        for _ in range(4):
            time.sleep(rng.uniform(0.2, 1.0))  # the moment is to be any
            observed.observer.kill()
            observed.start_observer()
    finally:
        enough.set()
        thread.join()
    for run in runs:
        assert run["ok"] == run["started"]
        assert not any(run["errors"].values()), "no client noticed"
    ok_count = sum(run["ok"] for run in runs)
    observed.wait_written(ok_count)
    (counts,) = observed.rows(
        "select count(*) as n, count(distinct (instance, generation, request_seq)) as different, "
        "sum(n_out) as tokens, sum(case when lossy then 1 else 0 end) as lossy, "
        "count(*) filter (cost_missing = 'gap') as of_unknown_cost from requests"
    )
    assert counts["n"] == counts["different"] == ok_count
    assert counts["of_unknown_cost"] == 0, "nothing was lost, so each share of the hosts' time is known"
    assert counts["tokens"] == sum(run["tokens_all"] for run in runs)
    assert counts["lossy"] == 0


def test_what_was_overwritten_meanwhile_is_counted_exactly(host: MockHosts) -> None:
    with shared_memory_directory() as directory:
        observed = Observed(directory, host, rings="[rings]\ndone = 64\ntokens = 1024")
        with observed.router, observed.observer:
            observed.wait_found()
            first = load(observed, "mode=stream conc=2 maxreq=10 n=4 itl=1000 dur=5 warm=0")
            observed.wait_written(first["ok"])
            observed.observer.kill()
            second = load(observed, "mode=stream conc=8 maxreq=300 n=8 itl=0 dur=5 warm=0")
            observed.start_observer()
            total = first["ok"] + second["ok"]

            def is_read(state: State) -> bool:
                health = state.observer
                return first["ok"] + health.row_count + health.lost_request_count >= total

            state = observed.wait_for(is_read, "all to be read or missed")
            health = state.observer
            assert first["ok"] + health.row_count + health.lost_request_count == total
            assert health.row_count <= 64
            assert health.lost_event_count > 0
            observed.wait_written(first["ok"] + health.row_count)
            lossless = observed.rows("select count(*) as n from requests where not lossy and icl_count = n_out - 1")
            lossy = observed.rows("select count(*) as n from requests where lossy")
            assert lossless[0]["n"] + lossy[0]["n"] == first["ok"] + health.row_count
            assert lossless[0]["n"] > first["ok"], "only what the loss touched is marked"
            assert "overwritten" in client.get(observed.address, "/healthz").decode()


def test_what_ran_when_a_router_was_killed_is_counted_as_aborted_and_the_next_one_is_followed(
    observed: Observed,
) -> None:
    thread = threading.Thread(
        target=run_load, args=(observed.target, "mode=stream conc=3 maxreq=3 n=200 itl=20000 dur=1 warm=0 drain=0")
    )
    thread.start()
    observed.wait_for(lambda state: state.traffic.running_count == 3, "the streams to run")
    observed.router.kill()
    thread.join()
    observed.router.start()
    run = load(observed, "mode=stream conc=2 maxreq=4 n=4 itl=1000 dur=5 warm=0")
    state = observed.wait_for(lambda state: state.observer.row_count >= run["ok"] + 3, "all rows")
    assert state.traffic.outcomes == {"ok": run["ok"], "aborted": 3}
    assert [source.state for source in state.sources] == ["alive"]


@pytest.fixture(scope="module")
def lasting() -> Iterator[Observed]:
    """A router and an observer for tests that leave them as they are."""
    with MockHosts(["127.0.0.1:0"]) as hosts, shared_memory_directory() as directory:
        setting = Observed(directory, hosts)
        with setting.router, setting.observer:
            setting.wait_found()
            yield setting


class TestStart:
    def observe(self, lasting: Observed, *options: str) -> str:
        command = [*lasting.observer.command, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        return line

    def test_a_second_observer_in_the_same_directory_is_refused(self, lasting: Observed) -> None:
        assert "another observer uses" in self.observe(lasting, "--http", f"127.0.0.1:{free_port()}")

    def test_an_address_in_use_is_named(self, lasting: Observed) -> None:
        other = lasting.directory / "other"
        assert f"observer.http = {lasting.address}" in self.observe(lasting, "--data-dir", str(other))

    def test_a_directory_that_cannot_be_made_is_named(self, lasting: Observed) -> None:
        file = lasting.directory / "file"
        file.write_text("")
        assert str(file) in self.observe(lasting, "--data-dir", str(file / "below"))

    def test_it_may_be_up_before_any_router(self, host: MockHosts) -> None:
        with shared_memory_directory() as directory:
            observed = Observed(directory, host)
            observed.router.run_dir.mkdir(parents=True)
            observed.router.config_path.write_text(observed.router._toml)
            with observed.observer:
                state = observed.wait_for(lambda _: True, "the observer")
                assert state.sources == []
                with observed.router:
                    observed.wait_for(lambda state: len(state.sources) == 1, "the router to be found")


def test_a_stranger_without_the_extra_is_told_what_to_install(tmp_path: Path) -> None:
    """`observe` in an environment where a package of the extra is missing."""
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('no numpy', name='numpy')")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from router.cli import main; sys.exit(main(['observe']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert done.stderr == "ringrouter: observe needs numpy: pip install 'ringrouter[observer]'\n"


def test_prometheus_reads_what_was_counted_and_a_stop_writes_what_was_read(observed: Observed) -> None:
    run = load(observed, "mode=stream conc=4 maxreq=20 n=4 itl=1000 dur=5 warm=0")
    observed.wait_for(lambda state: state.observer.row_count == run["ok"], "all rows")
    of_all = {sample.name: sample.value for sample in samples(observed) if sample.labels.get("slice", "all") == "all"}
    assert of_all["ringrouter_requests_total"] == run["ok"]
    assert of_all["ringrouter_e2e_seconds_count"] == run["ok"]
    assert of_all["ringrouter_lost_requests_total"] == 0

    def host_seconds(use: str) -> float:
        wanted = {"host": "alpha", "use": use}
        found = (each for each in samples(observed) if each.name == "ringrouter_host_seconds_total")
        return next(each.value for each in found if each.labels == wanted)

    wait_until(lambda: host_seconds("charged") > 0 and host_seconds("idle") > 0, "the host's time to be settled")
    answered = load(observed, "mode=stream conc=4 maxreq=20 n=4 itl=1000 dur=5 warm=0")["ok"]
    assert observed.observer.stop() == 0
    (counts,) = observed.rows("select count(*) as n, count(cost_amount) as costs from requests")
    assert counts["n"] == run["ok"] + answered
    assert counts["costs"] >= answered, "their costs were waited for"


def samples(observed: Observed) -> list[Sample]:
    """Return what Prometheus would read."""
    text = client.get(observed.address, "/metrics").decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
