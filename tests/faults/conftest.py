"""Each module here has one router: a fixture ``running_stage`` of its own; its host is this one, or one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import Stage
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import shared_memory_directory


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A fresh directory in shared memory."""
    with shared_memory_directory() as path:
        yield path


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    """A host that does as a test says."""
    with ScriptedHost("alpha") as host:
        yield host


@pytest.fixture
def stage(running_stage: Stage) -> Iterator[Stage]:
    """The module's router; after the test it must be where it started."""
    yield running_stage
    running_stage.settle()
