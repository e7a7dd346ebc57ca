"""One model as the loop sees it: who has it, who waits for it, and its time-outs in nanoseconds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.config import Config, ModelConfig, model_timeouts

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.request import Request

_NS = 1_000_000_000


class Model:
    """State of one model. ``waiting`` is its waiting room, first come first served."""

    def __init__(self, name: str, model_id: int, config: Config) -> None:
        self.name = name
        self.model_id = model_id
        self.config = config.models.get(name, ModelConfig())
        self.hosts: list[Host] = []
        self.waiting: deque[Request] = deque()
        self.turn = 0
        times = model_timeouts(config, name)
        self.queue_ns = int(times.queue_s * _NS)
        self.connect_ns = int(times.connect_s * _NS)
        self.first_token_ns = int(times.first_token_s * _NS)
        self.idle_ns = int(times.idle_s * _NS)
        self.stall_ns = int(times.client_stall_s * _NS)
        self.total_ns = int(times.total_s * _NS)
        self.heartbeat_ns = int(times.heartbeat_after_s * _NS)
