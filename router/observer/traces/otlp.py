"""Sends spans as OTLP over HTTP, by OpenTelemetry's own exporter; blocks while it does.

The exporter tries again by itself within its time limit where that can help. What it says about a failure stands only
in its log, so that the session it sends by is watched: a batch that the endpoint will never take must not be tried for
ever. Redirects are not followed, for they would carry the headers elsewhere; and no message names the address, which
may hold a secret.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

import router
from router.observer.traces import conventions as names
from router.observer.traces.spans import CLIENT, SERVER, Span, SpanEvent, SpanLink

_KINDS: Final = {SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}
_SCHEMA_URL: Final = f"https://github.com/open-telemetry/semantic-conventions-genai/tree/{names.GEN_AI_COMMIT}"
_SCOPE: Final = InstrumentationScope("ringrouter.observer", router.__version__, _SCHEMA_URL)
_REFUSED: Final = frozenset({400, 413, 422})
"""Statuses that say that it is the batch which is wrong: the same bytes will not be taken later either."""
_EXPORTER_LOG: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_SDK_LOGS: Final = (_EXPORTER_LOG, "opentelemetry.exporter.otlp.common.http", "urllib3.connectionpool")


class _Session(requests.Session):
    """Remembers how the last request went, in a word."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = 0
        self.status = 0
        self.failure = ""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request, as the exporter asks for it."""
        self.status, self.failure = 0, ""
        try:
            response = super().request(*args, **kwargs)
        except requests.RequestException as error:
            self.failure = type(error).__name__
            raise
        self.status = response.status_code
        return response


class OtlpSender:
    """One endpoint. Made in the thread that uses it."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        resource: Mapping[str, str],
        *,
        timeout_s: float,
        compression: str = "gzip",
        ca_file: str = "",
    ) -> None:
        for name in _SDK_LOGS:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they show addresses
        self._host = urlsplit(endpoint).hostname or ""
        self._session = _Session()
        self._resource = Resource(dict(resource))
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint,
            certificate_file=ca_file or None,
            headers=dict(headers),
            timeout=timeout_s,
            compression=Compression.Gzip if compression == "gzip" else Compression.NoCompression,
            session=self._session,
        )

    def send(self, spans: Sequence[Span]) -> bool:
        """Send spans; return whether they were taken. Otherwise :attr:`is_refused` and :attr:`problem` say more."""
        return self._exporter.export([self._readable(span) for span in spans]) is SpanExportResult.SUCCESS

    @property
    def is_refused(self) -> bool:
        """Whether the last batch will not be taken later either."""
        return self._session.status in _REFUSED

    @property
    def problem(self) -> str:
        """Why the last batch was not taken, in one line without the address's secrets."""
        answer = f"answers {self._session.status}" if self._session.status else self._session.failure or "no answer"
        return f"{self._host}: {answer}"

    def interrupt(self) -> None:
        """Have a call of :meth:`send` in another thread end soon: it tries no further."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id, flags=span.flags),
            parent=_context(span.trace_id, span.parent_id, is_remote=span.has_remote_parent)
            if span.parent_id
            else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[_event(each) for each in span.events],
            links=[_link(each) for each in span.links],
            kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
            status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_wall_ns,
            end_time=span.end_wall_ns,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: str, span_id: str, *, flags: int = 1, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(flags))


def _event(event: SpanEvent) -> Event:
    return Event(event.name, event.attributes, event.wall_ns)


def _link(link: SpanLink) -> Link:
    return Link(_context(link.trace_id, link.span_id, is_remote=True), link.attributes)
