"""Two routers on one port, each an instance of ringrouter@.service, sharing the slots of one host exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.service.site import SLOT_COUNT, Load, Site
from tests.support.scripted_host import PLAIN, json_answer
from tests.support.waiting import wait_until

INSTANCES = ("1", "2")


@pytest.fixture
def two(site: Site) -> Iterator[Site]:
    """Both instances, running."""
    site.reset()
    site.configure(site.toml("[loop]\nslots_shared = true\n"))
    units = [f"ringrouter@{name}.{kind}" for name in INSTANCES for kind in ("socket", "service")]
    site.machine.systemctl("start", *units)
    yield site
    site.machine.systemctl("stop", *units)
    site.machine.try_run("systemctl", "reset-failed")


def test_together_they_never_give_a_host_more_than_its_slots(two: Site) -> None:
    two.host.running_count_max = 0
    answer = json_answer(200, PLAIN)
    for _ in range(600):
        two.host.script(0.004, answer)
    with Load(two.port, 40) as load:  # so many that the kernel gives each router some
        load.wait_for(500, timeout_s=60)
        two.host.forget_scripts()
    assert load.failed == []
    assert two.host.running_count_max == SLOT_COUNT  # all of them, and never one more
    answered = [_counter(two, name, "requests_ok") for name in INSTANCES]
    assert min(answered) > 100, f"one of them keeps the host for itself: {answered}"


def test_what_a_killed_instance_held_is_free_again_and_the_other_serves(two: Site) -> None:
    with Load(two.port, 8) as load:
        load.wait_for(50)
        two.machine.kill("ringrouter@1.service")
        wait_until(lambda: two.machine.show("ringrouter@1.service", "NRestarts") == "1", "it is started again")
        load.wait_for(200)
    assert len(load.failed) <= 8  # at most one for each client, of those the killed one had
    assert not [outcome for outcome in load.failed if outcome.status]
    assert two.host.running_count_max <= SLOT_COUNT


def test_each_has_its_own_rings_and_sockets(two: Site) -> None:
    for name in INSTANCES:
        assert two.machine.ringrouter("stats", "--run-dir", "/run/ringrouter", "--instance", name).returncode == 0
        two.machine.run("test", "-S", f"/run/ringrouter/http-{name}.sock")
        two.machine.run("test", "-S", f"/run/ringrouter/{name}/zmq.sock")


def test_an_upgrade_of_one_keeps_within_the_slots(two: Site) -> None:
    two.host.running_count_max = 0
    for _ in range(400):
        two.host.script(0.004, json_answer(200, PLAIN))
    with Load(two.port, 16) as load:
        load.wait_for(50)
        done = two.machine.ringrouter("service", "upgrade", "--instance", "1")
        assert done.returncode == 0, done.stderr
        load.wait_for(150)
        two.host.forget_scripts()
    assert load.failed == []
    assert two.host.running_count_max <= SLOT_COUNT


def _counter(site: Site, instance: str, name: str) -> int:
    """Return a counter of an instance, as `stats` has it."""
    arguments = ("stats", "--run-dir", "/run/ringrouter", "--instance", instance, "--json")
    counters = json.loads(site.machine.ringrouter(*arguments).stdout)["rings"]["counters"]
    return next(int(each["value"]) for each in counters if each["name"] == name)
