"""Vectors of texts, asked of a running router by a command; in batches, with what to do when one fails."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from router import config
from router.caches import entries, keys
from router.caches.calls import share_tokens
from router.errors import UNDECODABLE, ConfigError

TRIES: Final = 6
_FIRST_WAIT_S: Final = 0.2
_ANSWER_S: Final = 600.0
_BUSY: Final = frozenset({429, 502, 503, 504})
_PATH: Final = "/v1/embeddings"


class AskError(Exception):
    """The router does not answer, or refuses what can be split no further; one line."""


class Asked(NamedTuple):
    """What became of a batch: entries by key, and the texts that a host refuses, each with why."""

    found: dict[bytes, bytes]
    refused: list[tuple[str, str]]
    echo: str = ""
    """What hosts call the model, where that is another name than the one asked for."""


class _Item(msgspec.Struct):
    index: int
    embedding: list[float]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    model: str = ""
    usage: _Usage | None = None


_decode: Final = msgspec.json.Decoder(_Answer).decode


class Router:
    """Where the router answers, and with which key; used by several threads, each with connections of its own."""

    def __init__(self, address: str, key_env: str = "") -> None:
        """``address``: as ``listen.http``; raises :class:`ConfigError`."""
        self._place = config.split_address(address.removeprefix("http://").rstrip("/"), "--url")
        self._headers = {"content-type": "application/json"}
        if key_env:
            key = os.environ.get(key_env)
            if not key:
                raise ConfigError(f"--key-env {key_env}: expected the name of an environment variable that is set")
            self._headers["authorization"] = f"Bearer {key}"

    def vectors(self, space: keys.Space, texts: Sequence[str]) -> Asked:
        """Return the entries of texts. Where a host refuses them together they are asked one by one.

        Raises :class:`AskError` when the router cannot be reached, or has no host for them, again and again.
        """
        body: dict[str, Any] = {"model": space.model, "input": list(texts), "encoding_format": "float"}
        if space.dimensions:
            body["dimensions"] = space.dimensions
        begun_ns = time.monotonic_ns()
        status, answer = self._patient(msgspec.json.encode(body))
        if status == 200:
            host_us = (time.monotonic_ns() - begun_ns) // 1000
            return _asked(space, texts, answer, host_us)
        message = _message(answer) or f"status {status}"
        if not 400 <= status < 500 or status in {401, 403, 404}:
            raise AskError(f"the router refuses: {message}")
        if len(texts) == 1:
            return Asked({}, [(texts[0], message)])
        single = [self.vectors(space, [text]) for text in texts]
        found = {key: entry for each in single for key, entry in each.found.items()}
        return Asked(found, [text for each in single for text in each.refused], max(each.echo for each in single))

    def _patient(self, body: bytes) -> tuple[int, bytes]:
        """Ask again while the router is busy or away; raises :class:`AskError`."""
        wait_s = _FIRST_WAIT_S
        problem = ""
        for number in range(TRIES):
            if number:
                time.sleep(wait_s)
                wait_s *= 2
            try:
                status, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                problem = f"the router does not answer: {error}"
                continue
            if status not in _BUSY:
                return status, answer
            problem = f"the router is busy: {_message(answer) or status}"
        raise AskError(problem)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        if isinstance(self._place, str):
            connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_S)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_ANSWER_S)
            connection.sock.connect(self._place)
        else:
            host, port = self._place
            connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1"}.get(host, host), port, timeout=_ANSWER_S)  # noqa: S104
        try:
            connection.request("POST", _PATH, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _asked(space: keys.Space, texts: Sequence[str], answer: bytes, host_us: int) -> Asked:
    try:
        decoded = _decode(answer)
    except UNDECODABLE as error:
        raise AskError(f"the router's answer cannot be read: {error}") from None
    by_index = {item.index: item.embedding for item in decoded.data}
    if sorted(by_index) != list(range(len(texts))):
        raise AskError(f"the router answered with {len(by_index)} vectors for {len(texts)} texts")
    shares = share_tokens(decoded.usage.prompt_tokens if decoded.usage else 0, [len(text.encode()) for text in texts])
    space_id, made_s = space.space_id(), int(time.time())
    found = {}
    for index, text in enumerate(texts):
        key = keys.key_of(space_id, text)
        kind, numbers = entries.from_floats(by_index[index])
        found[key] = entries.pack(
            key, kind, numbers, tokens=shares[index], host_us=host_us, made_s=made_s, exact=len(texts) == 1
        )
    return Asked(found, [], decoded.model if decoded.model != space.model else "")


def _message(answer: bytes) -> str:
    try:
        decoded = msgspec.json.decode(answer)
    except UNDECODABLE:
        return answer[:200].decode("utf-8", "replace")
    error = decoded.get("error") if isinstance(decoded, dict) else None
    return str(error.get("message", ""))[:500] if isinstance(error, dict) else ""


def router_of(settings: config.Config, url: str | None, key_env: str) -> Router:
    """Return the router of a configuration, or at ``url``; raises :class:`ConfigError`."""
    address = url or (settings.listen.http[0] if settings.listen.http else "")
    if not address:
        raise ConfigError("listen.http is empty: say with --url where the router is")
    return Router(address, key_env)
