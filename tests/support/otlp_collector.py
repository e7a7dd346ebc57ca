"""A collector of traces over real sockets: takes OTLP over HTTP as protobuf, decodes it, and answers as it is told."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.waiting import wait_until

_KINDS = {1: "internal", 2: "server", 3: "client"}


class Got(NamedTuple):
    """A span as it came."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, str]]
    error: str | None
    resource: dict[str, Any]


def value_of(value: Any) -> Any:
    """Return an ``AnyValue`` as plain Python."""
    kind = value.WhichOneof("value")
    return [value_of(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def plain(attributes: Any) -> dict[str, Any]:
    return {each.key: value_of(each.value) for each in attributes}


def decode(raw: bytes) -> list[Got]:
    """Decode the body of an export; what is no such body raises."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(raw)
    return [
        Got(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.name,
            _KINDS[span.kind],
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            plain(span.attributes),
            [(event.name, event.time_unix_nano, plain(event.attributes)) for event in span.events],
            [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            span.status.message if span.status.code == 2 else None,
            plain(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Collector:
    """Listens on a port of its own; a context manager. ``status`` is what it answers; ``gate`` holds its answers."""

    def __init__(self) -> None:
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        self.bodies: list[bytes] = []
        """Of the exports that it took."""
        self.headers: list[dict[str, str]] = []
        self.asked_count = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        self.asked_count += 1
        self.gate.wait(20)
        status = self.status
        if status == 200:
            assert handler.path == "/v1/traces"
            assert handler.headers["content-type"] == "application/x-protobuf"
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.bodies.append(gzip.decompress(raw) if handler.headers["content-encoding"] == "gzip" else raw)
        body = ExportTraceServiceResponse().SerializeToString() if status == 200 else b"no"
        try:
            handler.send_response(status)
            handler.send_header("content-length", str(len(body)))
            handler.send_header("location", "http://127.0.0.1:9/elsewhere")
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:  # the exporter has left
            pass

    def spans(self) -> list[Got]:
        """Return all spans so far, in the order in which they came."""
        return [span for body in list(self.bodies) for span in decode(body)]

    def wait(self, predicate: Callable[[list[Got]], Any], what: str, timeout_s: float = 20.0) -> list[Got]:
        """Return the spans as soon as they are as wanted."""
        wait_until(lambda: predicate(self.spans()), what, timeout_s)
        return self.spans()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
