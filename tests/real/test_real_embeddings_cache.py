"""A real embedding host behind the cache: what it has said once is said again, bit for bit, without it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.embedded.hosts import EMBEDDING
from tests.faults.client import Client
from tests.support.keeper import AskedKeeper, command, json_of
from tests.support.processes import HostProcess, RouterProcess, host_toml
from tests.support.recording_relay import RecordingRelay
from tests.support.waiting import shared_memory_directory

PATH = "/v1/embeddings"
MODEL = EMBEDDING.model
AT_ONCE = 50


@pytest.fixture
def place(host_directory: Path) -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


def bits(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_a_warm_store_answers_after_a_restart_with_what_the_host_had_said(place: Path, count: int) -> None:
    texts = [f"Paragraph {n}: of rivers, number {n * 7919 % 1013}, and of ships." for n in range(count)]
    file = place / "texts.txt"
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    with HostProcess(place, EMBEDDING) as host, RecordingRelay(place / "relay.sock", host.socket_path) as relay:
        toml = f'[cache]\ndir = "{place}/cache"\n[cache.embeddings]\nenabled = true\n' + host_toml(
            "e1", relay.url, kind="llama.cpp", models=[MODEL]
        )
        router = RouterProcess(place, toml)
        with AskedKeeper(router), router:
            line = ["warm", str(file), "--model", MODEL, "--json"]
            account = json_of(command(router.config_path, *line))
            assert account["durable"] == count
        said = {
            text: bits(item["embedding"])
            for request, answer in relay.exchanges(PATH)
            for text, item in zip(request["input"], sorted(answer["data"], key=lambda i: i["index"]), strict=True)
        }
        assert set(said) == set(texts)
        call_count = len(relay.exchanges(PATH))
        with AskedKeeper(router), router:
            assert json_of(command(router.config_path, "verify", "--json")) == {
                "schema": 1, "vectors": count, "problems": [],
            }  # fmt: skip
            with Client(router.port) as client:
                for begin in range(0, count, AT_ONCE):
                    part = texts[begin : begin + AT_ONCE]
                    client.post({"model": MODEL, "input": part}, PATH)
                    answer = client.answer()
                    assert answer.headers["x-ringrouter-cache"] == "hit"
                    for text, item in zip(part, json.loads(answer.body)["data"], strict=True):
                        assert bits(item["embedding"]) == said[text]
        assert len(relay.exchanges(PATH)) == call_count, "no call of the host after the restart"
