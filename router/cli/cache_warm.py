"""``ringrouter cache warm``: computes the vectors of a file's texts ahead, and has the keeper write them.

What is in the store already is not asked for, so that the command goes on where one before it ended. A vector counts as
*durable* when the keeper has said that it is on the disk; nothing else is reported as done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Final, TextIO

import msgspec

from router.caches import keys
from router.cli.cache_ask import Asked, Router
from router.cli.keeper_client import KeeperClient

CHUNK: Final = 1024
"""Texts whose keys are asked for together."""
_BAR_CHARS: Final = 30
_SHOWN_EVERY_S: Final = 0.2
_REFUSED_SHOWN: Final = 5


@dataclass
class Account:
    """What became of every text: ``texts`` is the sum of those from ``present`` to ``dropped``."""

    texts: int = 0
    present: int = 0
    """They were in the store."""
    durable: int = 0
    """They are in it now, on the disk."""
    repeated: int = 0
    """They had stood in the file shortly before."""
    empty: int = 0
    refused: int = 0
    """No host takes them."""
    dropped: int = 0
    """The store had no room."""
    evicted: int = 0
    """Older vectors that left the store for new ones; they may be of this file."""
    reasons: list[str] = field(default_factory=list)
    """Why texts were refused; the first few."""

    def as_json(self) -> dict[str, object]:
        """Return all of it."""
        return asdict(self)


class Bar:
    """A line on a terminal that shows how far it is; nothing elsewhere."""

    def __init__(self, total: int, out: TextIO) -> None:
        self._total = max(total, 1)
        self._out = out
        self._is_on = out.isatty()
        self._begun_s = time.monotonic()
        self._shown_s = 0.0

    def show(self, done: int, *, last: bool = False) -> None:
        """Draw it, a few times a second."""
        now_s = time.monotonic()
        if not self._is_on or (now_s - self._shown_s < _SHOWN_EVERY_S and not last):
            return
        self._shown_s = now_s
        share = min(done / self._total, 1.0)
        filled = int(share * _BAR_CHARS)
        per_s = done / max(now_s - self._begun_s, 1e-3)
        left_s = (self._total - done) / per_s if per_s else 0.0
        bar = "█" * filled + "░" * (_BAR_CHARS - filled)
        text = f"\r{bar} {done:,}/{self._total:,} {share:4.0%} {per_s:,.0f}/s, {left_s:,.0f} s left "
        self._out.write(text + ("\n" if last else ""))
        self._out.flush()


class Warmer:
    """Warms one space through one router and one keeper. ``account`` is true at every moment."""

    def __init__(
        self, router: Router, keeper: KeeperClient, space: keys.Space, *, batch: int, parallel: int, total: int
    ) -> None:
        self.account = Account()
        self._router = router
        self._keeper = keeper
        self._space = space
        self._space_id = space.space_id()
        self._batch = batch
        self._parallel = parallel
        self._bar = Bar(total, sys.stderr)
        self._evicted_before = 0

    def run(self, texts: Iterator[str]) -> None:
        """Warm all texts; raises what asking the router and the keeper raises, with the account as it is then."""
        self._evicted_before = self._evicted_in_all()
        with ThreadPoolExecutor(self._parallel) as pool:
            try:
                while chunk := list(islice(texts, CHUNK)):
                    self._chunk(pool, self._missing(chunk))
                self._note_evicted()
                self._bar.show(self.account.texts, last=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _missing(self, chunk: Sequence[str]) -> list[str]:
        """Return the texts of a chunk that are not in the store."""
        account = self.account
        account.texts += len(chunk)
        by_key: dict[bytes, str] = {}
        for text in chunk:
            if not text:
                account.empty += 1
                continue
            key = keys.key_of(self._space_id, text)
            account.repeated += key in by_key
            by_key[key] = text
        asked = list(by_key)
        there = self._keeper.ask("cache.has", asked)
        account.present += sum(there)
        return [by_key[key] for key, is_there in zip(asked, there, strict=True) if not is_there]

    def _chunk(self, pool: ThreadPoolExecutor, texts: Sequence[str]) -> None:
        batches = [texts[begin : begin + self._batch] for begin in range(0, len(texts), self._batch)]
        under_way: set[Future[Asked]] = {pool.submit(self._router.vectors, self._space, batch) for batch in batches}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for each in done:
                self._write(each.result())
        self._bar.show(self.account.texts)

    def _write(self, asked: Asked) -> None:
        account = self.account
        account.refused += len(asked.refused)
        for text, why in asked.refused[: max(0, _REFUSED_SHOWN - len(account.reasons))]:
            account.reasons.append(f"{text[:60]!r}: {why}")
        if asked.found:
            record = msgspec.structs.replace(self._space, echo=asked.echo).record()
            head = len(record).to_bytes(2, "little") + record
            answer = self._keeper.ask("cache.put", [head + key + entry for key, entry in asked.found.items()])
            account.durable += answer["durable"]
            account.dropped += len(asked.found) - answer["durable"]
            self._note_evicted()
        self._bar.show(account.texts - self._left())

    def _note_evicted(self) -> None:
        """Note what has left the store since the beginning: a vector may get there by the router's ring as well."""
        self.account.evicted = self._evicted_in_all() - self._evicted_before

    def _evicted_in_all(self) -> int:
        return int(self._keeper.ask("status")["embeddings"]["evicted"])

    def _left(self) -> int:
        """Return the texts of which it is not known yet what becomes of them."""
        a = self.account
        return a.texts - a.present - a.durable - a.repeated - a.empty - a.refused - a.dropped
