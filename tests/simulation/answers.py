"""What a scripted host answers, as steps: ``(delay in ns, what to do, bytes)``.

Each token's text names the request, the attempt as its host counts them, and the token, so that whoever reads an answer
can tell whether it is whole, in order, and of one attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final, Literal

import msgspec

from tests.simulation.scenario import Fate

Doing = Literal["send", "fin", "rst", "over", "stop"]
Step = tuple[int, Doing, bytes]
"""``over``: the host's work is done; ``stop``: nothing more happens, and the slot stays in use."""
_MS: Final = 1_000_000
_encode: Final = msgspec.json.Encoder().encode


class Job:
    """One request as a host sees it."""

    def __init__(self, body: dict[str, Any], path: str, fate: Fate, request_id: str, serial: int) -> None:
        self.path = path
        self.fate = fate
        self.request_id = request_id
        self.serial = serial
        self.stream = body.get("stream") is True
        self.wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self.token_count = max(min(fate.tokens, body.get("max_tokens") or fate.tokens), 1)

    def token(self, index: int) -> str:
        """Return the text of a token."""
        return f"{self.request_id}.{self.serial}.{index}{'_' * self.fate.token_bytes} "

    @property
    def text(self) -> str:
        """All of the answer."""
        return "".join(self.token(index) for index in range(self.token_count))


def steps(job: Job, random: Random, *, keeps: bool) -> Iterator[Step]:
    """Return how a job goes."""
    fate = job.fate
    ending: Step = (0, "rst" if fate.reset else "fin", b"")
    first_ns = int(fate.ttft_ms * _MS)
    if fate.kind == "silent":
        yield 0, "stop", b""
    elif fate.kind == "die_before_head":
        yield first_ns, "over", b""
        yield ending
    elif fate.kind == "status":
        yield first_ns, "over", b""
        yield 0, "send", _status(fate)
    elif fate.kind == "broken_head":
        yield first_ns, "over", b""
        yield 0, "send", b"HTTP/1.1 two hundred\r\n\r\n"
    elif not job.stream:
        yield from _whole(job, ending)
    else:
        yield from _cut(_stream(job, ending, keeps=keeps), fate.cut, random)


def _status(fate: Fate) -> bytes:
    body = _encode({"error": {"message": f"status {fate.status}", "type": "host", "code": fate.status}})
    after = f"retry-after: {fate.retry_after}\r\n" if fate.retry_after else ""
    head = f"HTTP/1.1 {fate.status} X\r\ncontent-type: application/json\r\n{after}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _whole(job: Job, ending: Step) -> Iterator[Step]:
    fate = job.fate
    body = _whole_body(job)
    if fate.kind == "early_error":
        body = b'{"error":{"message":"no","code":500}}'
    version = "1.0" if fate.kind == "unframed" else "1.1"
    status = "500 X" if fate.kind == "early_error" else "200 OK"
    length = "" if fate.kind == "unframed" else f"content-length: {len(body)}\r\n"
    close = "connection: close\r\n" if fate.kind == "closing" else ""
    head = f"HTTP/{version} {status}\r\ncontent-type: application/json\r\n{length}{close}\r\n".encode()
    yield int((fate.ttft_ms + fate.gap_ms * job.token_count) * _MS), "over", b""
    if fate.kind == "interim":
        yield 0, "send", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    if fate.kind == "die_in_head":
        yield 0, "send", head[: len(head) // 2]
        yield ending
        return
    if fate.kind in {"die_mid_stream", "die_before_content", "die_after_finish", "error_event", "no_finish"}:
        yield 0, "send", head + body[: len(body) // 2]
        yield ending
        return
    if fate.kind in {"stall", "broken_chunk", "broken_event"}:
        yield 0, "send", head + body[: len(body) // 2]
        yield 0, "stop", b""
        return
    yield 0, "send", head
    yield int(fate.gap_ms * _MS), "send", body + (b"surplus" if fate.kind == "surplus" else b"")
    if fate.kind in {"closing", "unframed"}:
        yield 0, "fin", b""


def _whole_body(job: Job) -> bytes:
    if job.path == "/v1/embeddings":
        return _encode({"object": "list", "data": [{"embedding": [0.5], "index": 0}], "whose": job.text})
    if job.path == "/v1/responses":
        return _encode({"object": "response", "status": "completed", "output": job.text})
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if job.path == "/v1/completions":
        choice["text"] = job.text
    else:
        choice["message"] = {"role": "assistant", "content": job.text}
    return _encode({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": job.token_count}})


def _stream(job: Job, ending: Step, *, keeps: bool) -> Iterator[Step]:
    """Return the steps of a stream, each an event or a part of the head."""
    fate = job.fate
    framed = fate.kind != "unframed"
    close = "" if keeps and fate.kind != "closing" else "connection: close\r\n"
    coding = "transfer-encoding: chunked\r\n" if framed else ""
    head = f"HTTP/1.{int(framed)} 200 OK\r\ncontent-type: text/event-stream\r\n{coding}{close}\r\n".encode()
    first_ns, gap_ns = int(fate.ttft_ms * _MS), int(fate.gap_ms * _MS)
    if fate.kind == "interim":
        yield 0, "send", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    if fate.kind == "die_in_head":
        yield first_ns, "over", b""
        yield 0, "send", head[: len(head) // 2]
        yield ending
        return
    yield first_ns // 2, "send", head
    last = yield from _events(job, ending, first_ns, gap_ns, framed=framed)
    if not last:
        return
    yield gap_ns, "over", b""
    yield 0, "send", _framed(b"data: [DONE]\n\n", framed=framed) + (b"0\r\n\r\n" if framed else b"")
    if fate.kind == "surplus":
        yield 0, "send", b"surplus"
    if not framed or not keeps or fate.kind == "closing":
        yield 0, "fin", b""


def _events(job: Job, ending: Step, first_ns: int, gap_ns: int, *, framed: bool) -> Iterator[Step]:
    """Return the steps of a stream's events; the generator's value tells whether it ends in order."""
    fate = job.fate
    chat = job.path != "/v1/completions"
    if chat:
        yield 0, "send", _framed(_event({"delta": {"role": "assistant", "content": ""}}), framed=framed)
    if fate.kind in {"die_before_content", "early_error"}:
        yield first_ns // 2, "over", b""
        if fate.kind == "early_error":
            yield 0, "send", _framed(b'data: {"error":{"message":"no","code":500}}\n\n', framed=framed)
        yield ending
        return False
    at = min(fate.at, job.token_count - 1)
    for index in range(job.token_count):
        if index == at and fate.kind in {"die_mid_stream", "stall", "broken_chunk", "broken_event", "error_event"}:
            yield from _goes_wrong(fate, ending, gap_ns, framed=framed)
            return False
        delta = {"delta": {"content": job.token(index)}} if chat else {"text": job.token(index)}
        yield (gap_ns if index else first_ns // 2), "send", _framed(_event(delta), framed=framed)
    if fate.kind == "no_finish":
        yield gap_ns, "over", b""
        yield 0, "send", b"0\r\n\r\n" if framed else b""
        return False
    last = {"delta": {}, "finish_reason": "stop"} if chat else {"text": "", "finish_reason": "stop"}
    yield gap_ns, "send", _framed(_event(last), framed=framed)
    if fate.kind == "die_after_finish":
        yield 0, "over", b""
        yield ending
        return False
    if job.wants_usage:
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": job.token_count}}
        yield 0, "send", _framed(b"data: %b\n\n" % _encode(usage), framed=framed)
    return True


def _goes_wrong(fate: Fate, ending: Step, gap_ns: int, *, framed: bool) -> Iterator[Step]:
    if fate.kind == "stall":
        yield 0, "stop", b""
        return
    yield gap_ns, "over", b""
    if fate.kind == "broken_chunk":
        yield 0, "send", b"zz\r\nno chunk\r\n"
    elif fate.kind == "broken_event":
        yield 0, "send", _framed(b"data: {no JSON\n\n", framed=framed)
        yield 0, "send", _framed(b"data: [DONE]\n\n", framed=framed) + (b"0\r\n\r\n" if framed else b"")
    elif fate.kind == "error_event":
        yield 0, "send", _framed(b'data: {"error":{"message":"no","code":500}}\n\n', framed=framed)
    yield ending


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode({"object": "chunk", "choices": [{"index": 0, "finish_reason": None, **choice}]})


def _framed(data: bytes, *, framed: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if framed else data


def _cut(steps: Iterator[Step], how: int, random: Random) -> Iterator[Step]:
    """Cut what is sent: 0 as it is, 1 anywhere, 2 several steps in one."""
    if how == 0:
        yield from steps
        return
    held, held_ns = b"", 0
    for delay_ns, doing, data in steps:
        if doing == "send" and how == 2 and len(held) < 400:
            held, held_ns = held + data, held_ns + delay_ns
            continue
        if held:
            yield held_ns, "send", held
            held, held_ns = b"", 0
        if doing == "send" and how == 1 and len(data) > 1:
            place = random.randrange(1, len(data))
            yield delay_ns, "send", data[:place]
            yield random.randrange(0, 300_000), "send", data[place:]
        else:
            yield delay_ns, doing, data
    if held:
        yield held_ns, "send", held
