"""Facts of the kinds of hosts, and what overrides them."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from router.config import HostConfig, HostFacts
from router.hosts.kinds import KINDS, facts_of

OWN_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health", "/ready", "/metrics"}


def host(**facts: Any) -> HostConfig:
    return HostConfig(name="a", url="http://a:1", facts=HostFacts(**facts))


@pytest.mark.parametrize("kind", KINDS)
def test_the_paths_of_a_kind_could_stand_in_the_configuration(kind: str) -> None:
    paths = KINDS[kind].paths
    assert paths
    assert len(set(paths)) == len(paths), "each once"
    assert not OWN_PATHS & set(paths), "the router's own paths are its own"
    given = msgspec.convert({"paths": list(paths)}, HostFacts)
    assert facts_of(kind, host(paths=given.paths)).paths == paths


def test_a_hosts_own_paths_stand_in_place_of_its_kinds() -> None:
    assert facts_of("vllm", host()).paths == KINDS["vllm"].paths
    assert facts_of("vllm", host(paths=["/a"])).paths == ("/a",)
    assert facts_of("vllm", host(paths=[])).paths == ()


def test_every_kind_of_the_configuration_has_facts() -> None:
    assert set(get_args(get_type_hints(HostConfig)["kind"])) == {"auto", *KINDS}
