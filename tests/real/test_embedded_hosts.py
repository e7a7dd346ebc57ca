"""The model hosts that come with the project do what they are for."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from router.embedded.hosts import EMBEDDING
from tests.support.processes import HostProcess
from tests.support.waiting import shared_memory_directory


def post(socket_path: Path, path: str, body: dict[str, Any]) -> Any:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(socket_path))
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_embeddings_of_the_converted_model_put_a_paraphrase_nearer_than_another_subject(
    embed_host: HostProcess,
) -> None:
    texts = ["A man eats food.", "A man is eating a meal.", "The car is red."]
    rows = post(embed_host.socket_path, "/v1/embeddings", {"input": texts})["data"]
    meal, paraphrase, car = (row["embedding"] for row in rows)

    def cosine(a: list[float], b: list[float]) -> float:  # llama.cpp normalises: the product is the cosine
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert len(meal) == 384
    assert cosine(meal, paraphrase) > 0.8, "the conversion kept what the model has learnt"
    assert cosine(meal, car) < 0.2


def test_the_chat_template_shows_the_model_its_tools(llama_host: HostProcess) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "hello"}], "tools": [tool]}
    prompt = post(llama_host.socket_path, "/apply-template", body)["prompt"]
    assert "get_weather" in prompt
    assert prompt.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")


def test_a_host_takes_the_place_of_one_that_was_killed(host_directory: Path) -> None:
    with shared_memory_directory() as directory:
        killed = HostProcess(directory, EMBEDDING).start()
        killed.kill()
        assert killed.socket_path.is_socket(), "a killed host leaves its socket"
        with HostProcess(directory, EMBEDDING) as host:
            assert host.busy_slot_count() == 0, "the next one answers there"
        assert not host.socket_path.exists(), "a stopped one takes it away"
