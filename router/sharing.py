"""A loop and hosts that share slots with other routers of the machine (``loop.slots_shared``): loaded only then.

What runs or drains here stands in this router's row of the table; what runs elsewhere counts as taken. A request that
is routed and then finds the host full, because another router was faster, goes back to the head of its waiting room.
While anything waits all hosts are looked at again every 1 to 5 ms: nobody tells when a slot elsewhere is free. Who
waits is told to the others, who then leave it an even share.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from router.hosts.host import Host
from router.hosts.shared_slots import SlotTable
from router.loop import Loop
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from router.request import Request
    from router.routing import Candidate

_RETRY_S: Final = (0.001, 0.005)


class SharedHost(Host):
    """A host whose slots other routers use too."""

    def __init__(self, config: Any, host_id: int, index: int, table: SlotTable) -> None:
        self._table = table
        self.column = table.column(config.url)
        """Of the table: that of its address, which another host of this router may have too."""
        self._told = 0
        self._running = 0
        self.draining = []
        self.lost_out = False
        """Another router was faster: this one leaves the host alone until its next try."""
        super().__init__(config, host_id, index)

    @property
    def running(self) -> int:
        """Requests of this router that the host works on."""
        return self._running

    @running.setter
    def running(self, count: int) -> None:
        self._running = count
        self._tell()

    @property
    def busy(self) -> int:
        """Slots that requests of this router take."""
        return self._running + len(self.draining)

    @property
    def free_slots(self) -> int:
        """Slots a request may take now, as far as can be seen."""
        if self.lost_out:
            return 0
        return min(self._table.room(self.column, self.facts.slot_count), self.slots - self.busy)

    def taken_elsewhere(self) -> int:
        """Return the slots that this router cannot have now."""
        return self.slots - self.busy - self.free_slots

    def take(self) -> bool:
        """Whether the slots this router says it takes are within what the host has, with all others'."""
        return self._table.take(self.column, self._counted(), self.facts.slot_count)

    def _counted(self) -> int:
        """Return the requests of this router at the host's address, those of this host as they are now."""
        counts, busy = self._table.counts, self.busy
        counts[self.column] += busy - self._told
        self._told = busy
        return counts[self.column]

    def _tell(self) -> None:
        self._table.give(self.column, self._counted())

    def drain_slot(self, until_ns: int) -> None:
        """Count a cancelled request's slot as taken until ``until_ns``."""
        super().drain_slot(until_ns)
        self._tell()

    def expire_draining(self, now_ns: int) -> bool:
        """Free the slots whose grace is over; return whether there was one."""
        freed = super().expire_draining(now_ns)
        if freed:
            self._tell()
        return freed


class SharingLoop(Loop):
    """A loop whose hosts are all :class:`SharedHost`."""

    def __init__(self, *parts: Any, table: SlotTable) -> None:
        super().__init__(*parts)
        self._table = table
        self._said_waiting: set[int] = set()
        """Columns of which the others know that requests wait here."""
        self._retry_timer: asyncio.TimerHandle | None = None

    def place(self, request: Request, now: int) -> None:
        """Have a request run, wait or be refused; never without a closer look: a host alone does not tell what other
        routers take of it.
        """
        self._admit(request, now)

    def _candidates(self, request: Request) -> list[Candidate]:
        found = super()._candidates(request)
        return [(each[0], each[1] + self._shared(each[0]).taken_elsewhere(), *each[2:]) for each in found]

    def _shared(self, host_id: int) -> SharedHost:
        host = self.host_of[host_id]
        assert isinstance(host, SharedHost)
        return host

    def connect(self, request: Request, host: Host, *, fresh: bool = False) -> bool:
        """Start an attempt as :class:`Loop` does, or have the request wait where another router was faster."""
        assert isinstance(host, SharedHost)
        if fresh or host.take():  # a request that goes out anew has its slot
            return super().connect(request, host, fresh=fresh)
        host.lost_out = True
        host.running -= 1
        if request.model.policy is not None:
            request.model.policy.ended(host.host_id, request.ask)
        request.attempt_count -= 1
        if not request.attempt_count:  # it has not left the waiting room
            request.admitted = request.routed1 = request.routed = request.host = 0
        self.counters.add(Counter.SLOTS_LOST)
        self._wait(request, first=True)
        return False

    def _wait(self, request: Request, *, first: bool = False) -> None:
        super()._wait(request, first=first)
        self._say_waiting()
        if self._retry_timer is None:
            self._retry_later()

    def _say_waiting(self) -> None:
        """Tell the other routers for which hosts requests wait here."""
        columns, table = set(), self._table
        for host in self.hosts:
            assert isinstance(host, SharedHost)
            if host.usable and any(self.models[name].waiting.size for name in host.models if name in self.models):
                columns.add(host.column)
        for column in columns ^ self._said_waiting:
            table.say_waiting(column, table.counts[column], waiting=column in columns)
        self._said_waiting = columns

    def _retry_later(self) -> None:
        delay_s = random.uniform(*_RETRY_S)  # noqa: S311 - so that two do not meet again
        self._retry_timer = asyncio.get_running_loop().call_later(delay_s, self._try_again)

    def _try_again(self) -> None:
        self._retry_timer = None
        now = monotonic_ns()
        for host in self.hosts:
            assert isinstance(host, SharedHost)
            host.lost_out = False
            self.pump(host, now)
        self._say_waiting()
        if self.waiting_count and self._retry_timer is None:
            self._retry_later()
