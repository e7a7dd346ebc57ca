"""What happens in a run: values only, so that it can be written down, replayed, and run through another policy.

Times are milliseconds from the beginning of the run unless a name says otherwise. How a host serves a request stands
with the request, by the number of the attempt, and not with the host: so the same scenario means the same trouble
whatever host a policy chooses.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FateKind = Literal[
    "ok",
    "status",  # an error status
    "die_before_head",
    "die_in_head",
    "die_before_content",  # behind a role-only event
    "die_mid_stream",
    "die_after_finish",  # behind the finish_reason, before [DONE]
    "silent",  # nothing at all, for ever
    "stall",  # nothing any more, in the middle
    "broken_head",
    "broken_chunk",
    "broken_event",
    "early_error",  # an error event before any content
    "error_event",  # one in the middle
    "no_finish",  # a clean end without a finish_reason
    "surplus",  # bytes behind the answer
    "interim",  # 103 before the answer
    "closing",  # connection: close
    "unframed",  # HTTP/1.0, the body ends with the connection
]


class Fate(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one attempt fares. ``at`` is the token at which it goes wrong; ``cut`` how its bytes are cut: 0 whole events,
    1 anywhere, 2 several events at once.
    """

    kind: FateKind = "ok"
    ttft_ms: float = 20.0
    gap_ms: float = 5.0
    tokens: int = 8
    token_bytes: int = 0
    at: int = 3
    status: int = 500
    retry_after: int = 0
    cut: int = 0
    reset: bool = False


class Leave(msgspec.Struct, frozen=True):
    """When a client gives up: ``after_ms`` behind what ``when`` names (``token``: the ``n``-th)."""

    when: Literal["begun", "sent", "head", "token"]
    after_ms: float = 0.0
    n: int = 1
    reset: bool = False


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request of a client. ``pause_ms`` stands between it and the answer before."""

    id: str
    model: str
    endpoint: Literal["chat", "completion", "embeddings", "responses", "models", "broken", "unknown_model"] = "chat"
    stream: bool = True
    pause_ms: float = 0.0
    body_bytes: int = 0
    max_tokens: int = 0
    fates: list[Fate] = []
    leave: Leave | None = None
    pieces: int = 1
    """In how many pieces the request is sent, 5 ms apart."""
    stuck: bool = False
    """The last piece never comes."""
    headers: dict[str, str] = {}
    minor: int = 1
    """HTTP/1.0 or 1.1."""
    session: str = ""


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """One connection after the other with these requests. ``pace``: bytes and milliseconds of each read, if slow."""

    name: str
    at_ms: float
    asks: list[Ask]
    pipelined: bool = False
    pace: tuple[int, float] | None = None
    latency_ms: float = 0.2
    room: int = 65_536


class HostEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A turn in a host's life.

    ``down`` refuses and drops everything, ``up`` ends every trouble, ``frozen`` keeps its sockets open and says
    nothing, ``deaf`` lets nobody connect, ``sick`` fails its probes only, ``failing`` closes on every request though
    its probes are well, ``slow`` takes ``value`` times as long, ``slots`` has ``value`` slots after a restart.
    """

    at_ms: float
    what: Literal["down", "up", "frozen", "deaf", "sick", "failing", "slow", "slots"]
    value: float = 1.0


class Host(msgspec.Struct, frozen=True, omit_defaults=True):
    """A host: its section in the configuration (``toml``) and how it behaves."""

    name: str
    kind: str
    slots: int
    models: list[str]
    toml: str = ""
    latency_ms: float = 0.2
    cancel_ms: float = 0.0
    """How long a cancelled request goes on; -1 to its end."""
    slope: float = 0.0
    """By which share of its time each further request slows every token."""
    keeps: bool = True
    """It keeps connections after a stream."""
    events: list[HostEvent] = []


class Reload(msgspec.Struct, frozen=True):
    """A new configuration while running, with the hosts that it has; the others are taken out."""

    at_ms: float
    toml: str
    hosts: list[Host]


class Scenario(msgspec.Struct, frozen=True):
    """One run. ``toml`` is the router's configuration but for ``[listen]``, ``[rings]`` and the hosts."""

    seed: int
    theme: str
    toml: str
    hosts: list[Host]
    clients: list[Client]
    step_ns: int = 0
    """What one reading of the clock takes."""
    stop_ms: float = 0.0
    """When the router is told to stop; 0 = when all is over."""
    stalls: list[tuple[float, float]] = []
    """When the router's process does not run, and for how long."""
    reloads: list[Reload] = []
