"""A host that computes vectors: of each text always the same, and in the forms that hosts send."""

from __future__ import annotations

import base64
import json
import random
import struct
from array import array
from typing import Any

from tests.support.scripted_host import Exchange, Gate, Script, ScriptedHost, json_answer

DIMENSIONS = 8


def vector_of(text: Any, dimensions: int = DIMENSIONS, *, rounded: bool = False) -> list[float]:
    """Return the numbers of a text: such as fit into 32 bits or, ``rounded``, such as do not."""
    source = random.Random(json.dumps(text))
    values = array("f", [source.gauss(0, 0.05) for _ in range(dimensions)]).tolist()
    return [round(value, 6) for value in values] if rounded else values


def tokens_of(text: Any) -> int:
    """Return how many tokens a text counts as."""
    return len(text) if isinstance(text, list) else len(text.split()) + 2


class EmbeddingHost(ScriptedHost):
    """Answers /v1/embeddings by itself; scripts come first, as with every scripted host.

    ``gate`` is waited for before each answer, or before those of calls with one of the texts ``held`` if there are any;
    ``poison`` are texts that it refuses with a call that has one of them,
    ``rounded`` tells that it writes numbers that 32 bits do not hold.
    """

    def __init__(self, name: str, *, dimensions: int = DIMENSIONS, **keys: Any) -> None:
        super().__init__(name, **keys)
        self.dimensions = dimensions
        self.gate: Gate | None = None
        self.held: set[str] = set()
        self.poison: set[str] = set()
        self.rounded = False
        self.echo = ""

    def release(self) -> None:
        """Hold nothing back any more."""
        gate, self.gate = self.gate, None
        if gate is not None:
            self._in_loop(gate.unlock)

    @property
    def calls(self) -> list[list[Any]]:
        """The texts of each call for embeddings."""
        return [each.json()["input"] for each in self.exchanges if each.path == "/v1/embeddings"]

    def _began(self, exchange: Exchange) -> Script:
        has_script = bool(self._scripts)
        script = super()._began(exchange)
        if exchange.path != "/v1/embeddings" or has_script:
            return script
        answer = self._answer(exchange.json())
        is_free = self.gate is None or (self.held and self.held.isdisjoint(exchange.json()["input"]))
        return [answer] if is_free else [self.gate, answer]

    def _answer(self, body: dict[str, Any]) -> bytes:
        texts = body["input"]
        if isinstance(texts, str) or (texts and isinstance(texts[0], int)):
            texts = [texts]
        bad = [text for text in texts if isinstance(text, str) and text in self.poison]
        if bad:
            message = f"{bad[0]} is too long"
            return json_answer(400, {"error": {"code": 400, "message": message, "type": "invalid_request_error"}})
        data = []
        for index, text in enumerate(texts):
            values: Any = vector_of(text, body.get("dimensions", self.dimensions), rounded=self.rounded)
            if body.get("encoding_format") == "base64":
                values = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            data.append({"object": "embedding", "index": index, "embedding": values})
        count = sum(map(tokens_of, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        model = self.echo or body["model"]
        return json_answer(200, {"object": "list", "data": data[::-1], "model": model, "usage": usage})
