"""What the keeper is made of: parts that start, stop, answer questions and tell how they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

Verb = Callable[[Any], Awaitable[Any]]
"""Answers a question: its payload in, the answer out, both of what MessagePack knows. Raises :class:`KeepError`."""


class KeepError(Exception):
    """A question that cannot be answered, or a part that cannot start; the message is one line for whoever asked."""


class Part(Protocol):
    """One job of the keeper. All parts share its loop: what takes longer than a few milliseconds goes to a thread."""

    name: str
    """Under which its status is told."""

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """The questions it answers, by name; known before it is started."""

    async def start(self) -> None:
        """Begin; raises :class:`KeepError` where the keeper must not run without it."""

    async def stop(self) -> None:
        """End, and leave on disk what must outlive this."""

    def status(self) -> dict[str, Any]:
        """Return how it does now, small and at once: numbers, and ``problem`` (text) while something is wrong."""
