"""What both clients can be asked, without how they wait for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, overload

from router.client import protocol
from router.client.channel import Channel
from router.client.identity import Identity, identity
from router.client.protocol import CREDIT, Request

ChannelT = TypeVar("ChannelT", bound=Channel)
StreamT = TypeVar("StreamT")
ReplyT = TypeVar("ReplyT")
Messages = str | Sequence[Mapping[str, Any]]
"""Messages as the chat API takes them; plain text is one message of the user."""
CONNECT_TIMEOUT_S: Final = 5.0
_OPTIONS: Final = frozenset(
    {"timeout_s", "first_token_timeout_s", "credit", "host", "request_class", "deadline_ms", "request_id", "tags"}
    | {"cache", "traceparent", "tracestate", "baggage"}
)


class Asking(Generic[ChannelT, StreamT, ReplyT]):
    """The base of both clients."""

    def __init__(
        self,
        *endpoints: str,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        key: str | None = None,
        server_key: str | None = None,
        curve_key_file: str | Path | None = None,
    ) -> None:
        self._channel = self._open(endpoints, connect_timeout_s, identity(key, server_key, curve_key_file))

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where this client looks for routers."""
        return self._channel.endpoints

    def close(self) -> None:
        """Close the sockets; the routers cancel what still runs, and whoever waits is told."""
        self._channel.close()

    @overload
    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        stream: Literal[True] = True,
        timeout_s: float | None = None,
        first_token_timeout_s: float | None = None,
        credit: int = CREDIT,
        host: str | None = None,
        request_class: str | None = None,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        cache: Literal["on", "off"] | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
        **body: Any,
    ) -> StreamT: ...

    @overload
    def chat(self, model: str, messages: Messages, *, stream: Literal[False], **options_and_body: Any) -> ReplyT: ...

    def chat(self, model: str, messages: Messages, *, stream: bool = True, **options: Any) -> StreamT | ReplyT:
        """Ask for a chat, streamed unless ``stream=False``; what is not named here goes into the request's body.

        ``timeout_s`` and ``first_token_timeout_s`` count from now and cancel the request. ``credit`` is how many events
        may wait here before the host is held. ``host`` names the one that is to answer. ``request_class``
        (``realtime``, ``interactive``, ``batch``) and ``deadline_ms`` (to the first token, as the router sees it) say
        how soon it is wanted: one that cannot be in time is refused at once. ``request_id`` names the request in the
        router's records, ``tags`` label it, ``cache`` says whether the answer may be one that the router has kept
        (docs/caches.md), ``traceparent``, ``tracestate`` and ``baggage`` are the W3C headers.
        """
        talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self._ask("chat", {"model": model, "messages": talk}, stream, options)

    @overload
    def completion(
        self,
        model: str,
        prompt: Any,
        *,
        stream: Literal[True] = True,
        timeout_s: float | None = None,
        first_token_timeout_s: float | None = None,
        credit: int = CREDIT,
        host: str | None = None,
        request_class: str | None = None,
        deadline_ms: float | None = None,
        request_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        cache: Literal["on", "off"] | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
        **body: Any,
    ) -> StreamT: ...

    @overload
    def completion(self, model: str, prompt: Any, *, stream: Literal[False], **options_and_body: Any) -> ReplyT: ...

    def completion(self, model: str, prompt: Any, *, stream: bool = True, **options: Any) -> StreamT | ReplyT:
        """Ask for the continuation of ``prompt``, text or a list of them; the keywords are those of :meth:`chat`."""
        return self._ask("completion", {"model": model, "prompt": prompt}, stream, options)

    def _ask(self, verb: str, body: dict[str, Any], stream: bool, options: dict[str, Any]) -> StreamT | ReplyT:
        if stream:
            return self._stream(_request(verb, body, options, streamed=True))
        return self._reply(_request(verb, body | {"stream": False}, options))

    def _open(self, endpoints: tuple[str, ...], connect_timeout_s: float, own: Identity) -> ChannelT:
        raise NotImplementedError

    def _stream(self, request: Request) -> StreamT:
        raise NotImplementedError

    def _reply(self, request: Request) -> ReplyT:
        raise NotImplementedError


def embeddings_request(model: str, texts: Any, options: dict[str, Any]) -> Request:
    """Build the request for the vectors of texts."""
    return _request("embeddings", {"model": model, "input": texts}, options)


def _request(verb: str, body: dict[str, Any], options: dict[str, Any], *, streamed: bool = False) -> Request:
    """Build a request, with the keywords that are no options in its body."""
    header = {name: value for name, value in options.items() if name in _OPTIONS}
    fields = {name: value for name, value in options.items() if name not in _OPTIONS}
    return protocol.request(verb, body | fields, streamed=streamed, **header)


def model_names(models: dict[str, Any]) -> list[str]:
    """Return the names in a list of models."""
    return [str(model["id"]) for model in models["data"]]
