"""The configuration: a TOML file decoded into strict structs.

Unknown keys are refused, every value has bounds, and an error names the key, the value and what is allowed. The
description of each key stands beside it and is what docs/configuration.md is made of
(``python -m router.config_reference``).
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config_schema import explain, shown
from router.errors import ConfigError
from router.telemetry.records import OWN_TAG_COUNT, TAGS, TEXT_TAGS

CONFIG_VERSION: Final = 1

# Names become directories and header values: no "..", no line end. \Z, because $ would let a final line end pass.
_NAME: Final = r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z"
_NAME_ALLOWED: Final = {"allowed": "1 to 64 of `A-Za-z0-9_.-`, not beginning with `.` or `-`"}
_SUN_PATH_BYTES_MAX: Final = 107
"""Of ``sockaddr_un``, less its NUL."""
_ZEROMQ_ALLOWED: Final = "`ipc`, `ipc:///path/of.sock` or `tcp://address:port`"
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
SLICE_ALLOWED: Final = "a tag, `model`, `host`, `endpoint` or `instance`, or two of them with a comma between"
SLICE_FIELDS: Final = ("model", "host", "endpoint", "instance")
"""What requests can be told apart by beside their tags."""
SLICE_TAG_COUNT_MAX: Final = 2
"""Of three tags there are more combinations than requests: that is a question for the journal."""
DEFAULT_SLICES: Final = (
    *("model", "host", "feature_name", "prompt_version", "channel", "device_type", "network_type", "workload_class"),
    *("variant", "channel,device_type", "feature_name,device_type", "feature_name,prompt_version"),
)


def _between(least: float, most: float, description: str) -> Meta:
    return Meta(ge=least, le=most, description=description)


def _above_zero(most: float, description: str) -> Meta:
    return Meta(gt=0, le=most, description=description)


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Base of all sections: unknown keys are an error, values never change."""


class Listen(_Section, frozen=True):
    """`[listen]`: where clients come in and where shared memory lives."""

    http: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "`host:port` or `unix:/path`"})]],
        Meta(min_length=1, description="Addresses of the HTTP API. A single one needs no list."),
    ] = msgspec.field(default_factory=lambda: ["127.0.0.1:8400"])
    zeromq: Annotated[
        list[Annotated[str, Meta(extra={"allowed": _ZEROMQ_ALLOWED})]],
        Meta(
            description="Endpoints of the ZeroMQ socket: `ipc` is `RUN/INSTANCE/zmq.sock`. A single one needs no list, "
            "an empty list switches it off. TCP has neither encryption nor keys."
        ),
    ] = msgspec.field(default_factory=lambda: ["ipc"])
    run_dir: Annotated[
        str,
        Meta(
            pattern=r"\A(/.*)?\Z",
            extra={"allowed": "an absolute path or nothing"},
            description="Directory of the rings (tmpfs). Empty: `$RUNTIME_DIRECTORY`, else "
            "`$XDG_RUNTIME_DIR/ringrouter`, else `/dev/shm/ringrouter-UID`.",
        ),
    ] = ""
    instance: Annotated[
        str, Meta(pattern=_NAME, extra=_NAME_ALLOWED, description="Name of this router below `run_dir`.")
    ] = "main"
    backlog: Annotated[int, _between(1, 65535, "Connections the kernel holds before they are accepted.")] = 4096


class Limits(_Section, frozen=True):
    """`[limits]`: the bound of everything that grows with what clients or hosts send."""

    head_bytes: Annotated[int, _between(1024, 1 << 20, "Request line and headers of a request; over it 431.")] = (
        32 * 1024
    )
    body_bytes: Annotated[int, _between(1024, 1 << 30, "Body of a request; over it 413.")] = 32 << 20
    connections: Annotated[
        int,
        _between(1, 1 << 20, "Open client connections, HTTP and ZeroMQ together; the next is answered 503 or closed."),
    ] = 10_000
    in_flight: Annotated[
        int, _between(1, 65_536, "Requests waiting or running, all models together; the next is answered 429.")
    ] = 4096
    waiting: Annotated[int, _between(0, 65_536, "Requests waiting per model; the next is answered 429.")] = 1024
    answer_bytes: Annotated[
        int, _between(1024, 1 << 30, "A whole (not streamed) or folded answer of a host; over it 502.")
    ] = 32 << 20
    held_bytes: Annotated[
        int,
        _between(
            1024, 1 << 20, "Head and role-only events held until the first content; over it the stream is committed."
        ),
    ] = 64 * 1024
    event_bytes: Annotated[int, _between(4096, 1 << 26, "One event of a host's stream; over it 502.")] = 4 << 20
    client_buffer_bytes: Annotated[
        int, _between(4096, 1 << 26, "Unsent bytes of a stream above which its host is paused.")
    ] = 256 * 1024
    client_resume_bytes: Annotated[int, _between(0, 1 << 26, "Unsent bytes at which a paused host is read again.")] = (
        64 * 1024
    )
    pipelined_bytes: Annotated[
        int, _between(1024, 1 << 26, "Bytes a client may send ahead while it is being answered; over it 400 and close.")
    ] = 256 * 1024
    attempts: Annotated[
        int, _between(1, 4, "Attempts per request at a host, the first included; all before the commit point.")
    ] = 3


class Timeouts(_Section, frozen=True):
    """`[timeouts]`: seconds; never early, at most 50 ms late. 0 where said switches one off."""

    head_s: Annotated[float, _above_zero(3600, "From the first byte of a request to its last.")] = 10.0
    keep_alive_s: Annotated[float, _above_zero(86_400, "An idle connection is closed after this, to the second.")] = (
        75.0
    )
    queue_s: Annotated[float, _above_zero(86_400, "In the waiting room; then 503.")] = 30.0
    connect_s: Annotated[float, _above_zero(600, "To connect to a host.")] = 1.0
    first_token_s: Annotated[float, _above_zero(86_400, "From the request written to the host's first content.")] = (
        120.0
    )
    idle_s: Annotated[float, _above_zero(86_400, "Between two reads of a stream that has begun.")] = 30.0
    client_stall_s: Annotated[float, _above_zero(86_400, "A client that takes no byte for this long is dropped.")] = (
        30.0
    )
    total_s: Annotated[float, _above_zero(604_800, "From the request read to its end.")] = 600.0
    heartbeat_after_s: Annotated[
        float,
        _between(
            0, 86_400, "Silence after which a stream's head and a comment are sent before any content; 0 = never."
        ),
    ] = 15.0
    drain_s: Annotated[float, _between(0, 86_400, "How long running streams may go on when the router is stopped.")] = (
        30.0
    )


class ModelTimeouts(_Section, frozen=True):
    """`[models.NAME.timeouts]`: the same as `[timeouts]`, for one model."""

    queue_s: Annotated[float, _above_zero(86_400, "As `timeouts.queue_s`.")] | None = None
    connect_s: Annotated[float, _above_zero(600, "As `timeouts.connect_s`.")] | None = None
    first_token_s: Annotated[float, _above_zero(86_400, "As `timeouts.first_token_s`.")] | None = None
    idle_s: Annotated[float, _above_zero(86_400, "As `timeouts.idle_s`.")] | None = None
    client_stall_s: Annotated[float, _above_zero(86_400, "As `timeouts.client_stall_s`.")] | None = None
    total_s: Annotated[float, _above_zero(604_800, "As `timeouts.total_s`.")] | None = None
    heartbeat_after_s: Annotated[float, _between(0, 86_400, "As `timeouts.heartbeat_after_s`.")] | None = None


class TagsConfig(_Section, frozen=True):
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


class Rings(_Section, frozen=True):
    """`[rings]`: slots of each ring, powers of two, and rows of the names."""

    requests: Annotated[int, _between(64, 1 << 20, "Slots of `requests.ring` (64 bytes each).")] = 4096
    tokens: Annotated[int, _between(1024, 1 << 26, "Slots of `tokens.ring` (64 bytes each).")] = 262_144
    done: Annotated[int, _between(64, 1 << 22, "Slots of `done.ring` (1,024 bytes each).")] = 16_384
    names: Annotated[int, _between(256, 1 << 20, "Rows of `names.tab` (96 bytes each).")] = 32_768


class HostFacts(_Section, frozen=True):
    """`[hosts.facts]`: what the router believes of a host, where it should not take the kind's word."""

    reuse_after_stream: (
        Annotated[bool, Meta(description="The host keeps a connection after a streamed answer.")] | None
    ) = None
    idle_close_s: Annotated[float, _above_zero(3600, "Age at which an idle connection is given up.")] | None = None
    cancels_whole_answers: (
        Annotated[bool, Meta(description="The host stops generating when the client of a not-streamed answer leaves.")]
        | None
    ) = None
    cancel_grace_ms: (
        Annotated[float, _between(0, 600_000, "How long a cancelled request still holds its slot at the host.")] | None
    ) = None
    progress: (
        Annotated[bool, Meta(description="Ask for prefill progress, so that a host notices a client that left.")] | None
    ) = None
    include_usage: Annotated[bool, Meta(description="Ask for usage at the end of streams.")] | None = None
    request_id_header: Annotated[bool, Meta(description="Send `x-request-id` to the host.")] | None = None
    trace_headers: Annotated[bool, Meta(description="Send `traceparent` and `tracestate` to the host.")] | None = None
    paths: Annotated[
        list[
            Annotated[
                str,
                Meta(
                    pattern=r"\A/[!-\"$->@-~]*\Z", extra={"allowed": "a path that begins with `/`, without `?` or `#`"}
                ),
            ]
        ]
        | None,
        Meta(description="Further paths that take POST and pass through to this host, in place of the kind's own."),
    ] = None
    health_path: (
        Annotated[
            str,
            Meta(
                pattern=r"\A/[!-~]*\Z",
                extra={"allowed": "a path that begins with `/`"},
                description="Path that answers 200 when the host can serve.",
            ),
        ]
        | None
    ) = None


class HostConfig(_Section, frozen=True):
    """`[[hosts]]`: one model host."""

    name: Annotated[str, Meta(pattern=_NAME, extra=_NAME_ALLOWED, description="Name in headers, records and `stats`.")]
    url: Annotated[
        str,
        Meta(
            pattern=r"\A(http://[!-~]+|unix:///.*)\Z",
            extra={"allowed": "`http://host:port` or `unix:///path/of.sock`"},
            description="Where it listens.",
        ),
    ]
    kind: Annotated[
        Literal["auto", "llama.cpp", "vllm", "sglang", "ollama", "openai"],
        Meta(description="What serves there; `auto` asks it."),
    ] = "auto"
    models: Annotated[
        list[str] | dict[str, str],
        Meta(
            extra={"allowed": "a list of names, or a table of `name for clients = name at the host`"},
            description="Models it has. Empty: the host is asked.",
        ),
    ] = msgspec.field(default_factory=list)
    slots: (
        Annotated[int, _between(1, 65_536, "Requests it runs at once. Absent: probed, else the kind's number.")] | None
    ) = None
    api_key_env: Annotated[
        str,
        Meta(
            extra={"allowed": "the name of an environment variable, or nothing"},
            description="Where the key is found that the host wants as `authorization: Bearer`.",
        ),
    ] = ""
    cost_per_hour: (
        Annotated[
            float,
            _between(0, 1e6, "What it costs an hour with all its GPUs, in `observer.currency`. Absent: not known."),
        ]
        | None
    ) = None
    facts: Annotated[HostFacts, Meta(description="Overrides of what the router believes of this host.")] = (
        msgspec.field(default_factory=HostFacts)
    )

    def api_key(self) -> str:
        """Return the key from the environment, empty without one. It is never logged and never in an error."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""


class ModelConfig(_Section, frozen=True):
    """`[models.NAME]`: how one model is served."""

    stream_by_default: Annotated[bool, Meta(description="A request without `stream` is streamed.")] = False
    fold: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="A not-streamed chat or completion is asked for as a stream and folded into the plain answer; "
            "`auto`: where the host cancels only streams."
        ),
    ] = "auto"
    timeouts: Annotated[ModelTimeouts, Meta(description="Time-outs of this model.")] = msgspec.field(
        default_factory=ModelTimeouts
    )


class Health(_Section, frozen=True):
    """`[health]`: active probes and passive marking."""

    interval_s: Annotated[float, _between(0.05, 3600, "Between two probes of a host's health path.")] = 2.0
    timeout_s: Annotated[float, _between(0.05, 600, "A probe without an answer counts as failed.")] = 2.0
    fail_after: Annotated[
        int, _between(1, 1000, "Consecutive failures (probes, connects, broken answers) that mark a host unhealthy.")
    ] = 2


class LoopConfig(_Section, frozen=True):
    """`[loop]`: the event loop of the router."""

    wait: Annotated[
        Literal["block", "adaptive", "spin"],
        Meta(
            description="How it waits for events. `block`: asleep. `adaptive`: awake for `spin_us` after each event. "
            "`spin`: always awake, for a router with a core of its own (docs/operations.md)."
        ),
    ] = "block"
    spin_us: Annotated[float, _between(1, 100_000, "Microseconds that `adaptive` looks for the next event.")] = 100.0
    cycle_threshold_ms: Annotated[
        float, _above_zero(60_000, "A callback longer than this counts as a long cycle in `stats`.")
    ] = 10.0


class Log(_Section, frozen=True):
    """`[log]`: messages of the router; no prompt, answer or secret is ever in one."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is written.")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "json"], Meta(description="`auto`: console on a terminal, else JSON.")
    ] = "auto"


class Slices(_Section, frozen=True):
    """`[observer.slices]`: what the observer keeps apart in its percentiles, beside the total."""

    tags: Annotated[
        list[Annotated[str, Meta(extra={"allowed": SLICE_ALLOWED})]],
        Meta(max_length=32, description="Each value, or pair of values, has percentiles of its own."),
    ] = msgspec.field(default_factory=lambda: list(DEFAULT_SLICES))
    values_max: Annotated[
        int, _between(8, 4096, "Slices of one entry of `tags`; what comes later is counted as `__other__`.")
    ] = 128
    top: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "the name of a tag"})]],
        Meta(max_length=8, description="Tags of which only the busiest values are kept, however many there are."),
    ] = msgspec.field(default_factory=lambda: ["user_id", "session_id", "batch_id"])
    top_count: Annotated[int, _between(1, 10_000, "Values kept of each of them.")] = 100


class JournalConfig(_Section, frozen=True):
    """`[observer.journal]`: one row for each finished request, on disk, for `report` and `query`."""

    enabled: Annotated[bool, Meta(description="Write it.")] = True
    fsync_s: Annotated[
        float, _between(0, 60, "The longest that a row waits for the disk; 0 = each batch is forced to it at once.")
    ] = 1.0
    keep_days: Annotated[float, _above_zero(36_500, "Rows older than this are deleted.")] = 30.0
    keep_bytes: Annotated[int, _between(1 << 20, 1 << 50, "Over it the oldest rows are deleted.")] = 4 << 30


class Price(_Section, frozen=True):
    """`[[observer.prices]]`: what a model costs that is paid for by the token, per million tokens."""

    model: Annotated[str, Meta(description="Name of the model as clients ask for it; `*` stands for any characters.")]
    input: Annotated[float, _between(0, 1e6, "Tokens of the prompt.")]
    output: Annotated[float, _between(0, 1e6, "Tokens of the answer.")]
    cached_input: (
        Annotated[float, _between(0, 1e6, "Tokens of the prompt that the host had in its cache. Absent: as `input`.")]
        | None
    ) = None
    reasoning: (
        Annotated[float, _between(0, 1e6, "Tokens of the reasoning, where reported apart. Absent: as `output`.")] | None
    ) = None


class Goodput(_Section, frozen=True):
    """`[[observer.goodput]]`: what a good answer is; one that failed is never good."""

    workload_class: Annotated[str, Meta(description="Requests with this tag; empty: all that have no entry.")] = ""
    ttft_s: Annotated[float, _above_zero(3600, "Longest time to the first token.")] | None = None
    tpot_s: Annotated[float, _above_zero(3600, "Longest mean time per further token.")] | None = None
    e2e_s: Annotated[float, _above_zero(86_400, "Longest time to the end of the answer.")] | None = None


class ObserverConfig(_Section, frozen=True):
    """`[observer]`: the process beside the router that makes metrics, costs and a journal of what it did."""

    enabled: Annotated[bool, Meta(description="`ringrouter run` starts it.")] = True
    http: Annotated[
        str,
        Meta(
            extra={"allowed": "`host:port` or `unix:/path`"},
            description="Address of `/metrics`, `/healthz` and `/state.json`. It has no keys: leave it on loopback.",
        ),
    ] = "127.0.0.1:8401"
    data_dir: Annotated[
        str,
        Meta(
            pattern=r"\A(/.*)?\Z",
            extra={"allowed": "an absolute path or nothing"},
            description="Directory of the journal and of the positions in the rings (on disk). Empty: "
            "`$STATE_DIRECTORY`, else `$XDG_STATE_HOME/ringrouter`, else `~/.local/state/ringrouter`.",
        ),
    ] = ""
    instances: Annotated[
        list[Annotated[str, Meta(pattern=_NAME, extra=_NAME_ALLOWED)]],
        Meta(max_length=256, description="Routers below `listen.run_dir` to observe; empty: all that are there."),
    ] = msgspec.field(default_factory=list)
    currency: Annotated[
        str, Meta(pattern=r"\A[A-Z]{3}\Z", extra={"allowed": "three letters `A-Z`"}, description="Of every cost.")
    ] = "USD"
    slices: Slices = msgspec.field(default_factory=Slices)
    journal: JournalConfig = msgspec.field(default_factory=JournalConfig)
    prices: list[Price] = msgspec.field(default_factory=list)
    goodput: list[Goodput] = msgspec.field(default_factory=list)


class Config(_Section, frozen=True):
    """The whole file."""

    version: Annotated[Literal[1], Meta(description="Version of this file's format.")]
    listen: Listen = msgspec.field(default_factory=Listen)
    limits: Limits = msgspec.field(default_factory=Limits)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    tags: TagsConfig = msgspec.field(default_factory=TagsConfig)
    rings: Rings = msgspec.field(default_factory=Rings)
    health: Health = msgspec.field(default_factory=Health)
    loop: LoopConfig = msgspec.field(default_factory=LoopConfig)
    log: Log = msgspec.field(default_factory=Log)
    observer: ObserverConfig = msgspec.field(default_factory=ObserverConfig)
    hosts: list[HostConfig] = msgspec.field(default_factory=list)
    models: dict[str, ModelConfig] = msgspec.field(default_factory=dict)


def model_timeouts(config: Config, model_name: str) -> Timeouts:
    """Return the time-outs of a model: its own where given, the general ones elsewhere."""
    model = config.models.get(model_name)
    if model is None:
        return config.timeouts
    own = {f: v for f in model.timeouts.__struct_fields__ if (v := getattr(model.timeouts, f)) is not None}
    return msgspec.structs.replace(config.timeouts, **own)


def load(path: Path | str, *, need_keys: bool = True) -> Config:
    """Read and check a configuration file; raises :class:`ConfigError` with the file's name before each message.

    ``need_keys`` false leaves out whether the hosts' keys are in the environment: only the router itself needs them.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        return parse(text, need_keys=need_keys)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(text: str, *, need_keys: bool = True) -> Config:
    """Decode and check the text of a configuration, as :func:`load` does with a file; raises :class:`ConfigError`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    if "version" not in raw:
        raise ConfigError(f"version is missing: begin the file with `version = {CONFIG_VERSION}`")
    listen = raw.get("listen")
    for key in ("http", "zeromq"):
        if isinstance(listen, dict) and isinstance(listen.get(key), str):
            listen[key] = [listen[key]]
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError:
        raise ConfigError(explain(Config, raw)) from None
    _check(config)
    if need_keys:
        _check_keys(config.hosts)
    return config


def _check(config: Config) -> None:
    """Check what one value alone cannot show."""
    _check_rings(config.rings)
    limits = config.limits
    if limits.client_resume_bytes >= limits.client_buffer_bytes:
        raise ConfigError(
            f"limits.client_resume_bytes = {limits.client_resume_bytes}: "
            f"expected less than limits.client_buffer_bytes ({limits.client_buffer_bytes})"
        )
    for index, own in enumerate(config.tags.own):
        if own in TAGS or own in TEXT_TAGS:
            raise ConfigError(f"tags.own[{index}] = {shown(own)}: expected a name that is not a built-in tag")
        if own in config.tags.own[:index]:
            raise ConfigError(f"tags.own[{index}] = {shown(own)}: expected names that differ, this one stands twice")
    for index, address in enumerate(config.listen.http):
        split_address(address, f"listen.http[{index}]")
    for index, endpoint in enumerate(config.listen.zeromq):
        zeromq_endpoint(config, endpoint, f"listen.zeromq[{index}]")
    _check_hosts(config.hosts)
    _check_observer(config)


def _check_rings(rings: Rings) -> None:
    for ring in ("requests", "tokens", "done"):  # the append-only names have no wrap, hence any number of rows
        slots = getattr(rings, ring)
        if slots & (slots - 1):
            below = 1 << (slots.bit_length() - 1)
            raise ConfigError(f"rings.{ring} = {slots}: expected a power of two, e.g. {below} or {2 * below}")


def _check_hosts(hosts: list[HostConfig]) -> None:
    seen: dict[str, int] = {}
    for index, host in enumerate(hosts):
        if host.name in seen:
            raise ConfigError(
                f"hosts[{index}].name = {shown(host.name)}: "
                f"expected names that differ, hosts[{seen[host.name]}] has it too"
            )
        seen[host.name] = index
        host_address(host.url, f"hosts[{index}].url")


def _check_observer(config: Config) -> None:
    observer = config.observer
    split_address(observer.http, "observer.http")
    tags = {*TAGS, *TEXT_TAGS, *config.tags.own}
    _check_differ(observer.slices.tags, "observer.slices.tags")
    _check_differ(observer.slices.top, "observer.slices.top")
    for index, entry in enumerate(observer.slices.tags):
        names = entry.split(",")
        known = all(name in tags or name in SLICE_FIELDS for name in names)
        if not known or len(set(names)) != len(names) or len(names) > SLICE_TAG_COUNT_MAX:
            raise ConfigError(f"observer.slices.tags[{index}] = {shown(entry)}: expected {SLICE_ALLOWED}")
    for index, name in enumerate(observer.slices.top):
        if name not in tags:
            raise ConfigError(f"observer.slices.top[{index}] = {shown(name)}: expected the name of a tag")
    _check_differ([price.model for price in observer.prices], "observer.prices", ".model")
    _check_differ([goodput.workload_class for goodput in observer.goodput], "observer.goodput", ".workload_class")
    for index, goodput in enumerate(observer.goodput):
        if goodput.ttft_s is None and goodput.tpot_s is None and goodput.e2e_s is None:
            raise ConfigError(f"observer.goodput[{index}] is without a limit: expected ttft_s, tpot_s or e2e_s")


def _check_differ(values: list[str], key: str, field: str = "") -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{key}[{index}]{field} = {shown(value)}: expected values that differ, it stands twice")


def _check_keys(hosts: list[HostConfig]) -> None:
    for index, host in enumerate(hosts):
        if host.api_key_env and not os.environ.get(host.api_key_env):
            # Someone may have written the key itself here; only what looks like a variable's name is repeated.
            value = shown(host.api_key_env) if _ENVIRONMENT_NAME.fullmatch(host.api_key_env) else "(not shown)"
            raise ConfigError(
                f"hosts[{index}].api_key_env = {value}: expected the name of an environment variable that is set"
            )


def split_address(address: str, key: str) -> tuple[str, int] | str:
    """Split ``host:port`` into its parts, or return the path of ``unix:/path``; raises :class:`ConfigError`."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix://") if address.startswith("unix:///") else address.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > _SUN_PATH_BYTES_MAX:
            raise ConfigError(
                f"{key} = {shown(address)}: expected unix:/absolute/path of at most {_SUN_PATH_BYTES_MAX} bytes"
            )
        return path
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key} = {shown(address)}: expected host:port (port 0 to 65535) or unix:/absolute/path")
    return host.strip("[]"), int(port)


def zeromq_endpoint(config: Config, endpoint: str, key: str = "listen.zeromq", directory: Path | None = None) -> str:
    """Return an endpoint of ``listen.zeromq`` as libzmq wants it; raises :class:`ConfigError`.

    ``directory`` is the one of the rings where it is known; a router without a tmpfs at ``run_dir`` takes another.
    """
    if endpoint.startswith("tcp://"):
        where = split_address(endpoint.removeprefix("tcp://"), key)
        if isinstance(where, str):
            raise ConfigError(f"{key} = {shown(endpoint)}: expected {_ZEROMQ_ALLOWED}")
        return endpoint
    if endpoint == "ipc":
        path = str((directory or run_dir(config)) / config.listen.instance / "zmq.sock")
    elif endpoint.startswith("ipc:///"):
        path = endpoint.removeprefix("ipc://")
    else:
        raise ConfigError(f"{key} = {shown(endpoint)}: expected {_ZEROMQ_ALLOWED}")
    if len(os.fsencode(path)) > _SUN_PATH_BYTES_MAX:
        raise ConfigError(
            f"{key} = {shown(endpoint)}: {path} is longer than the {_SUN_PATH_BYTES_MAX} bytes of a socket's path"
        )
    return f"ipc://{path}"


def host_address(url: str, key: str) -> tuple[str, int] | str:
    """Split a host's URL into ``(host, port)`` or the path of a unix socket; raises :class:`ConfigError`."""
    if url.startswith("unix://"):
        return split_address(url, key)
    rest = url.removeprefix("http://")
    if "/" in rest.rstrip("/"):
        raise ConfigError(f"{key} = {shown(url)}: expected http://host:port without a path")
    rest = rest.rstrip("/")
    return split_address(rest if ":" in rest.rpartition("]")[2] else f"{rest}:80", key)


def run_dir(config: Config) -> Path:
    """Return the directory of the rings, as ``listen.run_dir`` describes it."""
    if config.listen.run_dir:
        return Path(config.listen.run_dir)
    return default_run_dir()


def default_run_dir() -> Path:
    """Return where the rings are when the configuration does not say."""
    if from_systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "ringrouter"
    return tmpfs_run_dir()


def data_dir(config: Config) -> Path:
    """Return the directory of the observer's journal, as ``observer.data_dir`` describes it."""
    if config.observer.data_dir:
        return Path(config.observer.data_dir)
    if from_systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "ringrouter"
    return Path.home() / ".local" / "state" / "ringrouter"


def tmpfs_run_dir() -> Path:
    """Return the directory on the tmpfs that every Linux has, for when the one asked for is not on a tmpfs."""
    return Path(f"/dev/shm/ringrouter-{os.getuid()}")  # noqa: S108 - the directory is made 0700


def rings_dir(config: Config) -> Path:
    """Return where the router puts its rings: :func:`run_dir`, where that is on a tmpfs, else another directory."""
    path = run_dir(config)
    return path if is_tmpfs(path) else tmpfs_run_dir()


def is_tmpfs(path: Path) -> bool:
    """Return whether a directory, made or not yet, is on a file system in memory."""
    best, kind = "", ""
    real = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, fs, *_ = line.split(" ")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fs
    return kind in {"tmpfs", "ramfs"}
