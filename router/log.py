"""Logging set-up: structlog, never on the token path, and never with a prompt, an answer or a secret in it.

Under systemd they are datagrams to the journal, with a field for each value (:mod:`router.service.journal`). Elsewhere
a thread of their own writes them: a terminal or pipe that nobody reads must not stop the loop. What is not taken is
dropped and counted (:func:`dropped_count`).
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import traceback
from typing import Any, Final, TextIO

from router.config import Log
from router.service import journal

if "rich" in sys.modules:
    import structlog
else:
    # Where rich is installed, for `ringrouter top`, structlog loads it, for tracebacks in colour that no router shows:
    # 90 modules, 6 MB and a third of the time to start.
    sys.modules["rich"] = None  # type: ignore[assignment]  # what importlib takes for "is not there"
    try:
        import structlog
    finally:
        del sys.modules["rich"]

_QUEUED_MAX: Final = 1024
_LAST_WORDS_S: Final = 1.0
"""How long the end of the process waits for the last messages to be taken."""


class _Writer:
    """A text stream that never blocks whoever writes to it."""

    def __init__(self, target: TextIO) -> None:
        self._descriptor = target.fileno()
        self._queue: queue.Queue[str | None] = queue.Queue(_QUEUED_MAX)
        self._dropped = 0
        self.dropped_count = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def write(self, text: str) -> None:
        """Queue a message, or drop it when nobody takes them."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1
            self.dropped_count += 1

    def flush(self) -> None:
        """Do nothing: the thread flushes."""

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                text += f"{dropped} messages were dropped: nobody took them\n"
            # Straight to the descriptor: what waited in Python's own buffer would be waited for at the process's end.
            left = text.encode("utf-8", "replace")
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                self._dropped += 1 + dropped  # closed, or a full disk: nothing is left to tell it to

    def _close(self) -> None:
        try:
            self._queue.put(None, timeout=_LAST_WORDS_S)
        except queue.Full:
            return
        self._thread.join(_LAST_WORDS_S)


class _Target:
    """Where this process's messages go."""

    sink: _Writer | journal.JournalLogger | None = None


_target: Final = _Target()


def dropped_count() -> int:
    """Return how many messages nobody took since the start of the process."""
    return _target.sink.dropped_count if _target.sink is not None else 0


def set_up(config: Log) -> Any:
    """Configure structlog for the process and return a logger; messages go to standard error, or to the journal where
    that is its other end and ``log.format`` leaves it open.
    """
    level = structlog.make_filtering_bound_logger(getattr(logging, config.level.upper()))
    if config.format == "auto" and journal.is_ours():
        _target.sink = sink = journal.JournalLogger()
        structlog.configure(
            processors=[journal.render],
            wrapper_class=level,
            logger_factory=lambda *_: sink,
            cache_logger_on_first_use=True,
        )
        return structlog.get_logger("ringrouter")
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    _target.sink = writer = _Writer(sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=level,
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger("ringrouter")


def log_unhandled(log: Any, context: dict[str, Any]) -> None:
    """Log an exception that escaped a callback of the event loop: where it was raised and its type, never its text.

    The text of an exception may quote what a client or a host sent.
    """
    error = context.get("exception")
    where = traceback.extract_tb(error.__traceback__)[-1] if error is not None and error.__traceback__ else None
    log.error(
        "internal error",
        what=context.get("message", ""),
        type=type(error).__name__,
        where=f"{where.filename.rpartition('/')[2]}:{where.lineno} {where.name}" if where else "",
    )
