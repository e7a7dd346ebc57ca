"""Fixtures of the tests of the measuring programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.build import compiler
from bench.processes import MockHosts


@pytest.fixture
def host() -> Iterator[MockHosts]:
    """A mock host on a free port, with its options as they are by default."""
    if compiler() is None:
        pytest.skip("the mock host is written in C and there is no compiler")
    with MockHosts(["127.0.0.1:0"]) as hosts:
        yield hosts
