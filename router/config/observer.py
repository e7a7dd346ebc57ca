"""The sections of the observer."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from router.config.alerts import AlertsConfig
from router.config.base import NAME, NAME_ALLOWED, Section, above_zero, between, path_or_nothing
from router.config.traces import TracesConfig

SLICE_ALLOWED: Final = "a tag, `model`, `host`, `endpoint` or `instance`, or two of them with a comma between"
SLICE_FIELDS: Final = ("model", "host", "endpoint", "instance")
"""What requests can be told apart by beside their tags."""
SLICE_TAG_COUNT_MAX: Final = 2
"""Of three tags there are more combinations than requests: that is a question for the journal."""
DEFAULT_SLICES: Final = (
    *("model", "host", "feature_name", "prompt_version", "channel", "device_type", "network_type", "workload_class"),
    *("variant", "channel,device_type", "feature_name,device_type", "feature_name,prompt_version"),
)


class Slices(Section, frozen=True):
    """`[observer.slices]`: what the observer keeps apart in its percentiles, beside the total."""

    tags: Annotated[
        list[Annotated[str, Meta(extra={"allowed": SLICE_ALLOWED})]],
        Meta(max_length=32, description="Each value, or pair of values, has percentiles of its own."),
    ] = msgspec.field(default_factory=lambda: list(DEFAULT_SLICES))
    values_max: Annotated[
        int, between(8, 4096, "Slices of one entry of `tags`; what comes later is counted as `__other__`.")
    ] = 128
    top: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "the name of a tag"})]],
        Meta(max_length=8, description="Tags of which only the busiest values are kept, however many there are."),
    ] = msgspec.field(default_factory=lambda: ["user_id", "session_id", "batch_id"])
    top_count: Annotated[int, between(1, 10_000, "Values kept of each of them.")] = 100


class JournalConfig(Section, frozen=True):
    """`[observer.journal]`: one row for each finished request, on disk, for `report` and `query`."""

    enabled: Annotated[bool, Meta(description="Write it.")] = True
    fsync_s: Annotated[
        float, between(0, 60, "The longest that a row waits for the disk; 0 = each batch is forced to it at once.")
    ] = 1.0
    keep_days: Annotated[float, above_zero(36_500, "Rows older than this are deleted.")] = 30.0
    keep_bytes: Annotated[int, between(1 << 20, 1 << 50, "Over it the oldest rows are deleted.")] = 4 << 30


class Price(Section, frozen=True):
    """`[[observer.prices]]`: what a model costs that is paid for by the token, per million tokens."""

    model: Annotated[str, Meta(description="Name of the model as clients ask for it; `*` stands for any characters.")]
    input: Annotated[float, between(0, 1e6, "Tokens of the prompt.")]
    output: Annotated[float, between(0, 1e6, "Tokens of the answer.")]
    cached_input: (
        Annotated[float, between(0, 1e6, "Tokens of the prompt that the host had in its cache. Absent: as `input`.")]
        | None
    ) = None
    reasoning: (
        Annotated[float, between(0, 1e6, "Tokens of the reasoning, where reported apart. Absent: as `output`.")] | None
    ) = None


class Goodput(Section, frozen=True):
    """`[[observer.goodput]]`: what a good answer is; one that failed is never good."""

    workload_class: Annotated[str, Meta(description="Requests with this tag; empty: all that have no entry.")] = ""
    ttft_s: Annotated[float, above_zero(3600, "Longest time to the first token.")] | None = None
    tpot_s: Annotated[float, above_zero(3600, "Longest mean time per further token.")] | None = None
    e2e_s: Annotated[float, above_zero(86_400, "Longest time to the end of the answer.")] | None = None


class ObserverConfig(Section, frozen=True):
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
        path_or_nothing(
            "Directory of the journal and of the positions in the rings (on disk). Empty: "
            "`$STATE_DIRECTORY`, else `$XDG_STATE_HOME/ringrouter`, else `~/.local/state/ringrouter`."
        ),
    ] = ""
    instances: Annotated[
        list[Annotated[str, Meta(pattern=NAME, extra=NAME_ALLOWED)]],
        Meta(max_length=256, description="Routers below `listen.run_dir` to observe; empty: all that are there."),
    ] = msgspec.field(default_factory=list)
    currency: Annotated[
        str, Meta(pattern=r"\A[A-Z]{3}\Z", extra={"allowed": "three letters `A-Z`"}, description="Of every cost.")
    ] = "USD"
    time_scale: Annotated[
        float,
        between(
            1, 10_000, "For tests and demonstrations: windows and periods of objectives and alerts pass so many times "
            "faster. With 360 an hour is ten seconds.",
        ),
    ] = 1.0  # fmt: skip
    slices: Slices = msgspec.field(default_factory=Slices)
    journal: JournalConfig = msgspec.field(default_factory=JournalConfig)
    prices: list[Price] = msgspec.field(default_factory=list)
    goodput: list[Goodput] = msgspec.field(default_factory=list)
    traces: TracesConfig = msgspec.field(default_factory=TracesConfig)
    alerts: AlertsConfig = msgspec.field(default_factory=AlertsConfig)
