"""The default policy in one step: as the policy itself chooses and explains, whatever the hosts are like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import native
from router.config import HostConfig
from router.hosts.host import Host
from router.picking import pick, plain_pick
from router.telemetry import records as rec

needs_native = pytest.mark.skipif(native.steps is None, reason="the native code is not compiled here")
BACKENDS = [plain_pick, *([pick] if native.steps is not None else [])]


class OtherHost(Host):
    """As hosts whose slots are shared are: some of it is told by properties."""

    @property
    def running(self) -> int:
        return self._taken

    @running.setter
    def running(self, count: int) -> None:
        self._taken = count


def host(host_id: int, running: int = 0, slots: int = 4, *, bar: int = 0, draining: int = 0, kind: type = Host) -> Host:
    made: Host = kind(HostConfig(name="h", url="http://127.0.0.1:1"), host_id, 0)
    made.running, made.slots, made.bar, made.usable = running, slots, bar, not bar
    made.draining = [5] * draining
    return made


hosts = st.lists(
    st.builds(
        host,
        st.integers(0, 0xFFFF),
        st.integers(0, 9),
        st.integers(1, 9) | st.integers(1, 1 << 40),
        bar=st.sampled_from([0, 0, 0, 4, 6, 8]),
        draining=st.integers(0, 3),
        kind=st.sampled_from([Host, Host, OtherHost]),
    ),
    max_size=8,
    unique_by=lambda each: each.host_id,
)


@needs_native
@given(hosts=hosts, turn=st.integers(0, 20), unbarred=st.booleans())
def test_both_pick_and_tell_alike(hosts: list[Host], turn: int, unbarred: bool) -> None:
    for each in hosts:
        if unbarred and not each.usable:
            each.bar = 0  # not usable, and nobody says why
    assert pick(hosts, turn) == plain_pick(hosts, turn)


@pytest.mark.parametrize("pick", BACKENDS)
def test_the_least_busy_is_picked_and_the_others_are_told(pick: Any) -> None:
    chosen, record = pick([host(1, 2), host(2, 1), host(3, bar=6), host(4, 4), host(5, 3)], 0)
    assert chosen == 1
    flat = rec.CANDIDATES.unpack(record)
    assert flat == (2, 1, 0.25, 1, 2, 0.5, 3, 6, 0.0, 4, 3, 1.0)


@pytest.mark.parametrize("pick", BACKENDS)
def test_nobody_is_picked_where_nobody_can(pick: Any) -> None:
    assert pick([], 3) == (-1, b"")
    assert pick([host(1, 4), host(2, bar=4), host(3, 3, draining=1)], 1) == (-1, b"")


@pytest.mark.parametrize("pick", BACKENDS)
def test_ties_go_round(pick: Any) -> None:
    three = [host(1), host(2), host(3)]
    assert [pick(three, turn)[0] for turn in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("pick", BACKENDS)
def test_hundreds_of_hosts(pick: Any) -> None:
    many = [host(1 + index, 2) for index in range(300)]
    many[250].running = 1
    assert pick(many, 17)[0] == 250


@needs_native
def test_misuse_is_refused() -> None:
    for wrong in [((), 0), ([], -1), ([], "x"), ([object()], 0), ([host(1 << 16)], 0), ([host(1, slots=0)], 0)]:
        with pytest.raises((TypeError, ValueError, AttributeError)):
            pick(*wrong)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        native.steps.Picker(object())
