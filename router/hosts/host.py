"""One model host as the loop sees it: slots, health, models and idle connections. The loop is the only writer."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from router.config import HostConfig, host_address
from router.hosts.kinds import KINDS, Facts
from router.hosts.spares import SpareTarget

if TYPE_CHECKING:
    from router.hosts.connection import HostConnection


class Host:
    """State of one host. ``host_id`` is its id in records (1 is the first), ``running`` the requests it works on."""

    def __init__(self, config: HostConfig, host_id: int, index: int) -> None:
        self.config = config
        self.name = config.name
        self.host_id = host_id
        self.address = host_address(config.url, f"hosts[{index}].url")
        self.resolved: tuple[str, int] | str | None = self.address if isinstance(self.address, str) else None
        self.kind = config.kind
        self.facts: Facts = KINDS["openai"]
        self.models: dict[str, str] = {}
        """Name for clients → name at the host."""
        self.probed = False
        self.healthy = False
        self.failures = 0
        """Requests in a row that it did not serve."""
        self.probe_failures = 0
        self.running = 0
        self.draining: list[int] = []
        """When each cancelled request frees its slot at the host, as a heap of times in ns."""
        self.idle: list[HostConnection] = []
        """Connections ready for use, the newest last."""
        self.connecting = 0
        self.spares = SpareTarget()
        self.heads: dict[bytes, bytes] = {}
        self.last_error = ""
        self.bar = 0
        """Why it cannot be used, a :class:`router.routing.Reason`; 0 while it can."""

    @property
    def free_slots(self) -> int:
        """Slots a request may take now."""
        return self.facts.slot_count - self.running - len(self.draining)

    def drain_slot(self, until_ns: int) -> None:
        """Count a cancelled request's slot as taken until ``until_ns``."""
        heapq.heappush(self.draining, until_ns)

    def expire_draining(self, now_ns: int) -> bool:
        """Free the slots whose grace is over; return whether there was one."""
        freed = False
        while self.draining and self.draining[0] <= now_ns:
            heapq.heappop(self.draining)
            freed = True
        return freed

    def request_head(self, target: bytes) -> bytes:
        """Return the constant part of a request's head, up to the headers that differ."""
        head = self.heads.get(target)
        if head is None:
            host = "localhost" if isinstance(self.address, str) else f"{self.address[0]}:{self.address[1]}"
            more = f"host: {host}\r\ncontent-type: application/json\r\n".encode() + self.authorization()
            head = b"POST %b HTTP/1.1\r\n%b" % (target, more)
            if b"?" not in target:  # paths are few, queries without end
                self.heads[target] = head
        return head

    def authorization(self) -> bytes:
        """Return the header line with the host's own key, empty without one."""
        key = self.config.api_key()
        return b"authorization: Bearer %b\r\n" % key.encode() if key else b""
