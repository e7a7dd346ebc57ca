"""Peers are started from their configurations, paused, compared inside rounds, and judged."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import machine, peers, peers_must, peers_process
from bench.config import UNBOUNDED_SLOTS
from bench.harness import HOST_COUNT, Peer, Plan, measure
from bench.modes import MODES
from bench.peers_known import KNOWN, Known, Package, Place, install, of_command
from bench.peers_process import PeerProcess, open_peers
from bench.peers_ratios import Quantity, Spread, best, by_round, ratio
from bench.processes import MockHosts, RouterSetup, run_load
from tests.support.waiting import wait_until

TTFT = Quantity("TTFT", lambda run: run["value"])
RATE = Quantity("rate", lambda run: run["value"], is_added=False, is_more_better=True)
SHORT = "mode=stream conc=4 n=4 ttft=2000 itl=2000 dur=0.3 warm=0.1"


def _run(peer: str, index: int, value: float | None, *, mode: str = "low", steal: float = 0.0) -> dict[str, Any]:
    return {"peer": peer, "mode": mode, "round": index, "value": value, "steal": steal, "stall_ms": 0.0}


def _place(tmp_path: Path, setup: RouterSetup = RouterSetup()) -> Place:  # noqa: B008 - a tuple
    return Place(8200, 8201, tmp_path, ("127.0.0.1:8101", "127.0.0.1:8102"), setup)


@pytest.fixture
def plan() -> Plan:
    router_core, load_core = machine.two_cores()
    return Plan([dataclasses.replace(MODES["low"], load=SHORT)], 1, 0, router_core, load_core, keep_going=True)


@pytest.fixture(autouse=True)
def _short_warm_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_process, "WARM_UP", SHORT)
    monkeypatch.setattr(peers_process, "WARM_ANSWERS", "mode=closed maxreq=1 dur=1 warm=0")


@pytest.fixture
def two_hosts(host: MockHosts) -> Iterator[MockHosts]:
    with MockHosts(["127.0.0.1:0"] * HOST_COUNT) as hosts:
        yield hosts


# ------------------------------------------------------------------------------------------ comparisons in rounds


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds_each_less_its_own_direct() -> None:
    runs = [_run("direct", index, base) for index, base in enumerate((10, 20, 30))]
    runs += [_run("ours", index, value) for index, value in enumerate((20, 40, 130))]
    runs += [_run("other", index, value) for index, value in enumerate((30, 60, 80))]
    assert by_round(runs, "low", "ours", TTFT) == {0: 10, 1: 20, 2: 100}
    assert ratio(runs, "low", "ours", "other", TTFT) == Spread(0.5, 0.5, 2.0, 3)


def test_rounds_with_stolen_time_on_any_side_do_not_count() -> None:
    runs = [_run(peer, index, 10.0 * (peer != "direct")) for index in range(4) for peer in ("direct", "ours", "other")]
    runs[0]["steal"] = 2.0
    runs[4]["steal"] = 5.0
    runs[8]["stall_ms"] = 51.0
    found = ratio(runs, "low", "ours", "other", TTFT)
    assert found is not None
    assert found.rounds == 1


def test_the_best_peer_has_the_smallest_time_or_the_largest_rate() -> None:
    runs = [_run(peer, 0, value) for peer, value in (("direct", 1), ("a", 5), ("b", 3), ("c", None))]
    assert best(runs, "low", ("a", "b", "c", "absent"), TTFT) == "b"
    assert best(runs, "low", ("a", "b", "c"), RATE) == "a"
    assert best(runs, "low", ("absent",), TTFT) is None


# ------------------------------------------------------------------------------------------------ what must be reached


def _measured(peer: str, mode: str, us: float, *, index: int = 0, **further: Any) -> dict[str, Any]:
    times = {name: {"n": 10, "p50": us, "p99": 2 * us} for name in ("ttft_over", "ttft", "tok", "over")}
    plain = {
        "errors": {"http": 0},
        "unfinished": 0,
        "retried": 0,
        "tokens_all": 1000,
        "ok": 1000,
        "rss": 1_000_000,
        "tok_s": 1e6 / us,
        "req_s": 1e6 / us,
        "cpu_s": us * 1e-3,
        "steal": 0.0,
        "stall_ms": 0.0,
        "host": {"addresses": [{"max_waiting": 0}]},
    }
    return times | plain | {"peer": peer, "mode": mode, "round": index} | further


def _campaign(ours_us: float, **further: Any) -> list[dict[str, Any]]:
    values = {"direct": 10.0, "relay-c": 50.0, "nginx": 100.0, "haproxy": 120.0, "vllm-router": 300.0, "smg": 400.0}
    runs = [
        _measured(peer, mode, us, index=index)
        for mode in peers.DEFAULT_MODES
        for peer, us in values.items()
        for index in range(7)
    ]
    return runs + [
        _measured("ringrouter", mode, ours_us, index=index, **further)
        for mode in peers.DEFAULT_MODES
        for index in range(7)
    ]


FOOTPRINT = {"ready_ms": [300.0], "at_rest_mb": [20.0], "idle_stream_kb": [9.0], "system_calls_per_token": [3.0]}


def test_a_router_that_is_fast_enough_reaches_everything_but_a_wait_no_worse_than_direct() -> None:
    found = peers_must.findings(_campaign(90.0), FOOTPRINT)
    missed = [finding.criterion for finding in found if not finding.is_reached]
    assert missed == ["whole TTFT p99 / direct"], "90 µs against 10 is worse there, and nothing else is"
    assert all(finding.value is not None for finding in found)
    assert "yes, and the aim" in peers_must.table(found)


@pytest.mark.parametrize(
    ("ours_us", "footprint", "further", "criterion"),
    [
        (200.0, FOOTPRINT, {}, "added TTFT p50 / best LLM router (vllm-router)"),
        (160.0, FOOTPRINT, {}, "added TTFT p50 / better of nginx, haproxy (nginx)"),
        (160.0, FOOTPRINT, {}, "added token p50 / haproxy"),
        (140.0, FOOTPRINT, {}, "CPU/token / nginx"),
        (280.0, FOOTPRINT, {}, "CPU/token / best LLM router (vllm-router)"),
        (160.0, FOOTPRINT, {}, "answers/s / best LLM router (vllm-router)"),
        (1200.0, FOOTPRINT, {}, "added TTFT p50, µs"),
        (90.0, FOOTPRINT, {"errors": {"close": 1}}, "errors"),
        (90.0, FOOTPRINT, {"retried": 1}, "requests that clients sent again"),
        (90.0, FOOTPRINT, {"host": {"addresses": [{"max_waiting": 1}]}}, "requests that waited inside a host"),
        (90.0, FOOTPRINT | {"ready_ms": [401.0]}, {}, "start to ready, ms"),
        (90.0, FOOTPRINT | {"at_rest_mb": [46.0]}, {}, "anonymous memory at rest, MB"),
        (90.0, FOOTPRINT | {"idle_stream_kb": [31.0]}, {}, "anonymous memory of an idle stream, KB"),
        (90.0, FOOTPRINT | {"system_calls_per_token": [3.3]}, {}, "system calls per token (counted by the gate)"),
    ],
)
def test_every_limit_can_be_missed(
    ours_us: float, footprint: dict[str, list[float]], further: dict[str, Any], criterion: str
) -> None:
    found = peers_must.findings(_campaign(ours_us, **further), footprint)
    assert criterion in {finding.criterion for finding in found if finding.is_reached is False}


def test_what_was_not_measured_is_said_to_be_so_and_few_rounds_are_marked() -> None:
    runs = [_measured("direct", "low", 10.0), _measured("ringrouter", "low", 90.0), _measured("nginx", "low", 100.0)]
    table = peers_must.table(peers_must.findings(runs, {}))
    assert "not measured" in table
    assert "1 (too few)" in table


# ------------------------------------------------------------------------------------------------------------ peers


def test_configurations_name_the_port_and_both_hosts(tmp_path: Path) -> None:
    for name in ("nginx", "haproxy"):
        file = Path(KNOWN[name].command(_place(tmp_path))[4])
        text = file.read_text(encoding="utf-8")
        assert all(address in text for address in ("127.0.0.1:8200", "127.0.0.1:8101", "127.0.0.1:8102"))
    command = KNOWN["vllm-router"].command(_place(tmp_path))
    assert command[command.index("--worker-urls") + 1 :][:2] == ["http://127.0.0.1:8101", "http://127.0.0.1:8102"]


def test_ringrouter_is_told_the_slots_and_the_closing_of_its_hosts(tmp_path: Path) -> None:
    plain = KNOWN["ringrouter"].command(_place(tmp_path))
    told = KNOWN["ringrouter"].command(_place(tmp_path, RouterSetup(slots=8, close=True)))
    assert "--slots" not in plain
    assert told[told.index("--slots") + 1] == "8"
    assert "--close" in told
    assert UNBOUNDED_SLOTS > 8
    spin = KNOWN["ringrouter-spin"].command(_place(tmp_path))
    assert spin[spin.index("--wait") + 1] == "spin"


def test_a_peer_that_is_not_there_is_left_out_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, two_hosts: MockHosts
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    packaged = dataclasses.replace(KNOWN["smg"], package=Package("absent", "1", "absent"))
    with contextlib.ExitStack() as stack:
        opened, left_out = open_peers([KNOWN["nginx"], packaged], plan, two_hosts, stack)
    assert [peer.name for peer in opened] == ["direct"]
    assert "apt-get install" in left_out["nginx"]
    assert "python -m bench.peers --install smg" in left_out["smg"]


def test_only_python_packages_are_installed() -> None:
    with pytest.raises(RuntimeError, match="relay-c: there is nothing to install"):
        install(KNOWN["relay-c"])


def test_a_command_of_ones_own_is_a_peer(tmp_path: Path) -> None:
    known = of_command("mine=serve --port {port} --hosts {urls}")
    assert known.name == "mine"
    assert known.command(_place(tmp_path))[-1] == (
        "exec serve --port 8200 --hosts http://127.0.0.1:8101,http://127.0.0.1:8102"
    )
    for wrong in ("mine", "=serve", "nginx=serve", "direct=serve"):
        with pytest.raises(ValueError, match="expected NAME=COMMAND"):
            of_command(wrong)


def test_relay_probe_and_this_router_are_measured_beside_direct(
    plan: Plan, two_hosts: MockHosts, tmp_path: Path
) -> None:
    def opener(plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> list[Peer]:
        opened, left_out = open_peers([KNOWN[name] for name in ("relay-c", "probe", "ringrouter")], plan, hosts, stack)
        assert not left_out
        return opened

    runs = list(measure(plan, tmp_path / "raw.jsonl", opener))
    assert {run["peer"] for run in runs} == {"direct", "relay-c", "probe", "ringrouter"}
    for run in runs:
        assert run["ok"] > 0
        assert not any(run["errors"].values()), run["errors"]
        assert sum(run["buckets"]["tok"][1::2]) == run["tok"]["n"], "the whole distribution is in the raw line"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def test_a_peer_runs_only_while_it_is_measured_and_leaves_nothing_behind(plan: Plan, two_hosts: MockHosts) -> None:
    mode = plan.modes[0]
    with contextlib.ExitStack() as stack:
        (_, peer), _ = open_peers([KNOWN["relay-c"]], plan, two_hosts, stack)
        pid = peer.pid(mode)
        assert pid is not None
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
        wait_until(lambda: _state(pid) == "T", "the peer to be stopped")
        with peer.resumed(mode):
            assert run_load(peer.target(mode), SHORT)["ok"] > 0
        wait_until(lambda: _state(pid) == "T", "the peer to be stopped again")
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


def test_a_peer_that_fails_is_told_and_the_others_go_on(
    plan: Plan, two_hosts: MockHosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def opener(plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> list[Peer]:
        opened, _ = open_peers([KNOWN["relay-c"]], plan, hosts, stack)
        pid = opened[1].pid(plan.modes[0])
        assert pid is not None
        os.kill(pid, 9)
        wait_until(lambda: _state(pid) == "Z", "the peer to end")
        return opened

    runs = list(measure(plan, tmp_path / "raw.jsonl", opener))
    assert [run["peer"] for run in runs] == ["direct"]
    assert "relay-c: ended with -9" in capsys.readouterr().err


def test_a_command_that_ends_at_once_is_left_out_with_what_it_said(plan: Plan, two_hosts: MockHosts) -> None:
    broken = Known("broken", "ours", lambda place: [sys.executable, "-c", "raise SystemExit('no licence')"])
    with (
        PeerProcess(broken, two_hosts, RouterSetup(), plan) as process,
        pytest.raises(RuntimeError, match="no licence"),
    ):
        process.wait_ready()


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_system_proxies_serve_with_their_configurations(name: str, plan: Plan, two_hosts: MockHosts) -> None:
    if KNOWN[name].missing():
        pytest.skip(f"{name}: {KNOWN[name].missing()}")
    with contextlib.ExitStack() as stack:
        opened, left_out = open_peers([KNOWN[name]], plan, two_hosts, stack)
        assert not left_out
        with opened[1].resumed(plan.modes[0]):
            assert run_load(opened[1].target(plan.modes[0]), SHORT)["ok"] > 0


def test_the_defaults_are_known_and_their_tables_can_be_made_again(tmp_path: Path) -> None:
    assert {"direct", *KNOWN} >= set(peers.DEFAULT_PEERS)
    assert set(MODES) >= set(peers.DEFAULT_MODES)
    facts = {
        "machine": ["a machine"],
        "plan": "7 rounds",
        "before": "0 % stolen",
        "footprint": FOOTPRINT,
        "peers": {"nginx": "nginx 1", "relay-c": ""},
        "left_out": {"smg": "missing\nlonger"},
    }
    text = peers.tables(_campaign(90.0), facts)
    for part in ("In short", "What must be reached", "Every mode", "nginx 1", "Left out: smg, missing", "a machine"):
        assert part in text
    with pytest.raises(OSError, match=r"facts\.json"):
        peers.load_facts(tmp_path / "raw.jsonl")
