"""The router as a service of a real systemd: start, status, reload, watchdog, kill, stop, upgrade, credentials."""

from __future__ import annotations

import json
import re
import threading
from time import monotonic
from typing import Any

import pytest

from tests.service.site import UNIT, Load, Outcome, Site, connect
from tests.support.processes import get
from tests.support.scripted_host import DONE, FINISH, ROLE, Gate, chunk, stream_head, token
from tests.support.systemd import PROGRAM
from tests.support.waiting import free_port, wait_until

UNITS = (
    "ringrouter.service",
    "ringrouter@1.service",
    "ringrouter-observe.service",
    "ringrouter-keep.service",
)
SOCKETS = ("ringrouter.socket", "ringrouter@1.socket")
EXPOSURE_MAX = 1.5


# ---------------------------------------------------------------- units and installation
def test_systemd_finds_nothing_wrong_with_the_units(site: Site) -> None:
    done = site.machine.try_run("systemd-analyze", "verify", *UNITS, *SOCKETS)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_each_service_is_exposed_little(site: Site, unit: str) -> None:
    report = site.machine.run("systemd-analyze", "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert found, report
    assert float(found.group(1)) <= EXPOSURE_MAX


def test_installing_twice_changes_nothing_and_edited_files_are_left_alone(site: Site) -> None:
    assert "next: write /etc/ringrouter/ringrouter.toml" in site.installed
    again = site.machine.ringrouter("service", "install")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "already installed")
    path = "/etc/systemd/system/ringrouter-keep.service"
    site.machine.run("sed", "-i", "s/^RestartSec=.*/RestartSec=9s/", path)
    for action in ("install", "uninstall"):
        refused = site.machine.ringrouter("service", action)
        assert refused.returncode == 1
        assert f"changed by hand since it was installed: {path}" in refused.stderr
    shown = site.machine.ringrouter("service", "install", "--dry-run", "--force")
    assert "    -RestartSec=9s" in shown.stdout.splitlines()
    assert "RestartSec=9s" in site.machine.run("cat", path)
    assert site.machine.ringrouter("service", "install", "--force").returncode == 0
    assert "RestartSec=1s" in site.machine.run("cat", path)


def test_a_user_has_a_service_of_their_own_and_takes_it_away_again(site: Site) -> None:
    site.machine.run("useradd", "--create-home", "--home-dir", "/tmp/somebody", "somebody")
    uid = site.machine.run("id", "-u", "somebody").strip()
    site.machine.run("install", "-d", "-o", "somebody", "-m", "0700", f"/run/user/{uid}")  # as logind does
    site.machine.systemctl("start", f"user@{uid}.service")
    units = "/tmp/somebody/.config/systemd/user"

    def run(command: str) -> str:
        known = f"HOME=/tmp/somebody XDG_RUNTIME_DIR=/run/user/{uid}"
        return site.machine.run("bash", "-c", f"export {known}; cd; {command}", user="somebody")

    run(f"{PROGRAM} -m router service install --user && mkdir -p {units}/ringrouter.socket.d .config/ringrouter")
    staged = site.machine.shared / "user.toml"
    staged.write_text(site.toml())
    port = f"[Socket]\\nListenStream=\\nListenStream=127.0.0.1:{free_port()}\\n"
    run("cp /mnt/shared/user.toml .config/ringrouter/ringrouter.toml")
    run(f"printf '{port}' > {units}/ringrouter.socket.d/p.conf")
    run(f"systemctl --user daemon-reload && systemd-analyze --user verify {' '.join(UNITS)}")
    run("systemctl --user enable --now ringrouter.socket ringrouter.service")
    assert "has taken over" in run(f"{PROGRAM} -m router service upgrade --user")
    assert run(f"{PROGRAM} -m router service uninstall --user").splitlines()[-1] == "uninstalled"
    assert run("systemctl --user list-units 'ringrouter*' --all --no-legend") == ""
    assert run(f"find {units} -type f -o -type l").split() == [f"{units}/ringrouter.socket.d/p.conf"]
    site.machine.systemctl("stop", f"user@{uid}.service")


# ---------------------------------------------------------------- start and status
def test_it_is_ready_when_it_serves_and_says_how_it_is(service: Site) -> None:
    assert service.machine.show(UNIT, "ActiveState") == "active"
    assert service.ask().status == 200
    wait_until(lambda: "1 requests since the start" in service.status, f"a live status: {service.status}")
    assert re.match(r"serving: 0 in flight, 0 waiting, 1 of 1 hosts healthy, ", service.status)
    [message] = service.events("serving")
    assert message["PRIORITY"] == "6"
    assert message["SYSLOG_IDENTIFIER"] == "ringrouter"
    assert f"127.0.0.1:{service.port}" in message["RINGROUTER_FROM_SYSTEMD"]
    assert message["MESSAGE"].startswith("serving http=")


def test_it_starts_while_its_hosts_are_down(service: Site) -> None:
    service.configure(
        service.toml('[[hosts]]\nname = "gone"\nurl = "http://127.0.0.1:9"\nkind = "vllm"\nmodels = ["n"]')
    )
    start_s = monotonic()
    service.machine.systemctl("restart", UNIT)
    assert monotonic() - start_s < 5
    assert service.ask().status == 200
    wait_until(lambda: "1 of 2 hosts healthy" in service.status, "the status says so")


def test_a_configuration_that_cannot_be_used_ends_it_for_good_and_says_why(service: Site) -> None:
    service.configure(service.toml("[limits]\nwaiting = -1"))
    service.machine.try_run("systemctl", "restart", UNIT)
    service.machine.wait_for(UNIT, "ActiveState", "failed")
    assert service.machine.show(UNIT, "ExecMainStatus") == "2"
    assert "limits.waiting = -1" in service.machine.said(UNIT)


# ---------------------------------------------------------------- reload
def test_a_good_reload_takes_effect_and_no_request_fails(service: Site) -> None:
    before = service.pid
    with Load(service.port, 3) as load:
        load.wait_for(20)
        service.configure(service.toml("[models.fresh]\n", "cost_per_hour = 1.0").replace('["m"]', '["m", "fresh"]'))
        service.machine.systemctl("reload", UNIT)
        wait_until(lambda: service.status.startswith("reloaded"), "the status says so")
        load.wait_for(20)
        assert service.ask(model="fresh").status == 200
    assert load.failed == []
    assert (service.pid, service.machine.show(UNIT, "ActiveState")) == (before, "active")


def test_a_bad_reload_changes_nothing_and_names_the_key(service: Site) -> None:
    before = service.pid
    service.configure(service.toml("[limits]\nwating = 1"))
    service.machine.systemctl("reload", UNIT)
    wait_until(lambda: service.status.startswith("reload refused"), "the status says so")
    assert "limits.wating is not a known key" in service.status
    assert (service.pid, service.machine.show(UNIT, "ActiveState")) == (before, "active")
    assert service.ask().status == 200
    [message] = service.events("configuration not reloaded")[-1:]
    assert message["PRIORITY"] == "3"
    assert "limits.wating" in message["RINGROUTER_REASON"]


# ---------------------------------------------------------------- watchdog and kill
def test_the_watchdog_ends_a_loop_that_is_stuck(service: Site) -> None:
    service.drop_in("[Service]\nWatchdogSec=2s\n")
    service.machine.systemctl("restart", UNIT)
    assert service.machine.ringrouter("service", "upgrade").returncode == 0
    before, first_s = service.pid, service.watchdog_fed_s
    # Longer than the watchdog waits: a loop that idles feeds it, also one that has taken over.
    wait_until(lambda: service.watchdog_fed_s > first_s + 2.2, "the watchdog is fed")
    assert service.pid == before
    service.machine.run("kill", "-STOP", str(before))  # its process lives and does nothing
    after = service.wait_new_pid(before)
    assert after != before
    assert "Watchdog timeout" in service.machine.said(UNIT, 100)
    assert service.ask().status == 200


def test_a_kill_under_load_refuses_nobody_and_what_ran_is_reported(service: Site) -> None:
    gate = Gate()
    service.host.script(stream_head(), chunk(ROLE), chunk(token("begun")), gate)
    begun: list[Outcome] = []
    asking = threading.Thread(target=lambda: begun.append(service.ask(stream=True, user="the-one-that-ran")))
    asking.start()
    gate.wait_reached()
    before = service.pid
    with Load(service.port, 4) as load:
        load.wait_for(20)
        wait_until(lambda: "decode" in [line["phase"] for line in _in_flight(service)], "the tick has shown it")
        service.machine.kill(UNIT)
        service.wait_new_pid(before)
        load.wait_for(40)
    asking.join(20)
    assert begun[0].status != 200  # it never looks like a proper end
    assert [outcome for outcome in load.failed if "refused" in outcome.error.lower()] == []
    assert len(load.failed) <= 4, load.failed  # those that were in the router when it died, one for each client
    assert [outcome.status for outcome in load.failed if outcome.status] == []  # and none came too early: no 503
    assert _in_flight(service, "--generation", "previous")


def _in_flight(site: Site, *more: str) -> list[dict[str, Any]]:
    """Return the requests in flight as `dump` tells of them."""
    dump = ("dump", "--run-dir", "/run/ringrouter", "--what", "inflight", *more)
    lines = [json.loads(line) for line in site.machine.ringrouter(*dump).stdout.splitlines()]
    return [line for line in lines if line["what"] == "inflight"]


# ---------------------------------------------------------------- stop
def test_a_stop_lets_streams_finish_and_tells_newcomers_to_come_again(service: Site) -> None:
    gate = Gate()
    service.host.script(
        stream_head(), chunk(ROLE), chunk(token("one")), gate, *map(chunk, (FINISH, DONE)), b"0\r\n\r\n"
    )
    found: list[Outcome] = []
    asking = threading.Thread(target=lambda: found.append(service.ask(stream=True)))
    asking.start()
    gate.wait_reached()
    stopping = threading.Thread(target=service.machine.systemctl, args=("stop", UNIT))
    stopping.start()
    service.machine.wait_for(UNIT, "ActiveState", "deactivating")
    wait_until(lambda: service.status.startswith("drain"), "the status says so")
    with connect(service.port) as waiting:  # systemd still holds the socket: nobody is refused
        waiting.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        gate.open()
        asking.join(10)
        stopping.join(20)
        assert (found[0].status, found[0].error[-14:]) == (200, "data: [DONE]\n\n")
        assert service.machine.show(UNIT, "Result") == "success"
        # The connection that came meanwhile starts the next router, which serves it.
        assert b"200 OK" in waiting.recv(4096)


def test_streams_that_do_not_finish_end_with_an_error_that_says_retry(service: Site) -> None:
    service.configure(service.toml("[timeouts]\ndrain_s = 2.0"))
    service.drop_in("[Service]\nTimeoutStopSec=1s\n")  # shorter than the drain, which asks for more
    service.machine.systemctl("restart", UNIT)
    gate = Gate()
    service.host.script(stream_head(), chunk(ROLE), chunk(token("one")), gate)
    found: list[Outcome] = []
    asking = threading.Thread(target=lambda: found.append(service.ask(stream=True)))
    asking.start()
    gate.wait_reached()
    service.machine.systemctl("stop", "ringrouter.socket", UNIT)
    asking.join(10)
    assert "shutting_down" in found[0].error
    assert "ask again" in found[0].error
    assert service.machine.show(UNIT, "Result") == "success"  # not killed for taking longer than TimeoutStopSec


# ---------------------------------------------------------------- upgrade
@pytest.mark.parametrize("stream", [False, True])
def test_no_request_fails_through_upgrades_under_load(service: Site, stream: bool) -> None:
    with Load(service.port, 6, stream=stream) as load:
        load.wait_for(30)
        for _ in range(3):
            before = service.pid
            done = service.machine.ringrouter("service", "upgrade")
            assert done.returncode == 0, done.stderr
            assert service.pid != before
            load.wait_for(60)
    assert load.failed == []
    assert len(load.outcomes) > 200
    assert [outcome for outcome in load.outcomes if outcome.closed]  # the old ones said: close


def test_an_old_process_finishes_its_stream_while_the_new_one_serves(service: Site) -> None:
    gate = Gate()
    service.host.script(
        stream_head(), chunk(ROLE), chunk(token("one")), gate, *map(chunk, (FINISH, DONE)), b"0\r\n\r\n"
    )
    found: list[Outcome] = []
    asking = threading.Thread(target=lambda: found.append(service.ask(stream=True)))
    asking.start()
    gate.wait_reached()
    before = service.pid
    assert service.machine.ringrouter("service", "upgrade").returncode == 0
    assert service.ask().status == 200
    assert service.machine.try_run("kill", "-0", str(before)).returncode == 0  # it drains
    gate.open()
    asking.join(10)
    assert (found[0].status, found[0].error[-14:]) == (200, "data: [DONE]\n\n")
    wait_until(lambda: service.machine.try_run("kill", "-0", str(before)).returncode, "the old process ends")
    assert service.machine.show(UNIT, "ActiveState") == "active"
    assert service.machine.show(UNIT, "NRestarts") == "0"


def test_a_new_process_that_fails_leaves_the_old_one_serving(service: Site) -> None:
    before = service.pid
    service.configure(service.toml("[limits]\nwaiting = -1"))
    with Load(service.port, 2) as load:
        load.wait_for(10)
        done = service.machine.ringrouter("service", "upgrade")
        load.wait_for(10)
    assert done.returncode == 1
    assert "the new process ended with exit code 2" in done.stderr
    assert service.pid == before
    assert load.failed == []


# ---------------------------------------------------------------- credentials and secrets
CANARIES = ("canary-of-a-prompt", "canary-of-an-answer", "canary-of-a-key")


def test_a_credential_reaches_the_host_and_no_canary_is_found_anywhere(service: Site) -> None:
    prompt, answer, key = CANARIES
    service.machine.write("/etc/ringrouter/gpu.key", f"{key}\n", 0o600)
    observer_port = free_port()
    observer = f'[observer]\nhttp = "127.0.0.1:{observer_port}"\n'
    service.configure(service.toml(observer, host_keys='api_key_credential = "gpu"'))
    service.drop_in("[Service]\nLoadCredential=gpu:/etc/ringrouter/gpu.key\n")
    service.machine.systemctl("restart", UNIT)
    service.machine.systemctl("start", "ringrouter-observe.service")
    for stream in (True, False):
        service.host.script(stream_head(), chunk(ROLE), chunk(token(answer)), *map(chunk, (FINISH, DONE)), b"0\r\n\r\n")
        found = service.ask(stream=stream, messages=[{"role": "user", "content": prompt}])
        service.host.wait_exchange(1)
        assert found.status in {200, 502}
    assert service.host.exchanges[-1].headers["authorization"] == f"Bearer {key}"
    bad = b'{"model": "m", "messages": "%b", ' % prompt.encode()
    with connect(service.port) as sock:
        head = b"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % (key.encode(), len(bad)) + bad)
        assert b"400" in sock.recv(4096)
    seen = "".join(wait_until(lambda: _observed(observer_port), "the observer has seen a request"))
    service.machine.systemctl("stop", "ringrouter-observe.service")
    trace = service.machine.ringrouter("dump", "--run-dir", "/run/ringrouter", "--format", "chrome").stdout
    service.machine.kill(UNIT)  # so that the in-flight table is as it was
    service.machine.run("journalctl", "--sync")
    journal = service.machine.run("journalctl", "-o", "export", "--no-pager")
    rings = service.machine.run("bash", "-c", "cat $(find /run/ringrouter /var/lib/ringrouter -type f) | tr -d '\\0'")
    for canary in CANARIES:
        assert canary not in journal + trace + seen
        assert canary not in rings
        assert canary not in service.machine.run("systemctl", "show", UNIT)
    assert "observing" in journal
    assert "gpu" in rings  # the search finds what is there


def _observed(port: int) -> list[str]:
    """Return the observer's pages once it has counted a request."""
    try:
        pages = [get("127.0.0.1", port, path)[1].decode() for path in ("/metrics", "/state.json")]
    except OSError:
        return []
    return pages if '"gpu"' in pages[0] else []


def test_the_keeper_serves_the_routers_and_outlives_an_upgrade(service: Site) -> None:
    service.configure(service.toml("[cache.embeddings]\nenabled = true"))
    service.machine.systemctl("restart", UNIT)
    service.machine.systemctl("start", "ringrouter-keep.service")
    try:
        wait_until(lambda: _counter(service, "keeper_up"), "the router has found it")
        keeper_pid = service.machine.main_pid("ringrouter-keep.service")
        assert service.machine.ringrouter("service", "upgrade").returncode == 0
        wait_until(lambda: _counter(service, "keeper_up"), "the next router has found it")
        assert service.machine.main_pid("ringrouter-keep.service") == keeper_pid
        service.machine.run("test", "-d", "/var/lib/ringrouter")
    finally:
        service.machine.systemctl("stop", "ringrouter-keep.service")
    assert service.machine.show("ringrouter-keep.service", "Result") == "success"
    assert service.ask().status == 200


def _counter(site: Site, name: str) -> int:
    """Return a counter of the router that is current."""
    counters = json.loads(site.machine.ringrouter("stats", "--run-dir", "/run/ringrouter", "--json").stdout)["rings"]
    return next(int(each["value"]) for each in counters["counters"] if each["name"] == name)


def test_a_credential_that_is_missing_is_named(service: Site) -> None:
    service.configure(service.toml(host_keys='api_key_credential = "gpu"'))
    service.machine.try_run("systemctl", "restart", UNIT)
    service.machine.wait_for(UNIT, "ActiveState", "failed")
    assert 'hosts[0].api_key_credential = "gpu"' in service.machine.said(UNIT)


def test_a_user_outside_the_group_can_neither_connect_nor_read(service: Site) -> None:
    path = "/run/ringrouter/http.sock"
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); print('in')"
    assert service.machine.run(PROGRAM, "-c", program, user="ringrouter") == "in\n"
    refused = service.machine.try_run(PROGRAM, "-c", program, user="daemon")
    assert "PermissionError" in refused.stderr
    assert service.machine.try_run("ls", "/run/ringrouter", user="daemon").returncode != 0
