"""Requests to further paths of hosts: which model they are for, and what of them the hosts get.

The path is a fact of hosts (:class:`router.hosts.kinds.Facts`). The model is the body's; where an API has none in its
bodies, the header ``x-ringrouter-model`` names it, or it is the only one whose hosts have the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.dialects import dialect_of, endpoint_of
from router.errors import ErrorKind, RequestError
from router.hosts.kinds import KINDS
from router.ingress.submission import F32, U32, trace_headers, unknown_model
from router.ingress.wishes import NO_WISHES, model_for, settle, with_metadata
from router.messages import decode_pass_body
from router.request import Request

if TYPE_CHECKING:
    from router.config import Config
    from router.http1 import Head
    from router.ingress.http import ClientConnection
    from router.ingress.wishes import Wishes
    from router.loop import Loop
    from router.models import Model

_MODEL_HEADER: Final = b"x-ringrouter-model"
_DIALECT_HEADERS: Final = (b"anthropic-version", b"anthropic-beta", b"openai-beta", b"accept")
"""What hosts may need of a client's head. Its keys are for the router alone."""
_NAMED_MAX: Final = 20
"""Models named in an error."""


class PassThrough:
    """Makes requests of what comes to a path that is none of the router's own."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.configure(loop.config)

    def configure(self, config: Config) -> None:
        """Take over which paths hosts may have."""
        facts = [host.facts for host in config.hosts]
        named = [own.paths if own.paths is not None else () for own in facts]
        self._paths = frozenset(path for paths in named for path in paths).union(*(k.paths for k in KINDS.values()))

    def takes(self, path: bytes) -> bool:
        """Whether a host has this path, or may have it: not all have been asked yet."""
        name = path.decode("latin-1")
        if name not in self._paths:
            return False
        return any(name in host.facts.paths if host.probed else True for host in self._loop.hosts)

    def request(
        self, connection: ClientConnection, head: Head, body: bytes, body_ns: int, wishes: Wishes | None
    ) -> Request:
        """Return the request; raises :class:`RequestError` when no model of the router can answer it.

        ``wishes`` are what the head says.
        """
        path = head.url.partition(b"?")[0].decode("latin-1")
        headers = head.headers
        fields = decode_pass_body(body)
        endpoint = endpoint_of(path)
        name = fields.model if fields.model is not None else headers.get(_MODEL_HEADER, b"").decode("utf-8", "replace")
        if fields.metadata:
            wishes = with_metadata(wishes, headers, fields.metadata)
        if wishes is not None and wishes.feature:
            name = model_for(self._loop, wishes, endpoint, name)
        model = self._model(path, name)
        dialect = dialect_of(path)
        request = Request(
            connection,
            endpoint,
            connection.request_id,
            body,
            fields,
            headers,
            model,
            connection.recv_ns,
            body_ns,
            path=path,
            target=head.url,
            model_id=model.model_id,
            dialect=dialect,
            comments=not dialect.lines,
        )
        request.dialect_headers = b"".join(b"%b: %b\r\n" % (n, headers[n]) for n in _DIALECT_HEADERS if n in headers)
        request.stream = fields.stream if isinstance(fields.stream, bool) else dialect.streams_by_default
        request.max_tokens = int(min(max(fields.token_limit(), 0), U32))
        if isinstance(fields.temperature, int | float):
            request.temperature = min(max(fields.temperature, -F32), F32)
        if b"traceparent" in headers:
            request.trace_headers = trace_headers(headers)
        if wishes is not None or model.has_rules:
            settle(self._loop, request, wishes or NO_WISHES)
        return request

    def _model(self, path: str, name: str) -> Model:
        if not name:
            return self._only_model(path)
        model = self._loop.by_name.get(name)
        if model is None:
            raise unknown_model(self._loop, name)
        if not _has(model, path):
            raise self._nobody(path, f"no host of model {name!r} has {path}")
        return model

    def _only_model(self, path: str) -> Model:
        models = [model for model in self._loop.models.values() if _has(model, path)]
        if len(models) == 1:
            return models[0]
        if not models:
            raise self._nobody(path, f"no host has {path}")
        text = f"{path} is served for several models ({_names(models)}): name one as `model` or in x-ringrouter-model"
        raise RequestError(ErrorKind.BAD_REQUEST, text, "model")

    def _nobody(self, path: str, text: str) -> RequestError:
        """Return the error for a path that no host in question has: perhaps one that was not asked yet."""
        waiting = [host.name for host in self._loop.hosts if not host.probed]
        if waiting:
            return RequestError(ErrorKind.NO_HOST, f"{text}, but {', '.join(waiting)} did not answer so far")
        models = [model for model in self._loop.models.values() if _has(model, path)]
        return RequestError(ErrorKind.NOT_FOUND, f"{text} (models that have it: {_names(models) or 'none'})")


def _has(model: Model, path: str) -> bool:
    """Whether a host of a model has a path."""
    return any(path in host.facts.paths for host in model.hosts)


def _names(models: list[Model]) -> str:
    return ", ".join(sorted(model.name for model in models)[:_NAMED_MAX])
