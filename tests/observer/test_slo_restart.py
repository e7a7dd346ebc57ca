"""No count of an objective is lost or doubled, wherever an observer is killed, with a journal and without one."""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router import config
from router.config import Config
from router.observer import client
from router.observer.client import ObserverError
from router.observer.follow import LOOK_EVERY_NS, Follower
from router.observer.journal import Journal
from router.observer.pipeline import Pipeline
from router.observer.positions import Positions
from router.observer.slo import accounts as accounts_module
from router.observer.slo import book as book_module
from router.observer.slo import store as store_module
from router.observer.slo.accounts import SloAccounts
from router.observer.slo.book import OPEN_MAX, PASSED_OVER_NS, SloBook
from router.observer.slo.status import SloPage
from router.observer.slo.store import DAMAGED, FILE, File, Store
from tests.support.processes import Program
from tests.support.request_rows import row
from tests.support.told_requests import ToldRouter
from tests.support.waiting import free_port, wait_until

MS = 1_000_000
S = 1_000_000_000
SETTLE_TURNS = 10
OBJECTIVES = """
[[slo]]
name = "up"
metric = "availability"
objective = 99
[[slo]]
name = "by-host"
metric = "availability"
objective = 99
group_by = ["host"]
"""
JOURNALS = pytest.mark.parametrize("journal", ["", "[observer.journal]\nenabled = false\n"], ids=["journal", "none"])


@pytest.fixture
def router(directory: Path) -> Iterator[ToldRouter]:
    router = ToldRouter(directory / "run" / "main", token_slots=1 << 15, done_slots=4096)
    yield router
    router.die()


def settings(directory: Path, more: str = "", http: str = "127.0.0.1:0") -> Config:
    return config.parse(text_of(directory, more, http))


def text_of(directory: Path, more: str = "", http: str = "127.0.0.1:0") -> str:
    own = f'http = "{http}"\ndata_dir = "{directory}/data"'
    return f"version = 1\n[observer]\n{own}\n[observer.alerts]\nenabled = false\n{more}{OBJECTIVES}"


def answer(router: ToldRouter) -> None:
    t_ns = time.monotonic_ns() - 100 * MS
    request = router.ask(t_ns)
    request.dispatch(t_ns + MS)
    request.event(t_ns + 20 * MS)
    request.finish(t_ns + 60 * MS)


class Killed(BaseException):
    """The process is no more; nothing of it runs on."""


class Fate:
    """Kills after so many points at which something has just been written, or is about to be."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.positions: list[Positions] = []
        """All that hold the lock of the data directory."""

    def point(self, name: str) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed(name)

    def unlock(self) -> None:
        """Do what the kernel does for a process that is no more."""
        for each in self.positions:
            each.close()
        self.positions.clear()

    def around(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def called(*args: Any, **given: Any) -> Any:
            self.point(f"before {name}")
            result = original(*args, **given)
            self.point(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, called)


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    """Make every step at which a kill could matter a point, and files written where they are asked for."""
    made = Fate()
    for owner, name in ((Journal, "append"), (Journal, "tick"), (Follower, "commit"), (SloAccounts, "add")):
        made.around(monkeypatch, owner, name)
    made.around(monkeypatch, store_module, "_write")
    for name in ("settle", "save_when_due"):
        made.around(monkeypatch, SloAccounts, name)
    monkeypatch.setattr(accounts_module, "SAVE_EVERY_NS", 2 * S)
    take_lock = Positions.__init__

    def noted(self: Positions, directory: Path) -> None:
        take_lock(self, directory)
        made.positions.append(self)

    monkeypatch.setattr(Positions, "__init__", noted)

    def begin(self: Store, file: File) -> None:
        done: Future[None] = Future()
        store_module._write(self._path, file)
        done.set_result(None)
        self._saving = done

    monkeypatch.setattr(Store, "begin", begin)
    return made


class Life:
    """One life of the observer's pipeline, its clock set by hand."""

    def __init__(self, directory: Path, journal: str, now_ns: int) -> None:
        self.now_ns = now_ns
        self.pipeline = Pipeline(settings(directory, journal), directory / "run", time.time_ns())

    def turn(self) -> None:
        self.now_ns += LOOK_EVERY_NS
        self.pipeline.turn(self.now_ns, time.time_ns())

    def counted(self) -> dict[tuple[str, str], int]:
        assert self.pipeline.slo is not None
        found = self.pipeline.slo.book.evaluate(time.time_ns())
        return {(status.slo, status.group.get("host", "")): status.total for status in found}


@JOURNALS
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_wherever_it_is_killed_the_totals_are_the_number_of_requests(
    directory: Path, router: ToldRouter, fate: Fate, journal: str, seed: int
) -> None:
    rng = random.Random(seed)
    asked, killed_at, now_ns = 0, [], time.monotonic_ns()
    for _ in range(10):
        fate.left, life = rng.randrange(120), None
        try:
            life = Life(directory, journal, now_ns)
            while True:
                for _ in range(rng.randrange(12)):
                    answer(router)
                    asked += 1
                life.turn()
        except Killed as killed:
            killed_at.append(str(killed))
            fate.left = None
            now_ns = now_ns if life is None else life.now_ns
            fate.unlock()
    last = Life(directory, journal, now_ns)
    for _ in range(SETTLE_TURNS):
        last.turn()
    counted = last.counted()
    last.pipeline.close(time.time_ns())
    assert counted == {("up", ""): asked, ("by-host", ""): asked, ("by-host", "gpu-0"): asked}, killed_at
    assert asked > 100
    assert len(set(killed_at)) > 3, "kills at several points"


@JOURNALS
def test_a_stop_and_a_start_keep_all_counts(directory: Path, router: ToldRouter, journal: str) -> None:
    now_ns = time.monotonic_ns()
    for begun in range(3):
        life = Life(directory, journal, now_ns)
        for _ in range(5):
            answer(router)
        for _ in range(SETTLE_TURNS):
            life.turn()
        assert life.counted()["up", ""] == 5 * (begun + 1)
        now_ns = life.now_ns
        life.pipeline.close(time.time_ns())


def test_what_the_journal_has_is_counted_also_when_the_rings_have_overwritten_it(directory: Path, fate: Fate) -> None:
    router = ToldRouter(directory / "run" / "main", token_slots=1 << 15, done_slots=32)
    life = Life(directory, "", time.monotonic_ns())
    for _ in range(20):
        answer(router)
    for _ in range(SETTLE_TURNS):
        life.turn()
    before_ns = life.now_ns
    file = (directory / "data" / FILE).read_bytes()
    for _ in range(20):
        answer(router)
    for _ in range(SETTLE_TURNS):
        life.turn()
    fate.unlock()
    (directory / "data" / FILE).write_bytes(file)  # as if it had been killed before the next one was written
    for _ in range(64):
        answer(router)  # nobody reads these, and they overwrite the others
    last = Life(directory, "", before_ns)
    for _ in range(SETTLE_TURNS):
        last.turn()
    lost = last.pipeline.follower.lost_request_count
    assert lost > 0
    assert last.counted()["up", ""] == 40 + 64 - lost
    last.pipeline.close(time.time_ns())
    router.die()


def test_a_page_that_is_over_is_remembered_over_a_restart(tmp_path: Path) -> None:
    wall_ns = 1_763_899_200 * S
    parsed = settings(tmp_path)
    first = SloAccounts(parsed, tmp_path, None, wall_ns)
    rows = [row(request_seq=i, host="gpu-0", outcome="timeout", end_wall_ns=wall_ns) for i in range(200)]
    first.add(rows, wall_ns)
    before = first.statuses(wall_ns)
    assert before[0].severity == "page"
    first.close((), wall_ns)
    again = SloAccounts(parsed, tmp_path, None, wall_ns + 40 * 60 * S)
    later_ns = wall_ns + 40 * 60 * S
    calm = again.statuses(later_ns)[0]
    assert calm.severity is None
    assert [burn.is_told for burn in calm.burns] == [False, False, True, True]
    again.close((), later_ns)


def taken(accounts: SloAccounts, rows: Sequence[Any], now_ns: int) -> list[Any]:
    """Do what a turn does; return what the position may pass."""
    passed = accounts.settle(rows)
    accounts.save_when_due(now_ns, time.time_ns())
    return list(passed)


def _with_fewer_cells(raw: bytes) -> bytes:
    file = msgspec.msgpack.decode(zlib.decompress(raw))
    file["book"]["counts"][0]["cells"] = b"1234"
    return zlib.compress(msgspec.msgpack.encode(file))


class TestFile:
    def test_an_objective_that_means_something_else_now_begins_anew_and_another_goes_on(self, tmp_path: Path) -> None:
        wall_ns = time.time_ns()
        first = SloAccounts(settings(tmp_path), tmp_path, None, wall_ns)
        first.add([row(request_seq=i, host="gpu-0", end_wall_ns=wall_ns) for i in range(9)], wall_ns)
        first.close((), wall_ns)
        changed = config.parse(text_of(tmp_path).replace('group_by = ["host"]', 'group_by = ["model"]'))
        again = SloAccounts(changed, tmp_path, None, wall_ns)
        assert {status.slo: status.total for status in again.statuses(wall_ns) if not status.group} == {
            "up": 9,
            "by-host": 0,
        }
        again.close((), wall_ns)

    def test_another_percentage_is_the_same_objective(self, tmp_path: Path) -> None:
        wall_ns = time.time_ns()
        first = SloAccounts(settings(tmp_path), tmp_path, None, wall_ns)
        first.add([row(request_seq=1, end_wall_ns=wall_ns)], wall_ns)
        first.close((), wall_ns)
        again = SloAccounts(config.parse(text_of(tmp_path).replace("99", "95")), tmp_path, None, wall_ns)
        assert again.statuses(wall_ns)[0].total == 1
        again.close((), wall_ns)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda raw: raw[:-5],
            lambda _: b"",
            lambda _: zlib.compress(b"\xc1"),
            lambda raw: zlib.compress(zlib.decompress(raw).replace(b"slo-counts/1", b"slo-counts/9")),
            _with_fewer_cells,
        ],
    )
    def test_a_damaged_file_is_put_aside_and_told(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        wall_ns = time.time_ns()
        first = SloAccounts(settings(tmp_path), tmp_path, None, wall_ns)
        first.add([row(request_seq=1, end_wall_ns=wall_ns)], wall_ns)
        first.close((), wall_ns)
        damaged = damage((tmp_path / FILE).read_bytes())
        (tmp_path / FILE).write_bytes(damaged)
        again = SloAccounts(settings(tmp_path), tmp_path, None, wall_ns)
        assert (tmp_path / DAMAGED).read_bytes() == damaged
        assert "was damaged, so all objectives are counted anew" in again.problem
        assert again.statuses(wall_ns)[0].total == 0
        again.close((), wall_ns)

    def test_a_disk_that_does_not_take_it_is_said_and_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wall_ns, fails = time.time_ns(), True
        write = store_module._write

        def refuse(path: Path, file: File) -> None:
            if fails:
                raise OSError(28, "No space left on device")
            write(path, file)

        monkeypatch.setattr(store_module, "_write", refuse)
        one = SloAccounts(settings(tmp_path), tmp_path, None, wall_ns)
        assert one.problem == f"{tmp_path / FILE} cannot be written: No space left on device"
        rows = [row(request_seq=i, end_wall_ns=wall_ns) for i in range(3)]
        one.add(rows, wall_ns)
        assert taken(one, rows, 100 * S) == [], "the position waits for the file"
        wait_until(lambda: one._store._saving is not None and one._store._saving.done(), "the try to be over")
        assert taken(one, (), 101 * S) == []
        fails = False
        passed: list[Any] = []

        def settled() -> bool:
            passed.extend(taken(one, (), 200 * S))
            return len(passed) == 3

        wait_until(settled, "the rows to be in the file")
        assert passed == rows
        assert one.problem == ""
        assert taken(one, (), 400 * S) == [], "each once"
        one.close((), wall_ns)

    def test_what_waits_for_a_file_that_cannot_be_written_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accounts_module, "HELD_TOO_LONG", 5)

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store_module, "_write", refuse)
        one = SloAccounts(settings(tmp_path), tmp_path, None, time.time_ns())
        rows = [row(request_seq=i) for i in range(12)]
        taken(one, rows, 100 * S)
        passed: list[Any] = []

        def settled() -> bool:
            passed.extend(taken(one, (), 101 * S))
            return len(passed) >= 7

        wait_until(settled, "the oldest rows to be let go")
        assert passed == rows[:7]
        one.close((), time.time_ns())


class TestBook:
    def test_open_rows_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert 16_384 < OPEN_MAX < 1_000_000, "above what waits for its cost and for a disk"
        monkeypatch.setattr(book_module, "OPEN_MAX", 100)
        book = SloBook(config.parse(f"version = 1\n{OBJECTIVES}"), 10**18)
        book.add([row(request_seq=i, end_wall_ns=10**18) for i in range(110)], 10**18)
        assert [key[2] for key in book.written(10**18).open] == list(range(10, 110))

    def test_rows_that_another_life_had_open_are_passed_over_for_an_hour(self) -> None:
        parsed = config.parse(f"version = 1\n{OBJECTIVES}")
        first = SloBook(parsed, 10**18)
        rows = [row(request_seq=i, end_wall_ns=10**18) for i in range(4)]
        first.add(rows, 10**18)
        first.commit(rows[:1])
        written = first.written(10**18)
        assert [key[2] for key in written.open] == [1, 2, 3]
        second = SloBook(parsed, 10**18)
        second.restore(written)
        second.add(rows[1:3], 10**18)
        assert second.evaluate(10**18)[0].total == 4
        assert {key[2] for key in second.written(10**18).open} == {1, 2, 3}, "a second kill finds all of them"
        late_ns = 10**18 + PASSED_OVER_NS + 1
        second.advance(late_ns)
        assert {key[2] for key in second.written(late_ns).open} == {1, 2}


@pytest.mark.parametrize(
    "journal",
    ["", pytest.param("[observer.journal]\nenabled = false\n", marks=pytest.mark.long)],
    ids=["journal", "none"],
)
def test_a_real_observer_that_is_killed_counts_each_request_once(
    directory: Path, router: ToldRouter, journal: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    path = directory / "ringrouter.toml"
    path.write_text(f'{text_of(directory, journal, address)}[listen]\nrun_dir = "{directory}/run"\n')
    command = [sys.executable, "-m", "router", "observe", "--config", str(path)]
    observer = Program("observer", command, directory / "observer.log")
    asked = 0

    def ask(count: int) -> None:
        nonlocal asked
        for _ in range(count):
            answer(router)
        asked += count

    def are_counted() -> bool:
        observer.check_running()
        return total(address) >= asked

    with observer:
        ask(40)
        wait_until(are_counted, "all requests to be counted")
        ask(40)
        observer.kill()
        ask(40)
        observer.start()
        wait_until(are_counted, "all requests to be counted")
        assert total(address) == asked == 120
        observer.kill()


def total(address: str) -> int:
    """Return what the running observer has counted, 0 while none answers."""
    try:
        page = msgspec.json.decode(client.get(address, client.slo_path("up")), type=SloPage)
    except ObserverError:
        return 0
    return page.statuses[0].total
