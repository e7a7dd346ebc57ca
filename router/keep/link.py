"""The keeper's socket: questions of routers and commands in, answers out, and its status every second.

Anybody may ask who may open the socket (mode 0600: the same user). One that asks too much at once waits: a connection
has at most :data:`QUESTIONS_MAX` questions under way, the next is read when one of them is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from router.caches import frames
from router.ingress.unix_path import make_free
from router.keep.part import KeepError, Verb

QUESTIONS_MAX: Final = 64
"""Under way for one connection."""
_UNSENT_BYTES_MAX: Final = 8 << 20
"""A listener that does not read its status is dropped there."""
_READ_BYTES: Final = 1 << 16


class Link:
    """Listens at one unix socket until it is closed."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], log: Any) -> None:
        self._path = path
        self._verbs = verbs
        self._log = log
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connection_count(self) -> int:
        """Routers and commands that are connected."""
        return len(self._writers)

    async def listen(self) -> None:
        """Begin to answer; raises :class:`OSError`, as when another keeper answers there."""
        make_free(str(self._path))
        self._server = await asyncio.start_unix_server(self._serve, str(self._path), backlog=128)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell(self, status: Any) -> None:
        """Send the status to all that are connected."""
        frame = frames.answer(0, status)
        for writer in list(self._writers):
            if writer.transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
                writer.transport.abort()
            else:
                writer.write(frame)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        deframer = frames.Deframer()
        room = asyncio.Semaphore(QUESTIONS_MAX)
        self._writers.add(writer)
        try:
            while data := await reader.read(_READ_BYTES):
                for body in deframer.feed(data):
                    question = frames.read_question(body)
                    await room.acquire()
                    task = asyncio.create_task(self._answer(question, writer, room))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except (OSError, frames.FrameError) as error:
            self._log.warning("a connection to the keeper broke", reason=str(error))
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, question: tuple[int, str, Any], writer: asyncio.StreamWriter, room: asyncio.Semaphore
    ) -> None:
        number, name, payload = question
        try:
            verb = self._verbs.get(name)
            if verb is None:
                raise KeepError(f"this keeper does not do {name[:80]!r}: it is not configured ([cache])")
            frame = frames.answer(number, await verb(payload))
        except (KeepError, frames.FrameError) as error:
            frame = frames.answer(number, str(error), is_ok=False)
        except Exception as error:  # whatever is wrong with one question, the next one is answered
            self._log.error("a question failed", verb=name, error=repr(error)[:500])
            frame = frames.answer(number, f"the keeper failed at {name!r}; its log says how", is_ok=False)
        finally:
            room.release()
        if not writer.is_closing():
            writer.write(frame)
            with contextlib.suppress(OSError):
                await writer.drain()
