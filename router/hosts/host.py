"""One model host as the loop sees it: slots, standing, models and idle connections. The loop is the only writer.

Whether it may get requests is decided in :mod:`router.hosts.standing`, which keeps ``usable``, ``bar`` and ``slots`` up
to date; the path only reads them.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import msgspec

from router.config import HostConfig, host_address
from router.hosts.kinds import KINDS, Facts, facts_of
from router.hosts.spares import SpareTarget
from router.routing import Reason

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.hosts.breaker import Breaker
    from router.hosts.connection import HostConnection
    from router.tracing import Tracer


class Host:
    """State of one host. ``host_id`` is its id in records (1 is the first), ``running`` the requests it works on."""

    # Beyond 30 attributes the interpreter keeps those of an object in a dictionary of its own: slower at each look.
    __slots__ = (
        "address", "bar", "breaker", "config", "connect_failures", "connecting", "drained_at_ns", "draining",
        "drains", "ejected_until_ns", "ejections", "facts", "heads", "healthy", "held", "host_id", "idle", "is_empty",
        "kind", "last_error", "models", "name", "named_models", "on_trial", "probe_failures", "probed",
        "probed_slots", "queue", "removed", "resolved", "running", "served_count", "slots", "slow_since_ns",
        "spares", "tracer", "usable", "was_healthy",
    )  # fmt: skip

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
        self.named_models: dict[str, str] = {}
        """``models`` as the host told them, empty where it was not asked."""
        self.probed_slots = 0
        """Slots as the host told them, 0 where it did not."""
        self.probed = False
        self._begin_standing()
        self.running = 0
        self.draining: list[int] = []
        """When each cancelled request frees its slot at the host, as a heap of times in ns."""
        self.idle: list[HostConnection] = []
        """Connections ready for use, the newest last."""
        self.connecting = 0
        self.queue: list[Attempt] = []
        """Attempts that wait for a connection; whichever comes first serves the first."""
        self.spares = SpareTarget()
        self.heads: dict[bytes, bytes] = {}
        self.tracer: Tracer | None = None
        """Tells it which span a request is part of, where traces are exported."""
        self.last_error = ""

    def _begin_standing(self) -> None:
        """Begin as a host that was not probed yet; all of this is :mod:`router.hosts.standing`'s from then on."""
        self.usable = False
        """Whether new requests may go there: whether there is no ``bar``."""
        self.bar = int(Reason.UNHEALTHY)
        """Why no new request may go there, a :class:`router.routing.Reason`; 0: it may."""
        self.slots = self.facts.slot_count
        """Slots that may be used now: fewer than it has while it comes back. Never 0."""
        self.on_trial = False
        """Its breaker is half open: each answer of it counts."""
        self.healthy = False
        """What probes say of it."""
        self.was_healthy = False
        """Whether it ever was, so that one that is there for the first time can be told from one that comes back."""
        self.breaker: Breaker | None = None
        self.connect_failures = 0
        """Connects in a row that failed."""
        self.probe_failures = 0
        self.served_count = 0
        """Requests that it answered."""
        self.ejected_until_ns = 0
        self.ejections = 0
        """Times it was left out lately for being far worse than its peers: the next time is longer."""
        self.slow_since_ns = 0
        """Since when it gets its slots bit by bit, 0 = it has them all."""
        self.held = False
        """An operator has taken it out by the admin surface: no reload puts it back."""
        self.drains = False
        """It is taken out of service: what runs there may end."""
        self.drained_at_ns = 0
        """When what still runs on a host that drains is broken off."""
        self.is_empty = False
        """It drains, and it was told that nothing runs there any more."""
        self.removed = False
        """It is in the configuration no more."""

    @property
    def free_slots(self) -> int:
        """Slots a request may take now."""
        return self.slots - self.running - len(self.draining)

    def taken_elsewhere(self) -> int:
        """Return the slots that other routers take: none where they are not shared."""
        return 0

    def configure(self, config: HostConfig, index: int) -> None:
        """Take over other settings of a host at the same address.

        What it was not asked before and must be now, models, slots or its kind, is asked by the next probe.
        """
        is_of_kind = config.kind == self.config.kind
        self.config = config
        self.address = host_address(config.url, f"hosts[{index}].url")
        self.heads.clear()
        if not self.probed:
            return
        kind = self.kind if is_of_kind or config.kind == "auto" else config.kind
        self.take_facts(kind, self.named_models, self.probed_slots)
        has_slots = bool(config.slots or self.probed_slots or not self.facts.slots_path)
        self.probed = is_of_kind and bool(self.models) and has_slots

    def take_facts(self, kind: str, named_models: dict[str, str], slot_count: int) -> None:
        """Take over what a host told of itself, as far as its settings do not say otherwise; 0 slots: it told none."""
        config = self.config
        self.kind = kind  # type: ignore[assignment]
        self.named_models, self.probed_slots = named_models, slot_count
        facts = facts_of(kind, config)
        if slot_count and config.slots is None:
            facts = msgspec.structs.replace(facts, slot_count=slot_count)
        self.facts = facts
        own = config.models
        given = dict(own) if isinstance(own, dict) else {name: name for name in own}
        self.models = given or named_models or self.models

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
