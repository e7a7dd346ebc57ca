"""Tells the native way of the usual answer (:mod:`router.answers`) what it goes by: where the fields of all that takes
part lie, and what it calls.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from router import native
from router.answers import answers
from router.attempt import Attempt
from router.config import HostConfig
from router.hosts.connection import RESPONSE_HEAD_BYTES_MAX, HostConnection, response_heads
from router.hosts.host import Host
from router.hosts.scanner import StreamScanner, new_scanner
from router.hosts.whole import native_report_of
from router.http1 import ChunkedDecoder, Head, LengthDecoder, new_chunked_decoder, split_head
from router.ingress.heads import host_header, server_timing
from router.ingress.http import USUAL_END, USUAL_SENTINEL, ClientConnection
from router.request import NO_HEADERS, NO_TERMS, new_request
from router.stamps import EARLY_WINDOW_NS
from router.telemetry.records import DoneFlag, Kind, Outcome, Phase
from router.telemetry.tcp import tcp_info
from router.token_state import record_events

_NOTHING: Final[Any] = None


def _probes() -> dict[str, object]:
    """Return one object of each kind, nobody else's."""
    return {
        "attempt": Attempt(),
        "client": ClientConnection(_NOTHING),
        "connection": HostConnection(_NOTHING, _NOTHING),
        "decoder": ChunkedDecoder(),
        "head": Head(),
        "host": Host(HostConfig(name="probe", url="http://127.0.0.1:1"), 0, 0),
        "request": new_request(),
        "scanner": StreamScanner(ChunkedDecoder()),
    }


def _tools(scan: object, relay: object) -> dict[str, object]:
    """Return what is called, and what fields are compared with or set to."""
    return {
        "decode_phase": Phase.DECODE,
        "done_event": int(Kind.DONE),
        "done_phase": Phase.DONE,
        "early_window_ns": EARLY_WINDOW_NS,
        "flag_calls_tools": int(DoneFlag.CALLS_TOOLS),
        "flag_stream": int(DoneFlag.STREAM),
        "head_bytes_max": RESPONSE_HEAD_BYTES_MAX,
        "heads": response_heads.known,
        "host_header": host_header,
        "new_decoder": new_chunked_decoder,
        "new_scanner": new_scanner,
        "no_headers": NO_HEADERS,
        "no_terms": NO_TERMS,
        "ok_outcome": Outcome.OK,
        "read_body": LengthDecoder(0),  # of a body that was read in one piece: what has ended never changes
        "record_events": record_events,
        "relay": relay,
        "report_of": native_report_of,
        "scan": scan,
        "server_timing": server_timing,
        "split_head": split_head,
        "tcp_info": tcp_info,
        "trailer_state": ChunkedDecoder.TRAILER,
        "usual_end": USUAL_END,
        "usual_sentinel": USUAL_SENTINEL,
    }


@cache
def tell() -> None:
    """Tell it, once a process; without native code there is nobody to be told."""
    if answers is not None:
        scan = native.scan.Scan(StreamScanner(ChunkedDecoder())).feed
        answers.know(_probes(), _tools(scan, native.relay.relay))
