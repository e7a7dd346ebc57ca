"""The native way of the usual answer, before it is told what it needs to know.

Of its own, below all that uses it: attempts and connections ask it, and it is told of both, and of the clients that it
writes to, by :mod:`router.ingress.answering`. Until then, and of all that is not as usual, it takes nothing.
"""

from __future__ import annotations

from typing import Any, Final

from router import native

answers: Final[Any] = native.answer and native.relay and native.scan and native.steps and native.answer.Answers()
"""Takes reads as attempts and connections do, each in one call, or returns false where these must; ``None`` where there
is no native code.
"""
