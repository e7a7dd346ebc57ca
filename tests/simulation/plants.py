"""Bugs that are planted into the router, by name: each is of a kind that users of routers have met.

Each is a context manager that changes the running code and puts it back. That the code to be changed is there is
checked, so that a plant cannot grow over when the router changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

Plant = Callable[[], AbstractContextManager[None]]
PLANTS: Final[dict[str, Plant]] = {}
