"""``ringrouter top`` says how hosts are, also those that get no request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.cli import top_tables
from router.cli.top_hosts import HostState, host_states
from router.routing import Reason
from router.telemetry.host_rows import HostRow, HostRows
from tests.support.observer_states import source, state

OPEN = int(Reason.BREAKER_OPEN)


def host_row(host_id: int, name: str, text: str = "healthy", *, bar: int = 0, is_removed: bool = False) -> HostRow:
    return HostRow(
        host_id=host_id, name=name, bar=bar, is_removed=is_removed, running=host_id, slots=4, slot_count=4, t_ns=1,
        text=text,
    )  # fmt: skip


def router(place: Path, instance: str, *rows: HostRow, generation: str = "12345") -> None:
    directory = place / instance / generation
    directory.mkdir(parents=True)
    writer = HostRows(directory)
    writer.write(rows)
    writer.table.close()


def test_states_come_from_the_rings_of_the_routers_that_live(tmp_path: Path) -> None:
    router(tmp_path, "main", host_row(1, "a"), host_row(2, "b", "breaker open for 3.0 s: down", bar=OPEN))
    router(tmp_path, "two", host_row(1, "a"), host_row(5, "b"), host_row(3, "c", "drained", bar=1, is_removed=True))
    router(tmp_path, "gone", host_row(1, "d"))
    sources = [source(), source(instance="two"), source(instance="gone", state="dead"), source(instance="elsewhere")]
    assert host_states(sources, [tmp_path / "nothing", tmp_path]) == {
        "a": HostState("healthy", is_barred=False, running_count=2),
        "b": HostState("main: breaker open for 3.0 s: down; two: healthy", is_barred=True, running_count=7),
        "c": HostState("drained, removed", is_barred=True, running_count=3),
    }


def test_rings_of_another_life_or_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    router(tmp_path, "main", host_row(1, "a"), generation="777")
    assert host_states([source()], [tmp_path]) == {}
    (tmp_path / "main" / "12345").mkdir()
    (tmp_path / "main" / "12345" / "hosts.tab").write_bytes(b"nonsense")
    assert host_states([source()], [tmp_path]) == {}


@pytest.mark.parametrize(
    ("hosts", "last"),
    [
        ({}, ["–"]),
        (
            {"gpu0": HostState("slow start, 2 of 4 slots", is_barred=False, running_count=7)},
            ["slow start, 2 of 4 slots"],
        ),
    ],
)
def test_the_table_of_hosts_has_their_state(hosts: dict[str, HostState], last: list[str]) -> None:
    (table,) = [table for table in top_tables.tables(state(), hosts) if table.title == "hosts"]
    assert table.columns[-1] == ("state", "<")
    assert [row[-1] for row in table.rows] == last
    assert "slow start" not in "".join(top_tables.headline(state(), hosts)), "it gets requests"


def test_a_host_without_requests_stands_there_too_and_is_warned_of() -> None:
    hosts: dict[str, Any] = {"gpu1": HostState("unhealthy: refused", is_barred=True, running_count=0)}
    text = top_tables.as_text(state(), hosts)
    assert "! host gpu1: unhealthy: refused" in text
    (line,) = [line for line in text.splitlines() if line.startswith("gpu1")]
    assert line.split()[:3] == ["gpu1", "0", "0"]
    assert line.endswith("unhealthy: refused")
