"""One key: what it may do and what it has used. Everything happens in the loop's thread, so every count is exact."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.keys.windows import DAY_NS, MINUTE_NS, RequestWindow, TokenWindow
from router.telemetry.host_report import read_report

if TYPE_CHECKING:
    from router.config import KeyConfig
    from router.request import Request

CLIENT, OPERATOR, READ_ONLY = "client", "operator", "read-only"
_TAG_PREFIX: Final = b"x-ringrouter-tag-"
_MINUTE_BUCKETS: Final = 60
_DAY_BUCKETS: Final = 1440
_NS: Final = 1_000_000_000
_BYTES_PER_TOKEN: Final = 4
"""Of a prompt whose tokens no host has counted: about what tokenizers make of English."""
_SHOWN_CHARS_MAX: Final = 100
_PERMITTED_MAX: Final = 1024
"""Names of models about which it is remembered whether the key may use them."""
_KINDS_WITH_MODELS: Final = frozenset({ErrorKind.MODEL_NOT_FOUND, ErrorKind.NOT_FOUND, ErrorKind.BAD_REQUEST})
_MODELS: Final = re.compile(r" \(models: .*\)\Z| \(models that have it: .*\)\Z|(?<= for several models) \(.*\)(?=: )")
_PIN: Final = "x-ringrouter-host"
_PIN_REFUSED: Final = f"{_PIN}: no host of this name can answer the request"
"""Whether there is such a host, and what it has, is for operators to know."""
_HOSTS: Final = re.compile(r": no answer from .* so far\Z|, but .* did not answer so far\Z")
_CONDITIONS: Final = re.compile(r"(?<= now) \(.*\)\Z", re.DOTALL)
"""Of hosts, at the end of :meth:`router.refusals.Refusals.no_host_text`."""
_decode_names: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Account:
    """A key by its name. ``name_id`` is what records call it by."""

    __slots__ = (
        "_baggage", "_forced", "_is_narrow", "_permitted", "_requests", "_tokens", "config", "in_flight",
        "in_flight_max", "name", "name_id",
    )  # fmt: skip

    def __init__(self, config: KeyConfig, name_id: int, instances: int) -> None:
        self.name = config.name
        self.name_id = name_id
        self.in_flight = 0
        self._requests: RequestWindow | None = None
        self._tokens: list[tuple[TokenWindow, int, str]] = []
        """Windows with their limits and the names of those."""
        self.configure(config, instances)

    def configure(self, config: KeyConfig, instances: int) -> None:
        """Take over other settings; what was used stays used."""
        self.config = config
        self.in_flight_max = config.in_flight // instances
        per_minute = config.requests_per_minute // instances
        if self._requests is None or not per_minute:
            self._requests = RequestWindow(per_minute) if per_minute else None
        elif self._requests.limit != per_minute:
            self._requests = self._requests.resized(per_minute)
        windows = {name: window for window, _, name in self._tokens}
        self._tokens = []
        for name, span_ns, count in (
            ("tokens_per_minute", MINUTE_NS, _MINUTE_BUCKETS),
            ("tokens_per_day", DAY_NS, _DAY_BUCKETS),
        ):
            if limit := getattr(config, name) // instances:
                self._tokens.append((windows.get(name) or TokenWindow(span_ns, count), limit, name))
        self._permitted: dict[str, bool] = {}
        self._is_narrow = "*" not in config.models
        self._forced = {_header(name): value.encode() for name, value in config.tags.items()}
        self._baggage = b",".join(
            f"{name}={quote(value, safe='')}".encode() for name, value in config.tags_default.items()
        )

    # ------------------------------------------------------------ what it may
    @property
    def may_ask(self) -> bool:
        """Whether models answer it."""
        return self.config.role != READ_ONLY

    @property
    def may_look(self) -> bool:
        """Whether it may see the state of the router."""
        return self.config.role != CLIENT

    @property
    def may_operate(self) -> bool:
        """Whether it may change the state of the router."""
        return self.config.role == OPERATOR

    def permits(self, model_name: str) -> bool:
        """Return whether it may use a model that there is, by one of its names."""
        known = self._permitted.get(model_name)
        if known is None:
            if len(self._permitted) >= _PERMITTED_MAX:
                self._permitted.clear()
            known = any(fnmatchcase(model_name, pattern) for pattern in self.config.models)
            self._permitted[model_name] = known
        return known

    def put_tags(self, headers: dict[bytes, bytes]) -> None:
        """Write the tags of this key into the headers of a request: those that it must have, as headers, which win;
        those that it has by default in front of its baggage, which yields to everything.
        """
        if self._baggage:
            given = headers.get(b"baggage", b"")
            headers[b"baggage"] = b"%b,%b" % (self._baggage, given) if given else self._baggage
        if self._forced:
            for name in [name for name in headers if name.startswith(_TAG_PREFIX)]:
                if name.replace(b"_", b"-") in self._forced:  # a tag may be spelled either way
                    del headers[name]
            headers.update(self._forced)

    # ------------------------------------------------------------ a request
    def admit(self, request: Request, now: int) -> None:
        """Let a request pass and count it, or raise :class:`RequestError` that says why not and when to ask again."""
        self._check_model(request)
        if self.in_flight_max and self.in_flight >= self.in_flight_max:
            text = f"{self.in_flight} requests of key {self.name!r} are in flight (its limit in_flight)"
            raise RequestError(ErrorKind.RATE_LIMITED, text, retry_after_s=1)
        for window, limit, name in self._tokens:
            if wait_ns := window.wait_ns(now, limit):
                raise _limited(f"key {self.name!r} has used {window.total} tokens ({name} {limit})", wait_ns)
        if self._requests is not None:
            wait_ns = self._requests.wait_ns(now)
            if wait_ns > 0:
                text = f"key {self.name!r} has asked {self._requests.limit} times in 60 s (requests_per_minute)"
                raise _limited(text, wait_ns)
            self._requests.note(now)
        self.in_flight += 1
        terms = request.own_terms()
        terms.account = self
        terms.key_id = self.name_id
        terms.share_key = self.name

    def _check_model(self, request: Request) -> None:
        if self._is_narrow:
            _check_spelling(request)
        name = request.model.name
        if self.permits(name):
            return
        asked = getattr(request.fields, "model", None)
        if isinstance(asked, str) and asked != name and self.permits(asked):
            return
        shown = (asked or name)[:_SHOWN_CHARS_MAX]
        raise RequestError(ErrorKind.FORBIDDEN, f"key {self.name!r} may not use model {shown!r}", "model")

    def in_its_words(self, error: RequestError) -> RequestError:
        """Return an error without the names of what the key may not see: of models that there are, and, unless it is an
        operator's, of hosts.
        """
        text = error.message
        if not self.may_operate:
            text = _PIN_REFUSED if error.param == _PIN else _HOSTS.sub("", text)
        if error.kind in _KINDS_WITH_MODELS:
            text = _MODELS.sub("", text)
        if text == error.message:
            return error
        return RequestError(error.kind, text, error.param, retry_after_s=error.retry_after_s)

    def may_read(self, kind: ErrorKind, text: str) -> str:
        """Return what its client may read of the text with which the router ends a request: which hosts there are and
        how they are, it reads only if it may look.
        """
        return text if self.may_look or kind is not ErrorKind.NO_HOST else _CONDITIONS.sub("", text)

    def take_back(self, request: Request) -> None:
        """A request that was counted has not begun after all."""
        request.terms.account = None
        self.in_flight -= 1
        if self._requests is not None:
            self._requests.take_back()

    def finished(self, request: Request, now: int) -> None:
        """A request is over, however that was."""
        self.in_flight -= 1
        if self._tokens and (count := tokens_of(request)):
            for window, _, _ in self._tokens:
                window.note(now, count)

    def usage(self, now: int) -> dict[str, Any]:
        """Return what it has used and what its limits here are, for the admin surface; ``None`` = no limit."""
        shown: dict[str, Any] = {"name": self.name, "role": self.config.role}
        shown["in_flight"] = {"used": self.in_flight, "limit": self.in_flight_max or None}
        if self._requests is not None:
            shown["requests_per_minute"] = {"used": self._requests.count(now), "limit": self._requests.limit}
        for window, limit, name in self._tokens:
            window.wait_ns(now, limit)
            shown[name] = {"used": window.total, "limit": limit}
        return shown


def _check_spelling(request: Request) -> None:
    """Raise :class:`RequestError` where a body spells ``model`` in another way too.

    Hosts in Go (Ollama) take the last of all spellings, so what is checked here would not be what the host reads.
    """
    try:
        names: dict[str, Any] = _decode_names(request.body)
    except UNDECODABLE:  # no object: there is no model in it
        return
    for name in names:
        if name != "model" and name.lower() == "model":
            raise RequestError(ErrorKind.BAD_REQUEST, f"the body has {name!r}: expected 'model' and no other", "model")


def tokens_of(request: Request) -> int:
    """Return how many tokens a request has used, in and out: as its host says, else as far as can be seen from here.

    A host that is not asked to the end does not say how long the prompt was. Its bytes stand for it then, so that
    leaving before the end makes nothing cheaper.
    """
    report = read_report(request.usage, request.timings, request.metrics)
    if report.has_usage:
        return report.n_in + report.n_out
    if not (request.tok1 or (request.left_ns and request.sent_ns)):
        return 0
    return (request.body_bytes or len(request.body)) // _BYTES_PER_TOKEN + request.content_count


def _limited(text: str, wait_ns: int) -> RequestError:
    return RequestError(ErrorKind.RATE_LIMITED, text, retry_after_s=-(-wait_ns // _NS))


def _header(tag: str) -> bytes:
    return _TAG_PREFIX + tag.replace("_", "-").encode()
