"""The sections of hosts and models."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.config.admission import AdmissionConfig, LeverRules
from router.config.base import (
    Section,
    above_zero,
    between,
    credential_or_nothing,
    named,
    variable_or_nothing,
)
from router.config.credentials import credential
from router.config.routing import PRIORITY_MAX, WEIGHT_MAX, RoutingConfig


class HostFacts(Section, frozen=True):
    """`[hosts.facts]`: what the router believes of a host, where it should not take the kind's word."""

    reuse_after_stream: (
        Annotated[bool, Meta(description="The host keeps a connection after a streamed answer.")] | None
    ) = None
    idle_close_s: Annotated[float, above_zero(3600, "Age at which an idle connection is given up.")] | None = None
    cancels_whole_answers: (
        Annotated[bool, Meta(description="The host stops generating when the client of a not-streamed answer leaves.")]
        | None
    ) = None
    cancel_grace_ms: (
        Annotated[float, between(0, 600_000, "How long a cancelled request still holds its slot at the host.")] | None
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


class HostConfig(Section, frozen=True):
    """`[[hosts]]`: one model host."""

    name: Annotated[str, named("Name in headers, records and `stats`.")]
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
        Annotated[int, between(1, 65_536, "Requests it runs at once. Absent: probed, else the kind's number.")] | None
    ) = None
    api_key_env: Annotated[
        str,
        variable_or_nothing("Where the key is found that the host wants as `authorization: Bearer`."),
    ] = ""
    api_key_credential: Annotated[
        str,
        credential_or_nothing(
            "The same key as a credential of systemd (`LoadCredential=`), which no other process can read."
        ),
    ] = ""
    cost_per_hour: (
        Annotated[
            float,
            between(0, 1e6, "What it costs an hour with all its GPUs, in `observer.currency`. Absent: not known."),
        ]
        | None
    ) = None
    weight: Annotated[
        int, between(1, WEIGHT_MAX, 'Its share of the requests beside other hosts, with `policy = "weighted"`.')
    ] = 1
    priority: (
        Annotated[
            int,
            between(
                0,
                PRIORITY_MAX,
                'With `order = "priority"` lower ones are used first, equal ones together. Absent: its place in the '
                "file, from 1.",
            ),
        ]
        | None
    ) = None
    drain: Annotated[
        bool,
        Meta(
            description="The host is being taken out of service: it gets no new request, and what runs there may go on "
            "for `timeouts.drain_s`. To be set or taken back while the router runs (SIGHUP)."
        ),
    ] = False
    facts: Annotated[HostFacts, Meta(description="Overrides of what the router believes of this host.")] = (
        msgspec.field(default_factory=HostFacts)
    )

    def api_key(self) -> str:
        """Return the key from its credential or the environment, empty without one. It is never logged and never in an
        error.
        """
        if self.api_key_credential:
            return credential(self.api_key_credential)
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""


class ModelTimeouts(Section, frozen=True):
    """`[models.NAME.timeouts]`: the same as `[timeouts]`, for one model."""

    queue_s: Annotated[float, above_zero(86_400, "As `timeouts.queue_s`.")] | None = None
    connect_s: Annotated[float, above_zero(600, "As `timeouts.connect_s`.")] | None = None
    first_token_s: Annotated[float, above_zero(86_400, "As `timeouts.first_token_s`.")] | None = None
    idle_s: Annotated[float, above_zero(86_400, "As `timeouts.idle_s`.")] | None = None
    client_stall_s: Annotated[float, above_zero(86_400, "As `timeouts.client_stall_s`.")] | None = None
    total_s: Annotated[float, above_zero(604_800, "As `timeouts.total_s`.")] | None = None
    heartbeat_after_s: Annotated[float, between(0, 86_400, "As `timeouts.heartbeat_after_s`.")] | None = None


class ModelConfig(Section, frozen=True):
    """`[models.NAME]`: how one model is served."""

    stream_by_default: Annotated[bool, Meta(description="A request without `stream` is streamed.")] = False
    fold: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="A not-streamed chat or completion is asked for as a stream and folded into the plain answer; "
            "`auto`: where the host cancels only streams."
        ),
    ] = "auto"
    aliases: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256, extra={"allowed": "1 to 256 characters"})]],
        Meta(
            max_length=64,
            description="Further names under which clients may ask for it. They are listed in `/v1/models` and stand "
            "for this model even where a host has one of that name.",
        ),
    ] = msgspec.field(default_factory=list)
    fallback: Annotated[
        list[str],
        Meta(
            max_length=8,
            extra={"allowed": "names of other models"},
            description="Models that answer in its place, in this order, when no host of it can take a request or "
            "every attempt has failed before the first token. Each brings its own fallback with it. The answer then "
            "has the header `x-ringrouter-model`.",
        ),
    ] = msgspec.field(default_factory=list)
    admission: Annotated[AdmissionConfig, Meta(description="Who is served first, and until when.")] = msgspec.field(
        default_factory=AdmissionConfig
    )
    levers: Annotated[LeverRules, Meta(description="What requests may ask for.")] = msgspec.field(
        default_factory=LeverRules
    )
    routing: Annotated[RoutingConfig, Meta(description="Which host gets a request.")] = msgspec.field(
        default_factory=RoutingConfig
    )
    timeouts: Annotated[ModelTimeouts, Meta(description="Time-outs of this model.")] = msgspec.field(
        default_factory=ModelTimeouts
    )
