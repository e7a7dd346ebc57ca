"""Costs beside a real router: the rows' shares are the host's time to the nanosecond, also after a kill."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bench.build import compiler
from bench.processes import MockHosts, run_load
from router.observer import client
from tests.observer.test_observer_end_to_end import Observed
from tests.support.waiting import shared_memory_directory, wait_until

pytestmark = pytest.mark.skipif(compiler() is None, reason="host and load are written in C and there is no compiler")

LOAD = "mode=stream conc=16 maxreq=300 n=20 ttft=20000 itl=4000 dur=10 warm=0"


@pytest.fixture
def observed() -> Iterator[Observed]:
    with MockHosts(["127.0.0.1:0"]) as host, shared_memory_directory() as directory:
        setting = Observed(directory, host)
        with setting.router, setting.observer:
            setting.wait_found()
            yield setting


def costs(observed: Observed) -> dict[str, Any]:
    (found,) = observed.rows(
        "select count(*) as n, count(distinct request_seq) as keys, count(cost_amount) as priced, "
        "coalesce(sum(host_ns), 0) as host_ns, sum(cost_amount) as amount, count_if(cost_missing = 'gap') as gaps, "
        "max(done_mono_ns) - min(recv_mono_ns) as span_ns from requests"
    )
    return found


def charged_ns(observed: Observed) -> int:
    text = client.get(observed.address, "/metrics").decode()
    found = re.search(r'^ringrouter_host_seconds_total\{host="alpha",use="charged"\} (\S+)$', text, re.MULTILINE)
    assert found is not None
    return round(float(found[1]) * 1e9)


def test_the_rows_of_a_load_are_charged_the_time_of_their_host(observed: Observed) -> None:
    run = run_load(observed.target, LOAD)
    observed.wait_written(run["ok"])
    found = costs(observed)
    assert found["n"] == found["priced"] == run["ok"]
    assert found["host_ns"] == charged_ns(observed)
    assert found["amount"] == pytest.approx(found["host_ns"] / 1e9 * 3.6 / 3600)
    # Sixteen streams at a time keep the host busy nearly all the time, and never more than that.
    assert 0.5 * found["span_ns"] < found["host_ns"] <= found["span_ns"]


def test_after_a_kill_only_what_ran_meanwhile_has_no_cost(observed: Observed) -> None:
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(run_load(observed.target, LOAD)))
    thread.start()
    wait_until(lambda: costs(observed)["priced"] >= 50, "the first rows")
    observed.observer.kill()
    observed.start_observer()
    thread.join()
    (run,) = done
    observed.wait_written(run["ok"])
    found = costs(observed)
    assert found["n"] == found["keys"] == run["ok"], "each once, none missing"
    assert found["priced"] + found["gaps"] == run["ok"]
    assert found["host_ns"] <= found["span_ns"]
    # Rows that waited for their cost, and what ran beside them when the observer came back.
    assert found["priced"] > run["ok"] / 4
