"""Outlier ejection, pure: which host of a model does far worse than the others that do the same work.

A host is compared with the median of its peers (the model's other hosts), never with a fixed number: when all are slow,
none is left out. Two measures, each over one interval:

* the share of failed requests: over the peers' median by ``failed_share``
* the median time to the first token: over ``ttft_factor`` times the peers' median *and* over it by ``deviations`` times
  1.4826 times their median absolute deviation (the factor makes it a standard deviation where values are normal)

Medians, because one host that is ill must not move what it is measured by.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from router.config import OutliersConfig

_MAD_TO_DEVIATION: Final = 1.4826
TTFTS_MAX: Final = 256
"""Times that are kept of a host and model, the last ones: enough for a median."""


class Deeds:
    """What one host did for one model in the interval that runs."""

    __slots__ = ("failed", "served", "ttfts_ns")

    def __init__(self) -> None:
        self.served = 0
        self.failed = 0
        self.ttfts_ns: deque[int] = deque(maxlen=TTFTS_MAX)

    @property
    def count(self) -> int:
        """Requests that say something of the host."""
        return self.served + self.failed


def median(values: Sequence[float]) -> float:
    """Return the median of some values, at least one."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def find(deeds: Mapping[int, Deeds], config: OutliersConfig, host_count: int, out_count: int) -> list[tuple[int, str]]:
    """Return hosts to be left out, the worst first, each with the reason in words.

    ``host_count`` hosts have the model, ``out_count`` of them are left out already.
    """
    judged = {host_id: each for host_id, each in deeds.items() if each.count >= config.requests_min}
    if len(judged) < config.hosts_min:
        return []
    found = [each for each in (_verdict(host_id, judged, config) for host_id in judged) if each is not None]
    room = int(config.share_max * host_count) - out_count
    return [(host_id, why) for _, host_id, why in sorted(found, reverse=True)[: max(room, 0)]]


def _verdict(host_id: int, judged: Mapping[int, Deeds], config: OutliersConfig) -> tuple[float, int, str] | None:
    """Return how bad a host is, its id and why; ``None`` for one that is as the others."""
    own = judged[host_id]
    peers = [each for other, each in judged.items() if other != host_id]
    share = own.failed / own.count
    usual_share = median([each.failed / each.count for each in peers])
    if share - usual_share >= config.failed_share:
        return 1e9 + share, host_id, f"{share:.0%} of {own.count} requests failed, {usual_share:.0%} at its peers"
    least = min(config.requests_min, TTFTS_MAX)
    peers_ns = [median(each.ttfts_ns) for each in peers if len(each.ttfts_ns) >= least]
    if len(own.ttfts_ns) < least or len(peers_ns) + 1 < config.hosts_min:
        return None
    own_ns, usual_ns = median(own.ttfts_ns), median(peers_ns)
    deviation_ns = _MAD_TO_DEVIATION * median([abs(each - usual_ns) for each in peers_ns])
    if own_ns <= config.ttft_factor * usual_ns or own_ns <= usual_ns + config.deviations * deviation_ns:
        return None
    text = f"half of its first tokens took over {own_ns / 1e6:.0f} ms, {usual_ns / 1e6:.0f} ms at its peers"
    return own_ns / max(usual_ns, 1.0), host_id, text


def eject_ns(times: int, config: OutliersConfig) -> int:
    """Return for how long a host is left out for the ``times``-th time in a row, 1 is the first."""
    return int(min(config.eject_s * max(times, 1), config.eject_s_max) * 1e9)
