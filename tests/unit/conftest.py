"""Fixtures of the unit tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory on tmpfs, as the router's is, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ringrouter-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)
