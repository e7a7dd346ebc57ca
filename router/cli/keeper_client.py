"""Asks the keeper for a command, or opens its store where no keeper runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Final, Self

from router.caches import frames
from router.config import Config, cache_dir, keeper_socket

ANSWER_S: Final = 600.0
"""To look at every vector of a large store takes minutes."""


class KeeperError(Exception):
    """The keeper cannot be asked, or says no; the message is one line."""


class KeeperClient:
    """One connection to the keeper; a context manager."""

    def __init__(self, path: Path) -> None:
        """Connect; raises :class:`KeeperError` where no keeper answers."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_S)
        self._deframer = frames.Deframer()
        self._number = 0
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise KeeperError(f"no keeper answers at {path} ({error.strerror}): start ringrouter keep") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, verb: str, payload: Any = None) -> Any:
        """Return the keeper's answer; raises :class:`KeeperError`."""
        self._number += 1
        try:
            self._socket.sendall(frames.question(self._number, verb, payload))
            while True:
                data = self._socket.recv(1 << 18)
                if not data:
                    raise KeeperError("the keeper ended before it answered")
                for body in self._deframer.feed(data):
                    number, is_ok, answer = frames.read_answer(body)
                    if number != self._number:
                        continue  # it tells how it does in between
                    if not is_ok:
                        raise KeeperError(str(answer))
                    return answer
        except (OSError, frames.FrameError) as error:
            raise KeeperError(f"the keeper cannot be asked: {error}") from None


class LocalStore:
    """The store itself, locked against a keeper that would start; answers what :class:`KeeperClient` would."""

    def __init__(self, config: Config) -> None:
        """Open it; raises :class:`KeeperError` where there is none, and ``ModuleNotFoundError`` without the extra."""
        import lmdb  # noqa: PLC0415 - an extra brings it

        from router.keep.check import UncheckedError, problem_of  # noqa: PLC0415 - the same
        from router.keep.embeddings import STORE_NAME  # noqa: PLC0415
        from router.keep.part import KeepError  # noqa: PLC0415
        from router.keep.process import take_lock  # noqa: PLC0415
        from router.keep.store import Store, StoreError  # noqa: PLC0415

        path = cache_dir(config) / STORE_NAME
        if not path.is_dir():
            raise KeeperError(f"no keeper runs, and there is no store in {path}")
        store_bytes = config.cache.embeddings.store_bytes
        try:
            self._lock = take_lock(path.parent)
            if problem := problem_of(path, store_bytes):
                raise KeeperError(f"the store in {path} is no good: {problem}")
            self._store = Store(path, store_bytes)
        except (KeepError, StoreError, UncheckedError, lmdb.Error, OSError) as error:
            raise KeeperError(str(error)) from None
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
        os.close(self._lock)

    def ask(self, verb: str, payload: Any = None) -> Any:
        """Return what the keeper would answer."""
        store = self._store
        if verb == "cache.get":
            return store.get(payload)
        if verb == "cache.purge":
            return {"removed": store.purge(payload)}
        if verb == "cache.verify":
            return list(store.problems())
        if verb == "cache.spaces":
            counts = store.count_by_space()
            return [[k, s.model, s.revision, s.dimensions, counts.get(k, 0)] for k, s in store.spaces().items()]
        assert verb == "status", verb
        return {"embeddings": {"path": str(self._path), **store.usage().facts()}}


def store_access(config: Config, run_dir: Path | None) -> KeeperClient | LocalStore:
    """Return the keeper, or the store where none runs; raises :class:`KeeperError`."""
    path = keeper_socket(config, run_dir)
    try:
        return KeeperClient(path)
    except KeeperError:
        return LocalStore(config)
