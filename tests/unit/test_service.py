"""What the router says to systemd and takes from it, without one: messages, sockets, log fields, units."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.cli import service as service_cli
from router.config import Config, parse
from router.errors import ConfigError
from router.listeners import Listeners
from router.service import inherited, install, journal, units
from router.service.install import InstallError, Places, carry_out, describe, plan_install, plan_uninstall
from router.service.notify import Notifier
from router.service.pulse import Pulse
from router.telemetry.counters import Counter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manager(directory: Path) -> Iterator[socket.socket]:
    """A service manager that reads when the test does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(directory / "notify"))
        sock.setblocking(False)
        yield sock


def notifier(manager: socket.socket, **environment: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **environment})


def read_all(sock: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(sock.recv(65536).decode())
        except BlockingIOError:
            return found


# ---------------------------------------------------------------- notify
def test_messages_are_those_of_sd_notify(manager: socket.socket) -> None:
    to = notifier(manager, WATCHDOG_USEC="10000000", WATCHDOG_PID=str(os.getpid()))
    to.ready("up\nMAINPID=1")
    to.reloading()
    to.alive()
    to.extend(2.5)
    to.stopping("down")
    ready, reloading, alive, extend, stopping = read_all(manager)
    assert ready == "READY=1\nSTATUS=up MAINPID=1"  # a line end would begin another assignment
    assert reloading.splitlines()[0] == "RELOADING=1"
    assert (
        abs(int(reloading.splitlines()[1].removeprefix("MONOTONIC_USEC=")) - __import__("time").monotonic_ns() // 1000)
        < 10**6
    )
    assert (alive, extend) == ("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=2500000")
    assert stopping == "STOPPING=1\nSTATUS=down"
    assert to.watchdog_ns == 10 * 10**9
    to.close()


def test_a_watchdog_of_another_process_is_not_fed(manager: socket.socket) -> None:
    to = notifier(manager, WATCHDOG_USEC="10000000", WATCHDOG_PID="1")
    to.alive()
    assert read_all(manager) == []


def test_an_abstract_socket_is_spoken_to() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"rr-test-{os.getpid()}"
        sock.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).status("here")
        assert sock.recv(100) == b"STATUS=here"


def test_a_manager_that_does_not_read_blocks_nobody(manager: socket.socket) -> None:
    to = notifier(manager)
    sent = [to.send("STATUS=" + "x" * 4000) for _ in range(2000)]
    assert sent[0]
    assert not sent[-1]


def test_without_a_manager_nothing_is_said() -> None:
    assert not Notifier({}).send("READY=1")
    assert not Notifier({"NOTIFY_SOCKET": "vsock:2:1"}).send("READY=1")


# ---------------------------------------------------------------- pulse
def loop_like(**values: Any) -> Any:
    counters = SimpleNamespace(get=lambda which: {Counter.REQUESTS: 7}.get(which, 0), set=lambda *_: None)
    hosts = [SimpleNamespace(healthy=True), SimpleNamespace(healthy=False)]
    return SimpleNamespace(
        **{
            "backlog": 0,
            "counters": counters,
            "hosts": hosts,
            "in_flight": {1: 1},
            "waiting_count": 2,
            "stopping": False,
        }
        | values
    )


def test_the_watchdog_is_fed_only_while_requests_are_taken(manager: socket.socket) -> None:
    to = notifier(manager, WATCHDOG_USEC="10000000")
    loop = loop_like()
    pulse = Pulse(loop, to)
    pulse.beat(10**12)
    assert "WATCHDOG=1" in read_all(manager)
    loop.backlog = 3  # the tick comes, and requests lie there that nobody takes
    pulse.beat(2 * 10**12)
    assert read_all(manager) == []


def test_the_status_says_how_the_router_is(manager: socket.socket) -> None:
    pulse = Pulse(loop_like(), notifier(manager))
    pulse.beat(10**15)
    [status] = [text for text in read_all(manager) if text.startswith("STATUS=")]
    assert status.startswith("STATUS=serving: 1 in flight, 2 waiting, 1 of 2 hosts healthy, ")
    assert status.endswith("7 requests since the start")


def test_a_drain_asks_for_more_time_and_one_that_was_relieved_is_silent(manager: socket.socket) -> None:
    pulse = Pulse(loop_like(stopping=True), notifier(manager))
    pulse.draining_until_ns = 10**15 + 4 * 10**9
    pulse.beat(10**15)
    assert read_all(manager)[0] == "EXTEND_TIMEOUT_USEC=5000000"
    pulse.paused = True
    pulse.beat(10**15 + 3 * 10**9)
    assert read_all(manager) == []


def test_what_was_said_stays_in_the_status_for_a_while(manager: socket.socket) -> None:
    pulse = Pulse(loop_like(), notifier(manager))
    pulse.hold(10**15)
    pulse.beat(10**15 + 14 * 10**9)
    assert read_all(manager) == []
    pulse.beat(10**15 + 15 * 10**9)
    assert read_all(manager)[0].startswith("STATUS=serving")


def test_the_failure_of_an_earlier_upgrade_is_not_taken_for_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = "upgrade failed, this process goes on: no"
    seen = iter([("7", failed), ("7", "handing over to a new process"), ("8", "serving")])
    now: list[tuple[str, str]] = []

    def read(_manager: list[str], _unit: str, name: str) -> str:
        if name == "MainPID":
            now[:] = [next(seen)]
        return now[0][0 if name == "MainPID" else 1]

    monkeypatch.setattr(service_cli, "_property", read)
    monkeypatch.setattr(service_cli, "_POLL_S", 0)
    assert service_cli._watch_upgrade([], "u", "7", failed) == 0
    seen = iter([("7", failed), ("7", "handing over to a new process"), ("7", failed)])
    assert service_cli._watch_upgrade([], "u", "7", failed) == 1


# ---------------------------------------------------------------- inherited sockets
def test_what_systemd_passes_goes_to_who_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        base = max(map(int, os.listdir("/proc/self/fd"))) + 10  # two descriptors in a row that nobody has
        os.dup2(first.fileno(), base, inheritable=True)
        os.dup2(second.fileno(), base + 1, inheritable=True)
        monkeypatch.setattr(inherited, "_FIRST_DESCRIPTOR", base)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:zeromq-tcp", "A": "b"}
        found = inherited.take(environment)
        assert environment == {"A": "b"}  # a child must not take them for its own
        assert [sock.getsockname() for sock in found.http] == [first.getsockname()]
        assert [sock.getsockname() for sock in found.zeromq] == [second.getsockname()]
        assert not any(sock.get_inheritable() for sock in (*found.http, *found.zeromq))
        for sock in (*found.http, *found.zeromq):
            sock.close()


def test_sockets_for_another_process_are_not_taken() -> None:
    assert inherited.take({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == inherited.Inherited()


def test_a_descriptor_that_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as idle:
        monkeypatch.setattr(inherited, "_FIRST_DESCRIPTOR", idle.fileno())
        with pytest.raises(ConfigError, match=r"socket 1 of LISTEN_FDS \(web\): .* does not listen"):
            inherited.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"})


def config_at(*addresses: str) -> Config:
    quoted = ", ".join(f'"{each}"' for each in addresses)
    return parse(f"version = 1\n[listen]\nhttp = [{quoted}]\nzeromq = []\n")


def test_addresses_are_kept_over_a_handover_and_those_gone_from_the_configuration_are_closed(directory: Path) -> None:
    path = directory / "h.sock"
    old = Listeners(config_at("127.0.0.1:0", f"unix:{path}"), inherited.Inherited(), directory)
    ports = [listener.where for listener in old.http]
    own = {address: [socket.socket(fileno=os.dup(fd)) for fd in fds] for address, fds in old.own().items()}
    new = Listeners(config_at("127.0.0.1:0"), inherited.Inherited(own=own), directory)
    assert [listener.where for listener in new.http] == ports[:1]
    assert not path.exists()
    old.close(for_good=False)
    new.close(for_good=True)


def test_a_socket_of_clients_that_becomes_the_admin_surface_is_closed_to_their_group(directory: Path) -> None:
    path = directory / "x.sock"
    old = Listeners(config_at(f"unix:{path}"), inherited.Inherited(), directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    own = {address: [socket.socket(fileno=os.dup(fd)) for fd in fds] for address, fds in old.own().items()}
    wanted = parse(f'version = 1\n[listen]\nhttp = ["127.0.0.1:0"]\nadmin = ["unix:{path}"]\nzeromq = []\n')
    new = Listeners(wanted, inherited.Inherited(own=own), directory)
    assert new.admin[0].where == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old.close(for_good=False)
    new.close(for_good=True)


def test_sockets_of_systemd_take_the_place_of_the_addresses(directory: Path) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    found = Listeners(config_at(f"unix:{directory}/never"), inherited.Inherited(http=[sock]), directory)
    assert [listener.address for listener in found.http] == [""]
    assert not (directory / "never").exists()
    found.close(for_good=True)


def test_the_file_of_a_unix_socket_that_systemd_holds_stays(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "held"))
        sock.listen()
        Listeners(config_at(f"unix:{directory}/own"), inherited.Inherited(http=[sock.dup()]), directory).close(
            for_good=True
        )
    assert (directory / "held").exists()


# ---------------------------------------------------------------- journal
def test_messages_are_fields_of_the_journal(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(str(directory / "journal"))
        logger = journal.JournalLogger(str(directory / "journal"))
        values = {
            "event": "host unhealthy",
            "host": "gpu-0",
            "reason": "two\nlines",
            "codes": [1, 2],
            "level": "warning",
        }
        logger.warning(journal.render(None, "warning", dict(values)))
        raw = taken.recv(65536)
    assert b"PRIORITY=4\nSYSLOG_IDENTIFIER=ringrouter\nRINGROUTER_EVENT=host unhealthy\nRINGROUTER_HOST=gpu-0\n" in raw
    assert b"RINGROUTER_REASON\n" + (9).to_bytes(8, "little") + b"two\nlines\n" in raw
    assert b"RINGROUTER_CODES=1, 2\n" in raw


def test_what_the_journal_does_not_take_is_counted_and_told(directory: Path) -> None:
    path = str(directory / "journal")
    logger = journal.JournalLogger(path)
    logger.info(b"MESSAGE=lost\n")
    logger.info(b"MESSAGE=lost too\n")
    assert logger.dropped_count == 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(path)
        logger.info(b"MESSAGE=here\n")
        logger.info(b"MESSAGE=again\n")
        assert taken.recv(1000) == b"MESSAGE=here\nRINGROUTER_DROPPED_BEFORE=2\n"
        assert taken.recv(1000) == b"MESSAGE=again\n"


def test_only_a_standard_error_that_is_the_journal_makes_it_the_target() -> None:
    assert not journal.is_ours({})
    assert not journal.is_ours({"JOURNAL_STREAM": "1:2"})


# ---------------------------------------------------------------- units
SHARED_SECTIONS = "# What follows takes away"


def test_both_router_units_have_the_same_sandbox() -> None:
    first, second = ((ROOT / "systemd" / name).read_text() for name in ("ringrouter.service", "ringrouter@.service"))
    assert first[first.index(SHARED_SECTIONS) :] == second[second.index(SHARED_SECTIONS) :].replace("@%i", "")


@pytest.mark.parametrize("name", install.UNITS)
def test_a_units_own_settings_are_explained(name: str) -> None:
    text = (ROOT / "systemd" / name).read_text()
    assert text.startswith("# ")
    assert text.count("\n# ") >= 3


@pytest.mark.parametrize("name", install.UNITS)
def test_units_for_a_user_ask_for_nothing_that_needs_root(name: str) -> None:
    text = units.for_user((ROOT / "systemd" / name).read_text(), "/opt/rr/bin/ringrouter")
    settings = [line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")]
    assert not {"User", "Group", "SocketUser", "ProtectSystem", "IPAddressDeny", "OOMScoreAdjust"} & set(settings)
    assert "/etc/" not in text.replace("# ", "\n#")
    assert "/usr/bin/ringrouter" not in text


def test_installing_removing_and_what_was_edited(directory: Path) -> None:
    places = Places(root=directory)
    plan = plan_install(places, "/opt/rr/bin/ringrouter")
    assert {step.change for step in plan.files} == {"write"}
    assert plan.commands == []  # nothing is run for another root
    carry_out(plan)
    service = directory / "etc/systemd/system/ringrouter.service"
    assert "ExecStart=/opt/rr/bin/ringrouter serve " in service.read_text()
    assert plan_install(places, "/opt/rr/bin/ringrouter").changes_nothing
    moved = plan_install(places, "/opt/new/ringrouter")
    assert {step.change for step in moved.files} == {"replace", "keep"}  # our own of before, not edited
    assert any("+ExecStart=/opt/new/ringrouter serve" in line for line in describe(moved))
    service.write_text(service.read_text().replace("RestartSec=100ms", "RestartSec=5s"))
    for stopped in (plan_install(places, "/opt/new/ringrouter"), plan_uninstall(places)):
        assert stopped.edited == [service]
        with pytest.raises(InstallError, match=r"changed by hand .*ringrouter\.service; --force"):
            carry_out(stopped)
    assert service.exists()
    carry_out(plan_uninstall(places, force=True))
    assert not [path for path in directory.rglob("*") if path.is_file()]


def test_a_program_in_a_home_directory_is_warned_of(directory: Path) -> None:
    plan = plan_install(Places(root=directory), "/home/ada/venv/bin/ringrouter")
    assert "ProtectHome" in plan.warnings[0]
