"""Descriptors: libzmq ends the process when there is none for the next client, so there must be one for each."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from unittest.mock import Mock

import pytest

from router import descriptors
from router.config import Config, parse
from router.service.changeover import Changeover


class Log:
    def __init__(self) -> None:
        self.warnings: list[dict[str, int]] = []

    def warning(self, _: str, **values: int) -> None:
        self.warnings.append(values)


def configured(connections: int) -> Config:
    return parse(f"version = 1\n[limits]\nconnections = {connections}\nin_flight = 50\n")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits as the process has them, the last one in force; nothing of the test's own process is changed."""
    in_force = [(1024, 4096)]
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: in_force[-1])
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, values: in_force.append(values))
    return in_force


OTHERS = 50 + descriptors.OTHER_DESCRIPTORS


def test_the_soft_limit_is_raised_to_what_is_needed(limits: list[tuple[int, int]]) -> None:
    log = Log()
    config = configured(connections=2000)
    assert descriptors.fit_descriptors(config, log) is config
    assert limits[-1] == (2000 + OTHERS, 4096)
    assert not log.warnings


def test_a_limit_that_is_high_enough_stays(limits: list[tuple[int, int]]) -> None:
    limits.append((100_000, 100_000))
    descriptors.fit_descriptors(configured(connections=1000), Log())
    assert limits[-1] == (100_000, 100_000)


def test_an_unlimited_hard_limit_is_no_bound(limits: list[tuple[int, int]]) -> None:
    limits.append((1024, resource.RLIM_INFINITY))
    config = configured(connections=10_000)
    assert descriptors.fit_descriptors(config, Log()) is config
    assert limits[-1] == (10_000 + OTHERS, resource.RLIM_INFINITY)


def test_fewer_clients_are_taken_where_the_hard_limit_is_too_low(limits: list[tuple[int, int]]) -> None:
    log = Log()
    fitted = descriptors.fit_descriptors(configured(connections=10_000), log)
    assert limits[-1] == (4096, 4096)
    assert fitted.limits.connections == 4096 - OTHERS
    assert log.warnings == [{"descriptors": 4096, "connections": fitted.limits.connections}]


def test_a_file_that_is_read_again_is_fitted_too(limits: list[tuple[int, int]], tmp_path: Path) -> None:
    """Else each reload would say of a key that nobody has touched that it needs a restart."""
    path = tmp_path / "router.toml"
    hosts = '[[hosts]]\nname = "a"\nurl = "http://x:1"\n'
    path.write_text(f"version = 1\n[limits]\nconnections = 10_000\nin_flight = 50\n{hosts}", encoding="utf-8")
    taken_over = Mock(return_value="reloaded")
    changeover = Mock(_path=path, _take_over=taken_over)
    changeover._stop.is_set.return_value = False
    asyncio.run(Changeover.reload(changeover))
    assert taken_over.call_args.args[0].limits.connections == 4096 - OTHERS
