"""The sections of the router process itself."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config.base import (
    Section,
    above_zero,
    between,
    credential_or_nothing,
    named,
    path_or_nothing,
)
from router.telemetry.records import OWN_TAG_COUNT

ZEROMQ_ALLOWED: Final = "`ipc`, `ipc:///path/of.sock` or `tcp://address:port`"


class Listen(Section, frozen=True):
    """`[listen]`: where clients come in and where shared memory lives."""

    http: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "`host:port` or `unix:/path`"})]],
        Meta(min_length=1, description="Addresses of the HTTP API. A single one needs no list."),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1:8400"])
    zeromq: Annotated[
        list[Annotated[str, Meta(extra={"allowed": ZEROMQ_ALLOWED})]],
        Meta(
            description="Endpoints of the ZeroMQ socket: `ipc` is `RUN/INSTANCE/zmq.sock`. A single one needs no list, "
            "an empty list switches it off. TCP is encrypted with a `curve_key_file` only."
        ),
    ] = msgspec.field(default_factory=lambda: ["ipc"])
    run_dir: Annotated[
        str,
        path_or_nothing(
            "Directory of the rings (tmpfs). Empty: `$RUNTIME_DIRECTORY`, else "
            "`$XDG_RUNTIME_DIR/ringrouter`, else `/dev/shm/ringrouter-UID`."
        ),
    ] = ""
    instance: Annotated[str, named("Name of this router below `run_dir`.")] = "main"
    backlog: Annotated[int, between(1, 65535, "Connections the kernel holds before they are accepted.")] = 4096
    plaintext_ok: Annotated[
        bool,
        Meta(
            description="Listen for HTTP at addresses that other machines can reach, with keys and without encryption. "
            "TLS is the job of a proxy in front (docs/security.md)."
        ),
    ] = False
    admin: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "`host:port` or `unix:/path`"})]],
        Meta(
            max_length=8,
            description="Addresses of the admin surface: state in detail, reload, hosts out and in. A unix socket is "
            "open to its owner and to root; elsewhere a key with the role is needed. Empty: there is none.",
        ),
    ] = msgspec.field(default_factory=list)
    unix_users: Annotated[
        list[Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z", extra={"allowed": "users or uids"})]],
        Meta(
            max_length=64,
            description="Who may connect to unix and ipc sockets, beside the router's own user and root: names of "
            "users or numbers. Empty: whom the mode of the socket's file lets in (0660).",
        ),
    ] = msgspec.field(default_factory=list)
    trusted_proxies: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "an address or a network, e.g. `10.0.0.0/8`"})]],
        Meta(
            max_length=64,
            description="Proxies whose `x-forwarded-for` is believed where the log names a client. Nobody else's is.",
        ),
    ] = msgspec.field(default_factory=list)
    curve_key_file: Annotated[
        str,
        path_or_nothing(
            "The router's CURVE keys (`ringrouter keys curve`): ZeroMQ over TCP is encrypted, and only "
            "clients come in whose public key is in `[[keys]]`."
        ),
    ] = ""
    curve_key_credential: Annotated[
        str,
        credential_or_nothing("The same as a credential of systemd (`LoadCredential=`)."),
    ] = ""

    @property
    def has_curve(self) -> bool:
        """Whether ZeroMQ over TCP is encrypted, and its clients are known by their keys."""
        return bool(self.curve_key_file or self.curve_key_credential)


class Limits(Section, frozen=True):
    """`[limits]`: the bound of everything that grows with what clients or hosts send."""

    head_bytes: Annotated[int, between(1024, 1 << 20, "Request line and headers of a request; over it 431.")] = (
        32 * 1024
    )
    body_bytes: Annotated[int, between(1024, 1 << 30, "Body of a request; over it 413.")] = 32 << 20
    connections: Annotated[
        int,
        between(1, 1 << 20, "Open client connections, HTTP and ZeroMQ together; the next is answered 503 or closed."),
    ] = 10_000
    in_flight: Annotated[
        int, between(1, 65_536, "Requests waiting or running, all models together; the next is answered 429.")
    ] = 4096
    waiting: Annotated[int, between(0, 65_536, "Requests waiting per model; the next is answered 429.")] = 1024
    answer_bytes: Annotated[
        int, between(1024, 1 << 30, "A whole (not streamed) or folded answer of a host; over it 502.")
    ] = 32 << 20
    held_bytes: Annotated[
        int,
        between(
            1024, 1 << 20, "Head and role-only events held until the first content; over it the stream is committed."
        ),
    ] = 64 * 1024
    event_bytes: Annotated[int, between(4096, 1 << 26, "One event of a host's stream; over it 502.")] = 4 << 20
    client_buffer_bytes: Annotated[
        int, between(4096, 1 << 26, "Unsent bytes of a stream above which its host is paused.")
    ] = 256 * 1024
    client_resume_bytes: Annotated[int, between(0, 1 << 26, "Unsent bytes at which a paused host is read again.")] = (
        64 * 1024
    )
    pipelined_bytes: Annotated[
        int, between(1024, 1 << 26, "Bytes a client may send ahead while it is being answered; over it 400 and close.")
    ] = 256 * 1024
    attempts: Annotated[
        int, between(1, 4, "Attempts per request and model, the first included; all before the commit point.")
    ] = 3
    retry_share: Annotated[
        float,
        between(
            0, 1, "Retries per model: at most this share of what its hosts answered in the last 10 s, and "
            "`retries_per_s`.",
        ),
    ] = 0.2  # fmt: skip
    retries_per_s: Annotated[
        float, between(0, 10_000, "Retries per model and second that are always allowed, saved up for 10 s.")
    ] = 10.0


class Timeouts(Section, frozen=True):
    """`[timeouts]`: seconds; never early, at most 50 ms late. 0 where said switches one off."""

    head_s: Annotated[float, above_zero(3600, "From the first byte of a request to its last.")] = 10.0
    keep_alive_s: Annotated[float, above_zero(86_400, "An idle connection is closed after this, to the second.")] = 75.0
    queue_s: Annotated[float, above_zero(86_400, "In the waiting room; then 503.")] = 30.0
    connect_s: Annotated[float, above_zero(600, "To connect to a host.")] = 1.0
    first_token_s: Annotated[float, above_zero(86_400, "From the request written to the host's first content.")] = 120.0
    idle_s: Annotated[float, above_zero(86_400, "Between two reads of a stream that has begun.")] = 30.0
    client_stall_s: Annotated[float, above_zero(86_400, "A client that takes no byte for this long is dropped.")] = 30.0
    total_s: Annotated[float, above_zero(604_800, "From the request read to its end.")] = 600.0
    heartbeat_after_s: Annotated[
        float,
        between(0, 86_400, "Silence after which a stream's head and a comment are sent before any content; 0 = never."),
    ] = 15.0
    drain_s: Annotated[float, between(0, 86_400, "How long running streams may go on when the router is stopped.")] = (
        30.0
    )


class TagsConfig(Section, frozen=True):
    """`[tags]`: what requests are labelled with beside the built-in tags."""

    own: Annotated[
        list[
            Annotated[
                str,
                Meta(
                    pattern=r"\A[a-z][a-z0-9_]{0,39}\Z",
                    extra={"allowed": "1 to 40 of `a-z0-9_`, the first a letter"},
                ),
            ]
        ],
        Meta(max_length=OWN_TAG_COUNT, description="Up to 8 tags of your own, sent as `x-ringrouter-tag-NAME`."),
    ] = msgspec.field(default_factory=list)


class Rings(Section, frozen=True):
    """`[rings]`: slots of each ring, powers of two, and rows of the names."""

    requests: Annotated[int, between(64, 1 << 20, "Slots of `requests.ring` (64 bytes each).")] = 4096
    tokens: Annotated[int, between(1024, 1 << 26, "Slots of `tokens.ring` (64 bytes each).")] = 262_144
    done: Annotated[int, between(64, 1 << 22, "Slots of `done.ring` (1,024 bytes each).")] = 16_384
    names: Annotated[int, between(256, 1 << 20, "Rows of `names.tab` (96 bytes each).")] = 32_768


class LoopConfig(Section, frozen=True):
    """`[loop]`: the event loop of the router."""

    wait: Annotated[
        Literal["block", "adaptive", "spin"],
        Meta(
            description="How it waits for events. `block`: asleep. `adaptive`: awake for `spin_us` after each event. "
            "`spin`: always awake, for a router with a core of its own (docs/operations.md)."
        ),
    ] = "block"
    spin_us: Annotated[float, between(1, 100_000, "Microseconds that `adaptive` looks for the next event.")] = 100.0
    slots_shared: Annotated[
        bool,
        Meta(
            description="Other routers with the same `run_dir` use the same hosts: all together never give one more "
            "requests than it has slots, in an upgrade too. Needs the C extension."
        ),
    ] = False
    cycle_threshold_ms: Annotated[
        float, above_zero(60_000, "A callback longer than this counts as a long cycle in `stats`.")
    ] = 10.0


class Log(Section, frozen=True):
    """`[log]`: messages of the router; no prompt, answer or secret is ever in one."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is written.")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json"],
        Meta(description="`auto`: console on a terminal, fields of the journal under systemd, else JSON."),
    ] = "auto"
