"""ZeroMQ clients of a real model: the document's own example, and clients that die."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import msgspec
import pytest

from router.embedded.hosts import CHAT
from tests.faults.zeromq_client import ZeromqClient
from tests.support.machine_delays import MachineDelays
from tests.support.processes import HostProcess, Program, RouterProcess
from tests.support.records import done_record
from tests.support.waiting import shared_memory_directory, wait_until

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "zeromq.md"
EXAMPLE_ENDPOINT = "ipc:///run/user/1000/ringrouter/main/zmq.sock"
EXAMPLE_LINES_MAX = 25
SLOT_FREE_S_MAX = 3.0
"""What the host takes to see that nobody waits: it looks at its sockets between two batches."""
ANSWER_TOKENS = 1500
MSGPACK_SHIM = """
import sys, types, msgspec
shim = sys.modules["msgpack"] = types.ModuleType("msgpack")
shim.packb, shim.unpackb = msgspec.msgpack.encode, msgspec.msgpack.decode
"""
"""The example uses another MessagePack library; the two calls it makes are these."""
DYING_PROGRAM = """
import sys, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart([bytes.fromhex(sys.argv[2]), sys.argv[3].encode()])
while True:
    socket.recv_multipart()
"""


@pytest.fixture
def endpoint(router: RouterProcess) -> str:
    return f"ipc://{router.instance_dir}/zmq.sock"


@pytest.fixture
def log_directory() -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


def test_the_example_of_the_document_streams_a_chat(endpoint: str) -> None:
    found = re.search(r"## In short\n\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    example = found[1]
    assert len(example.splitlines()) <= EXAMPLE_LINES_MAX
    assert EXAMPLE_ENDPOINT in example
    assert '"max_tokens": 50}' in example
    certain = example.replace('"max_tokens": 50}', '"max_tokens": 50, "temperature": 0, "ignore_eos": True}')
    program = MSGPACK_SHIM + certain.replace(EXAMPLE_ENDPOINT, endpoint)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    *events, end = done.stdout.strip().split("\n")
    assert end.startswith("done [{'status': 200"), "the last line it prints is the end"
    texts = [json.loads(line.removeprefix("data: ")) for line in events if line]
    deltas = [choice["delta"].get("content") or "" for text in texts for choice in text["choices"]]
    assert len("".join(deltas)) > 0, "the model has answered"
    assert sum(bool(delta) for delta in deltas) > 1, "token by token"


def test_a_chat_with_log_probabilities_and_usage(endpoint: str, router: RouterProcess) -> None:
    with ZeromqClient(endpoint) as client:
        body = {"model": CHAT.model, "messages": [{"role": "user", "content": "Count to five."}], "logprobs": True}
        body |= {"temperature": 0, "ignore_eos": True}  # or the model may end before max_tokens
        answer = client.finish(client.ask("real-logprobs", {**body, "max_tokens": 12}), timeout_s=60)
    contents = [json.loads(each.data[6:])["choices"][0] for each in answer.events]
    with_probability = [each for each in contents if each.get("logprobs")]
    assert len(with_probability) >= 5, "nothing of an event is left out"
    assert answer.done["usage"]["completion_tokens"] == 12
    record = done_record(router, "real-logprobs")
    assert (record["outcome"], record["n_out"]) == ("ok", 12)


def test_embeddings(endpoint: str) -> None:
    with ZeromqClient(endpoint) as client:
        answer = client.finish(
            client.ask("e", {"model": "all-minilm-l6-v2", "input": "hello"}, "embeddings"), timeout_s=60
        )
    assert answer.end is not None
    assert answer.end.body is not None
    assert len(json.loads(answer.end.body)["data"][0]["embedding"]) == 384


def endless_body() -> str:
    asked = {"model": CHAT.model, "messages": [{"role": "user", "content": "Tell me a long story."}]}
    return json.dumps({**asked, "max_tokens": ANSWER_TOKENS, "ignore_eos": True})


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_kill_9_of_a_client_frees_the_slot_of_the_real_host(
    endpoint: str, router: RouterProcess, llama_host: HostProcess, log_directory: Path, stream: bool
) -> None:
    request_id = f"killed {stream}"
    body = endless_body()[:-1] + f', "stream": {json.dumps(stream)}}}'
    header = msgspec.msgpack.encode({"v": 1, "verb": "chat", "id": request_id, "credit": 4096})
    command = [sys.executable, "-c", DYING_PROGRAM, endpoint, header.hex(), body]
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host is idle")
    with ExitStack() as stack:
        program = Program("client", command, log_directory / "client.log").start()
        stack.callback(program.kill)
        wait_until(lambda: llama_host.busy_slot_count() == 1, "the host is at work")
        delays, killed_s = MachineDelays(), monotonic()
        program.signal(signal.SIGKILL)
        wait_until(lambda: llama_host.busy_slot_count() == 0, "the slot of the client that died", SLOT_FREE_S_MAX)
    record = done_record(router, request_id)
    assert record["outcome"] == "client_gone"
    assert 0 < record["left_ns"] / 1e9 - killed_s < 1 + delays.ns() / 1e9, (
        "seen when its connection ended, not by a time-out"
    )
    assert record["n_content"] < ANSWER_TOKENS


def test_cancel_frees_the_slot_of_the_real_host(endpoint: str, router: RouterProcess, llama_host: HostProcess) -> None:
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host is idle")
    with ZeromqClient(endpoint) as client:
        answer = client.ask("real-cancel", endless_body().encode())
        client.wait_events(answer, 8)
        client.say("cancel", id=answer.id)
        client.finish(answer)
        assert answer.error["code"] == "cancelled"
        wait_until(lambda: llama_host.busy_slot_count() == 0, "the slot of the cancelled request", SLOT_FREE_S_MAX)
    assert done_record(router, "real-cancel")["tokens_saved"] > 1000
