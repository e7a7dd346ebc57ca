"""What hosts of each kind do, as facts: the only place that knows their names.

Measured on real hosts and read in their sources; a host's section of the configuration overrides any of them. Nothing
else in the router asks for a kind's name.
"""

from __future__ import annotations

from typing import Final

import msgspec

from router.config import HostConfig


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the router believes of a host."""

    slot_count: int
    """Requests it runs at once; a further one waits inside it in silence, so it never gets one."""
    health_path: str = "/health"
    """Answers 200 when the host can serve."""
    slots_path: str = ""
    """Answers JSON with ``total_slots``; empty: there is no such path."""
    reuse_after_stream: bool = True
    """The connection lives on after a streamed answer."""
    idle_close_s: float = 4.0
    """Age at which an idle connection is given up: uvicorn and llama.cpp drop it at 5.00 s."""
    cancels_whole_answers: bool = True
    """It notices that the client of a not-streamed answer has left; else such answers are folded from a stream."""
    cancel_grace_ms: float = 0.0
    """How long a cancelled request may still hold its slot."""
    progress: bool = False
    """It takes ``return_progress``: it writes during the prefill, and so notices then that the client has left."""
    include_usage: bool = True
    """It takes ``stream_options.include_usage``."""
    request_id_header: bool = False
    """It makes use of ``x-request-id``."""
    trace_headers: bool = False
    """It makes use of ``traceparent``."""
    paths: tuple[str, ...] = ()
    """Paths that take a POST of JSON and generate, count or judge, beyond chats, completions and embeddings."""


KINDS: Final[dict[str, Facts]] = {
    # Cancels only streams, and in the prefill only when it has something to write; closes after every stream.
    "llama.cpp": Facts(
        slot_count=1,
        slots_path="/props",
        reuse_after_stream=False,
        cancels_whole_answers=False,
        cancel_grace_ms=500.0,
        progress=True,
        paths=(
            *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/completion", "/infill", "/embedding"),
            *("/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/tokenize", "/detokenize", "/apply-template"),
        ),
    ),
    "vllm": Facts(
        slot_count=256,
        request_id_header=True,
        trace_headers=True,
        paths=(
            *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/pooling"),
            *("/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
        ),
    ),
    "sglang": Facts(
        slot_count=256,
        trace_headers=True,
        paths=(
            *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/generate", "/encode", "/classify"),
            *("/v1/classify", "/v1/score", "/v1/rerank", "/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"),
        ),
    ),
    "ollama": Facts(
        slot_count=1,
        health_path="/api/version",
        paths=("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/responses", "/v1/messages"),
    ),
    "openai": Facts(slot_count=64, health_path="/v1/models", paths=("/v1/responses",)),
}

_OWNERS: Final = {"llamacpp": "llama.cpp", "vllm": "vllm", "sglang": "sglang", "library": "ollama"}
"""``owned_by`` in ``/v1/models``, by which a host tells what it is."""


def kind_of_owner(owner: str) -> str:
    """Return the kind of a host from the ``owned_by`` of its models; ``openai`` for any other."""
    return _OWNERS.get(owner, "openai")


def facts_of(kind: str, host: HostConfig) -> Facts:
    """Return the facts of a kind with the host's own overrides."""
    facts = KINDS[kind]
    own = {f: v for f in host.facts.__struct_fields__ if (v := getattr(host.facts, f)) is not None}
    if host.facts.paths is not None:
        own["paths"] = tuple(host.facts.paths)
    if host.slots is not None:
        own["slot_count"] = host.slots
    return msgspec.structs.replace(facts, **own)
