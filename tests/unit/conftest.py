"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import shared_memory_directory


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory on tmpfs, as the router's is, removed afterwards."""
    with shared_memory_directory() as path:
        yield path
