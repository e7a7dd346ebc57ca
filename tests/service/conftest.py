"""One systemd for all tests here, with the units installed as an operator installs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.site import Site
from tests.support.scripted_host import ScriptedHost
from tests.support.systemd import booted


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A machine with a service on it."""
    for machine in booted():
        with ScriptedHost("gpu") as host:
            yield Site(machine, host)


@pytest.fixture
def service(site: Site) -> Iterator[Site]:
    """The service with its usual configuration, running; stopped after the test."""
    site.reset()
    site.start()
    yield site
    site.stop()
