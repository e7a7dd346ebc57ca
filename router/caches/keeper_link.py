"""The router's end of the link to the keeper: questions out, answers in, and what the keeper says of itself.

A keeper that is not there is looked for once a second. One that is there says so once a second; one that does not is
asked nothing. Questions are bounded in number and time; none waits for a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from router.caches import frames

if TYPE_CHECKING:
    from router.telemetry.counters import Counter

QUESTIONS_MAX: Final = 64
"""Under way at once: as many as the keeper works on for one connection."""
SILENT_S_MAX: Final = 5
"""After so many seconds without a word the keeper hangs: it speaks every second (``STATUS_EVERY_S`` there)."""
_UNSENT_BYTES_MAX: Final = 16 << 20

OnAnswer = Callable[[bool, Any], None]
"""Takes an answer: whether it is one, and it, or the text that says why not."""


class KeeperLink:
    """One connection. ``status`` is what the keeper last said of itself, empty while it is not connected."""

    def __init__(self, path: Path, on_status: Callable[[dict[str, Any]], None]) -> None:
        self.status: dict[str, Any] = {}
        self._path = path
        self._on_status = on_status
        self._event_loop = asyncio.get_running_loop()
        self._protocol: _Protocol | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._asked: dict[int, tuple[OnAnswer, asyncio.TimerHandle]] = {}
        self._number = 0
        self._silent_s = 0
        """Seconds since it last spoke, counted by :meth:`second`: while this process stands still none pass."""
        self._closed = False

    @property
    def is_up(self) -> bool:
        """Whether a keeper is connected and at work."""
        return self._protocol is not None and self._silent_s < SILENT_S_MAX

    def second(self, _: int = 0) -> None:
        """Look for a keeper where none is connected; once a second."""
        self._silent_s += 1
        if self._protocol is None and self._connecting is None and not self._closed:
            self._connecting = self._event_loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._event_loop.create_unix_connection(lambda: _Protocol(self), str(self._path))
        except OSError:
            pass  # there is none
        finally:
            self._connecting = None

    def ask(self, verb: str, payload: Any, on_answer: OnAnswer, wait_s: float) -> str:
        """Ask the keeper; return why that cannot be done now, empty when it was. ``on_answer`` is called once."""
        protocol = self._protocol
        if protocol is None:
            return "the keeper (ringrouter keep) is not running"
        if not self.is_up:
            return f"the keeper (ringrouter keep) hangs: it has said nothing for {self._silent_s} s"
        if len(self._asked) >= QUESTIONS_MAX:
            return f"{QUESTIONS_MAX} questions to the keeper are under way"
        self._number += 1
        number = self._number
        try:
            frame = frames.question(number, verb, payload)
        except frames.FrameError as error:
            return str(error)
        timer = self._event_loop.call_later(wait_s, self._late, number, wait_s)
        self._asked[number] = on_answer, timer
        protocol.write(frame)
        return ""

    def _late(self, number: int, wait_s: float) -> None:
        self._settle(number, is_ok=False, payload=f"the keeper did not answer in {wait_s:g} s")

    def _settle(self, number: int, *, is_ok: bool, payload: Any) -> None:
        found = self._asked.pop(number, None)
        if found is not None:
            on_answer, timer = found
            timer.cancel()
            on_answer(is_ok, payload)

    # ------------------------------------------------------------ used by the protocol
    def opened(self, protocol: _Protocol) -> None:
        """A keeper is there."""
        self._protocol = protocol
        self._silent_s = 0

    def take(self, body: bytes) -> None:
        """Take the body of a frame."""
        self._silent_s = 0
        number, is_ok, payload = frames.read_answer(body)
        if number:
            self._settle(number, is_ok=is_ok, payload=payload)
        elif isinstance(payload, dict):
            self.status = payload
            self._on_status(payload)

    def lost(self, protocol: _Protocol) -> None:
        """The keeper is gone: nothing that was asked will be answered."""
        if self._protocol is not protocol:
            return
        self._protocol = None
        self.status = {}
        for number in list(self._asked):
            self._settle(number, is_ok=False, payload="the keeper ended before it answered")

    def close(self) -> None:
        """Ask nothing any more."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is not None:
            self._protocol.close()


class _Protocol(asyncio.Protocol):
    """The connection."""

    def __init__(self, link: KeeperLink) -> None:
        self._link = link
        self._deframer = frames.Deframer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._link.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._deframer.feed(data):
                self._link.take(body)
        except frames.FrameError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface of asyncio
        self._transport = None
        self._link.lost(self)

    def write(self, frame: bytes) -> None:
        """Send a frame; a keeper that takes nothing is given up."""
        transport = self._transport
        if transport is None:
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            transport.abort()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


def show(put: Callable[[Counter, int], None], counters: dict[Counter, Any]) -> None:
    """Set counters to what numbers there are among some values."""
    for counter, value in counters.items():
        put(counter, int(value) if isinstance(value, int | float) else 0)
