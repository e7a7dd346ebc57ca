"""Real model hosts and a router in front of them, once for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.embedded.hosts import CHAT, EMBEDDING, HostPythonMissingError, find_host_python
from tests.support.processes import HostProcess, RouterProcess
from tests.support.waiting import shared_memory_directory


@pytest.fixture(scope="session")
def host_directory() -> Iterator[Path]:
    """A directory in shared memory for the hosts, which need the packages of `make hosts`."""
    try:
        find_host_python()
    except HostPythonMissingError as error:
        if os.environ.get("CI"):  # a pipeline that tests nothing real must not look green
            pytest.fail(str(error))
        pytest.skip(str(error))
    with shared_memory_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def llama_host(host_directory: Path) -> Iterator[HostProcess]:
    """SmolLM2-135M with 4 slots. One thread and small batches: even gaps between tokens, prompt cancellation."""
    with HostProcess(host_directory, CHAT, "--slots", "4", "--threads", "1", "--batch", "64") as host:
        yield host


@pytest.fixture(scope="session")
def embed_host(host_directory: Path) -> Iterator[HostProcess]:
    """all-MiniLM-L6-v2 with 2 slots."""
    with HostProcess(host_directory, EMBEDDING) as host:
        yield host


@pytest.fixture(scope="session")
def router(host_directory: Path, llama_host: HostProcess, embed_host: HostProcess) -> Iterator[RouterProcess]:
    """A router in front of both hosts."""
    with RouterProcess(host_directory, llama_host.toml() + embed_host.toml()) as process:
        yield process
