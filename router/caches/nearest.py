"""Questions for what is nearest in a table: the router takes them, has a text made a vector, and the keeper answers.

``POST /v1/ringrouter/nearest`` and the ZeroMQ verb ``nearest`` are requests like any other: published, recorded,
bounded in time, cancelled when their client leaves. The product with the table is the keeper's, so that no stream waits
for it.
"""

from __future__ import annotations

import binascii
import math
from array import array
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.caches import entries, keys
from router.caches.calls import Failure
from router.caches.embeddings import OneVector
from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.ingress.wishes import NO_WISHES, read_wishes, settle, with_metadata
from router.models import Model
from router.request import Egress, Request
from router.telemetry.counters import Counter
from router.telemetry.records import NAME_MODEL, Endpoint, Phase

if TYPE_CHECKING:
    from router.caches.embeddings import Embeddings
    from router.caches.keeper_link import KeeperLink
    from router.config import Config
    from router.loop import Loop

PATH: Final = "/v1/ringrouter/nearest"
VERB: Final = "nearest"
K_DEFAULT: Final = 10
_JSON: Final = b"application/json"
_DIMENSIONS_MAX: Final = 65_536
_SHOWN: Final = 20
_BAD: Final = ErrorKind.BAD_REQUEST


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a question: exactly one of ``input`` (a text) and ``vector`` (numbers, or base64 of f32)."""

    table: str
    input: str | None = None
    vector: list[float] | str | None = None
    k: int = K_DEFAULT
    metadata_of_items: bool = True
    user: str | None = None
    metadata: dict[str, Any] | None = None


_decode: Final = msgspec.json.Decoder(Question).decode


class NearestFront:
    """Makes requests of questions, and answers them by the keeper."""

    def __init__(self, config: Config, loop: Loop, embeddings: Embeddings, link: KeeperLink) -> None:
        self._config = config
        self._loop = loop
        self._embeddings = embeddings
        self._link = link
        self._wait_s = config.cache.nearest.wait_ms / 1000
        self._k_max = config.cache.nearest.k_max
        self._models: dict[str, Model] = {}
        self._admit: Callable[[Request, int], None] = loop.take

    def stand_in_front(self) -> None:
        """Take questions off the ring in place of what did until now."""
        self._admit = self._loop.take
        self._loop.take = self.take

    # ------------------------------------------------------------ in
    def request(
        self, egress: Egress, request_id: str, headers: Mapping[bytes, bytes], body: bytes, recv_ns: int, body_ns: int
    ) -> Request:
        """Return the request that a body asks for; raises :class:`RequestError` that names what is wrong with it."""
        question = self._read(body)
        model = self._model(self._model_name(question))
        request = Request(
            egress, Endpoint.OTHER, request_id, body, question, headers, model, recv_ns, body_ns,
            path=PATH, target=PATH.encode(), model_id=model.model_id,
        )  # fmt: skip
        wishes = read_wishes(headers, has_features=bool(self._loop.config.features))
        if question.metadata:
            wishes = with_metadata(wishes, headers, question.metadata)
        if wishes is not None or model.has_rules:
            settle(self._loop, request, wishes or NO_WISHES)
        return request

    def _read(self, body: bytes) -> Question:
        try:
            question = _decode(body)
        except UNDECODABLE as error:
            text = str(error).replace("`", "").replace(" - at $.", " at ")
            raise RequestError(_BAD, f"the body is no question: {text}") from None
        if not 1 <= question.k <= self._k_max:
            raise RequestError(_BAD, f"k = {question.k}: expected 1 to {self._k_max} (cache.nearest.k_max)", "k")
        if (question.input is None) == (question.vector is None):
            raise RequestError(_BAD, "expected input or vector, one of them", "input")
        if question.input == "":
            raise RequestError(_BAD, "input is empty", "input")
        return question

    def _model_name(self, question: Question) -> str:
        """Return the model of a question's table, as the keeper last said."""
        tables = self._tables()
        table = tables.get(question.table)
        if isinstance(table, dict):
            return str(table.get("model", ""))
        if not self._link.status:
            raise RequestError(ErrorKind.NO_HOST, "the keeper (ringrouter keep) is not running", "table")
        known = ", ".join(sorted(tables)[:_SHOWN]) or "none"
        text = f"no table is called {question.table[:100]!r} (tables: {known})"
        raise RequestError(ErrorKind.NOT_FOUND, text, "table")

    def _tables(self) -> dict[str, Any]:
        status = self._link.status.get("nearest")
        tables = status.get("tables") if isinstance(status, dict) else None
        return tables if isinstance(tables, dict) else {}

    def _model(self, name: str) -> Model:
        """Return the model of a table, also one that no host serves: its vectors may be asked for."""
        model = self._loop.models.get(name) or self._models.get(name)
        if model is None:
            model_id = self._loop.telemetry.names.intern(NAME_MODEL, name)
            model = self._models[name] = Model(name, model_id, self._config)
        return model

    # ------------------------------------------------------------ an answer
    def take(self, request: Request, now: int) -> None:
        """Answer a question off the ring; let all others be admitted."""
        if request.path != PATH:
            self._admit(request, now)
            return
        self._loop.park(request)
        self._loop.counters.add(Counter.NEAREST)
        question: Question = request.fields
        try:
            if question.vector is not None:
                self._ask(request, question, _vector_bytes(question.vector))
            else:
                self._embed(request, question, question.input or "")
        except RequestError as error:
            self._loop.fail(request, error.kind, error.message, monotonic_ns())

    def _embed(self, request: Request, question: Question, text: str) -> None:
        """Have a text made a vector, by the cache or by a host, then ask."""
        model = self._loop.models.get(request.model.name)
        if model is None:
            name = request.model.name
            raise RequestError(
                ErrorKind.NO_HOST, f"table {question.table!r} is of {name!r}, which no host serves: ask with a vector"
            )
        texts = keys.Texts((text,), "float", 0)
        key = keys.key_of(self._embeddings.space_of(model.name, 0), text)
        entry = self._embeddings.find(key)
        if entry is not None:
            self._ask(request, question, entries.f32_bytes(entry))
            return

        def found(entry: bytes) -> None:
            if request.phase is not Phase.DONE:
                self._ask(request, question, entries.f32_bytes(entry))

        def failed(failure: Failure) -> None:
            if request.phase is not Phase.DONE:
                self._fail(request, failure)

        self._embeddings.ask(model, texts, 0, key, OneVector(request.terms, found, failed))

    def _fail(self, request: Request, failure: Failure) -> None:
        if failure.status:
            self._loop.end_with_status(
                request, failure.status, failure.content_type, failure.body, failure.extra, failure.message
            )
        else:
            self._loop.fail(request, failure.kind, failure.message, monotonic_ns(), failure.retry_after_s)

    def _ask(self, request: Request, question: Question, vector: bytes) -> None:
        asked = [question.table, question.k, vector, question.metadata_of_items]
        text = self._link.ask(VERB, asked, lambda ok, payload: self._answer(request, payload, ok=ok), self._wait_s)
        if text:
            self._loop.fail(request, ErrorKind.NO_HOST, text, monotonic_ns())

    def _answer(self, request: Request, payload: Any, *, ok: bool) -> None:
        """Write what the keeper has answered: ``[error, body]``, one of them empty."""
        if request.phase is Phase.DONE:
            return
        now = monotonic_ns()
        if not ok:
            self._loop.fail(request, ErrorKind.NO_HOST, str(payload), now)
            return
        error, body = payload
        if error:
            self._loop.fail(request, _BAD, error, now)
            return
        request.tok1 = request.tok_n = request.ttfc = request.ttfo = now
        request.status = 200
        request.egress.whole(request, 200, _JSON, body)
        self._loop.end_ok(request, now)


def _vector_bytes(vector: list[float] | str) -> bytes:
    """Return the numbers of a question's vector, 32 bits each; raises :class:`RequestError`."""
    try:
        numbers = (
            array("f", binascii.a2b_base64(vector, strict_mode=True)) if isinstance(vector, str) else array("f", vector)
        )
    except (ValueError, OverflowError) as error:
        raise RequestError(_BAD, f"vector: {error}", "vector") from None
    if not 1 <= len(numbers) <= _DIMENSIONS_MAX:
        raise RequestError(_BAD, f"vector has {len(numbers)} numbers, expected 1 to {_DIMENSIONS_MAX}", "vector")
    if not math.isfinite(sum(numbers)) or not any(numbers):
        raise RequestError(_BAD, "vector: expected finite numbers that are not all 0", "vector")
    return numbers.tobytes()
