"""HTTP/1.1 message framing, sans I/O: heads, and bodies by length, by chunks or to the end of the connection.

Request heads go through httptools (llhttp, strict), so that an ambiguous one (two lengths, length and chunks) is
refused rather than guessed at. Bodies are cut here because the token path needs to know where chunks lie.
Format: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import httptools

from router import native
from router.mould import mould

HEAD_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\r\n\0]*))?\r\n")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH_NAME: Final = re.compile(rb"\r\n(?i:content-length):")
_VARYING: Final = (
    (_LENGTH_NAME, re.compile(rb" ([0-9]{1,15})\r\n")),
    (re.compile(rb"\r\n(?i:date):"), re.compile(rb" ([A-Za-z0-9,: +-]{1,40})\r\n")),
)
"""Headers whose values differ between heads that are the same otherwise: name and form."""
_BODILESS: Final = frozenset({204, 304, *range(100, 200)})
_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})
LAST_CHUNK: Final = b"0\r\n\r\n"
_CHUNK_LINE_BYTES_MAX: Final = 4096
"""Longest size line of a chunk, extensions included; also the bound of the trailer section's lines."""
CHUNK_LINE_SEARCH: Final = 18
"""In so many bytes the size line of a usual chunk ends."""
CHUNK_SIZES: Final = {form % size: size for size in range(1, 4096) for form in (b"%x", b"%X")}
"""Sizes of the usual chunks by their hexadecimal form: a look-up is a third of ``int(…, 16)``, and strict."""
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class ProtocolError(Exception):
    """Bytes that are not the HTTP/1.1 they should be."""


class Head:
    """A parsed request or response head.

    ``headers`` holds lower-case names; of repeated names the last stands (those that matter for framing may not be
    repeated). ``length`` is the declared body length, ``None`` without one.
    """

    __slots__ = (
        "_complete",
        "_parser",
        "chunked",
        "headers",
        "keep_alive",
        "length",
        "method",
        "minor",
        "reason",
        "route",
        "status",
        "url",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None
        self._complete = False
        self.headers: dict[bytes, bytes] = {}
        self.url = b""
        self.method = b""
        self.status = 0
        self.reason = b""
        self.minor = 1
        self.keep_alive = False
        self.chunked = False
        self.length: int | None = None
        self.route: Any = None
        """What its owner has made of it, to be found again with it."""

    # callbacks of httptools
    def on_url(self, url: bytes) -> None:
        """Collect the request target; called in pieces."""
        self.url += url

    def on_status(self, status: bytes) -> None:
        """Collect the reason phrase; called in pieces."""
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header; llhttp takes white space off in front of the value only."""
        self.headers[name.lower()] = value.rstrip(b" \t")

    def on_headers_complete(self) -> None:
        """Keep what llhttp forgets at the end of the message, which for one without a body is the end of the head."""
        assert self._parser is not None
        self._complete = True
        self.keep_alive = self._parser.should_keep_alive()

    def parse(self, parser: httptools.HttpRequestParser | httptools.HttpResponseParser, data: bytes) -> None:
        """Parse a head whose callbacks are this object's; raises :class:`ProtocolError`."""
        self._parser = parser
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an Upgrade header is ignored, as RFC 9110 §7.8 allows
        except httptools.HttpParserError as error:
            raise ProtocolError(str(error) or type(error).__name__) from None
        finally:
            self._parser = None  # it holds this object: a circle would wait for the garbage collector
        if not self._complete:
            raise ProtocolError("the head is not complete")
        version = parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            raise ProtocolError(f"HTTP version {version} is not supported, use 1.1")
        self.minor = 0 if version == "1.0" else 1
        self.settle_framing()

    def settle_framing(self) -> None:
        """Read what the headers say of the body's end; raises :class:`ProtocolError`."""
        headers = self.headers
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            self.chunked = coding.rpartition(b",")[2].strip().lower() == b"chunked"
            if not self.chunked:
                raise ProtocolError("transfer-encoding must end in chunked")
        length = headers.get(b"content-length")
        if length is not None and not self.chunked:
            if not length.strip().isdigit():
                raise ProtocolError(f"content-length {length[:40]!r} is not a number")
            self.length = int(length)


def parse_request_head(data: bytes) -> Head:
    """Parse a request head, the blank line included; raises :class:`ProtocolError`."""
    head = Head()
    parser = httptools.HttpRequestParser(head)
    head.parse(parser, data)
    head.method = parser.get_method()
    return head


def parse_response_head(data: bytes) -> Head:
    """Parse a response head, the blank line included; raises :class:`ProtocolError`.

    By hand and not by llhttp: hosts are the operator's own, their heads are short, and this stands between a host's
    first byte and the client (10 µs through llhttp's callbacks on a core that has just woken up, 4 µs so). What would
    make the end of the body ambiguous is refused all the same.
    """
    found = _STATUS_LINE.match(data)
    if found is None:
        raise ProtocolError(f"the status line {data[:40]!r} is not one of HTTP/1.1")
    if not data.endswith(HEAD_END):
        raise ProtocolError("the head is not complete")
    head = Head()
    headers = head.headers
    for line in data[found.end() : -4].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
            if not line and not headers:
                continue  # a head without any header
            raise ProtocolError(f"the header line {line[:40]!r} is broken")
        name = name.lower()
        value = value.strip(b" \t")
        if name in _FRAMING_HEADERS and name in headers:
            raise ProtocolError(f"{name.decode()} stands twice")
        headers[name] = value
    head.minor = 0 if found[1] == b"0" else 1
    head.status = int(found[2])
    head.reason = found[3] or b""
    connection = headers.get(b"connection", b"").lower()
    head.keep_alive = b"close" not in connection if head.minor else b"keep-alive" in connection
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise ProtocolError("both content-length and transfer-encoding are given")
    head.settle_framing()
    if not head.chunked and head.length is None and head.status not in _BODILESS:
        head.keep_alive = False  # the end of the connection is the end of the body
    return head


class HeadMemo:
    """Heads that were parsed before. Clients and hosts repeat themselves to the byte, but for a length and a date.

    What was accepted once is accepted again with other digits in ``content-length`` or another plain ``date``; a head
    that differs in anything else is parsed. ``unlike`` are headers (in lower case) whose values are new each time: to
    remember a head with one of them would only drive out others.
    """

    __slots__ = ("_parse", "_unlike", "known")
    _HEAD_BYTES_MAX: Final = 2048
    _COUNT_MAX: Final = 512
    """At most 5 MB, with all that is kept with heads that long and all different; then all are forgotten."""

    def __init__(self, parse: Callable[[bytes], Head], unlike: Sequence[bytes] = ()) -> None:
        self._parse = parse
        self._unlike = unlike
        self.known: dict[bytes, Head] = {}
        """By what is alike in them; for native code, which only looks there."""

    def take(self, data: bytes, position: int, head_bytes_max: int) -> tuple[Head, int, int] | None:
        """Return the head that begins at ``position``, the body length it declares (-1: none) and where it ends.

        ``None`` where no usual head of ``head_bytes_max`` bytes at most is complete; raises :class:`ProtocolError`. The
        head is shared with others of another length and date, so nobody may change it or read these two from it.
        """
        found = split_head(data, position, head_bytes_max)
        if found is None:
            return None
        key, length, end = found
        head = self.known.get(key)
        return head or self._learn(key, data[position:end]), length, end

    def forget(self) -> None:
        """Forget all heads, with what was kept with them."""
        self.known.clear()

    def _learn(self, key: bytes, data: bytes) -> Head:
        head = self._parse(data)
        if len(data) <= self._HEAD_BYTES_MAX and not any(name in head.headers for name in self._unlike):
            if len(self.known) >= self._COUNT_MAX:
                self.known.clear()
            self.known[key] = head
        return head


def plain_split_head(data: bytes, position: int, head_bytes_max: int) -> tuple[bytes, int, int] | None:
    """Return the head that begins at ``position`` without the values of its length and date, that length (-1: none
    given), and where it ends.

    ``None`` where it is not complete in ``head_bytes_max`` bytes, where either stands twice, or where one of the two is
    of an unusual form: a length is up to 15 digits behind one space, a date of the characters that dates have.
    """
    end = data.find(HEAD_END, position, position + head_bytes_max)
    if end < 0:
        return None
    key, length = data[position : end + 4], -1
    for name, form in _VARYING:
        found = [*name.finditer(key)]
        if not found:
            continue
        value = form.match(key, found[0].end())
        if len(found) > 1 or value is None:
            return None
        key = key[: value.start(1)] + key[value.end(1) :]
        if name is _LENGTH_NAME:
            length = int(value[1])
    return key, length, end + 4


split_head: Final[Callable[[bytes, int, int], tuple[bytes, int, int] | None]] = (
    plain_split_head if native.steps is None else native.steps.split_head
)
"""As :func:`plain_split_head`, in one call where there is native code."""


class ChunkedDecoder:
    """Takes the chunk framing off a body, fed in pieces cut anywhere.

    ``at_boundary`` tells that the next byte begins a size line; ``ended`` that the last chunk and its trailers are in;
    ``surplus`` are the bytes behind it; ``length_is_framed``
    is false only where the end of the connection is the end of the body.
    """

    __slots__ = ("_left", "_line", "_state", "ended", "surplus")
    length_is_framed = True
    _SIZE, _DATA, _DATA_END, TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._line = b""
        self.ended = False
        self.surplus = b""

    @property
    def at_boundary(self) -> bool:
        """Whether the decoder stands between two chunks with nothing pending."""
        return self._state == self._SIZE and not self._line

    def end(self) -> None:
        """Note that the last chunk was taken by someone else: what comes now is surplus."""
        self._state = self.TRAILER
        self.ended = True

    def feed(self, data: bytes) -> bytes:
        """Return the payload in ``data``; raises :class:`ProtocolError`."""
        parts: list[bytes] = []
        n = len(data)
        position = self.take_whole_chunks(data, parts) if self._state == self._SIZE and not self._line else 0
        while position < n and not self.ended:
            if self._state == self._DATA:
                take = min(self._left, n - position)
                parts.append(data[position : position + take])
                position += take
                self._left -= take
                if not self._left:
                    self._state = self._DATA_END
                continue
            position = self._take_line(data, position)
        if position < n:
            self.surplus += data[position:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def take_whole_chunks(data: bytes, parts: list[bytes]) -> int:
        """Take the chunks that lie whole at the beginning of ``data``, as nearly all do; return where they end."""
        position, n = 0, len(data)
        while position < n:
            line_end = data.find(b"\r\n", position, position + CHUNK_LINE_SEARCH)
            size = CHUNK_SIZES.get(data[position:line_end]) if line_end > 0 else None
            if size is None:
                break
            start = line_end + 2
            end = start + size
            if not data.startswith(b"\r\n", end):
                break
            parts.append(data[start:end])
            position = end + 2
        return position

    def _take_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position)
        if end < 0:
            self._line += data[position:]
            self._bound()
            return len(data)
        self._line += data[position : end + 1]
        self._bound()
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise ProtocolError("a line of the chunk framing does not end in CRLF")
        self._on_line(line[:-2])
        return end + 1

    def _bound(self) -> None:
        if len(self._line) > _CHUNK_LINE_BYTES_MAX:
            raise ProtocolError(f"a line of the chunk framing exceeds {_CHUNK_LINE_BYTES_MAX} bytes")

    def _on_line(self, line: bytes) -> None:
        if self._state == self._DATA_END:
            if line:
                raise ProtocolError("a chunk is longer than its size")
            self._state = self._SIZE
        elif self._state == self.TRAILER:
            self.ended = not line  # trailers are dropped: nothing here uses them
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise ProtocolError(f"chunk size {line[:40]!r} is not hexadecimal")
            self._left = int(size[1], 16)
            self._state = self._DATA if self._left else self.TRAILER


class LengthDecoder:
    """A body of a declared length; the same interface as :class:`ChunkedDecoder`."""

    __slots__ = ("_left", "ended", "surplus")
    at_boundary = False
    length_is_framed = True

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of ``data`` that belongs to the body."""
        if len(data) > self._left:
            data, self.surplus = data[: self._left], self.surplus + data[self._left :]
        self._left -= len(data)
        self.ended = not self._left
        return data


class EofDecoder:
    """A body that ends with the connection; the same interface as :class:`ChunkedDecoder`."""

    __slots__ = ("ended",)
    at_boundary = False
    length_is_framed = False
    surplus = b""

    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Return all of ``data``: the end is the caller's to see."""
        return data


new_chunked_decoder: Final = mould(ChunkedDecoder)
BodyDecoder = ChunkedDecoder | LengthDecoder | EofDecoder


def declared_length(head: Head) -> int:
    """Return the body length that a head of its own declares, -1 = none."""
    return -1 if head.length is None else head.length


def response_decoder(head: Head, length: int) -> BodyDecoder:
    """Return the decoder of a response's body, as RFC 9112 §6.3 settles it. ``length``: the declared one, -1 = none."""
    if head.chunked and head.status not in _BODILESS:
        return new_chunked_decoder()
    if head.status in _BODILESS:
        return LengthDecoder(0)
    return EofDecoder() if length < 0 else LengthDecoder(length)


def chunk(payload: bytes) -> bytes:
    """Return ``payload`` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
