"""Caches beside what else the router does: limits, reloads, rules of features, other models that step in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.client import Answer
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import published as pub
from tests.support.embedding_host import EmbeddingHost, vector_of
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import shared_memory_directory, wait_until

PATH = "/v1/embeddings"
BASE = QUIET + SHORT_TICK
VECTORS = "[cache.embeddings]\nenabled = true\nwait_ms = 1\n"
ANSWERS = "[cache.responses]\nenabled = true\n"


@contextmanager
def router_of(toml: str, *hosts: Any) -> Iterator[Stage]:
    with shared_memory_directory() as directory, Stage(directory, list(hosts), toml) as stage:
        yield stage
        stage.settle()


def embed(stage: Stage, texts: Any) -> Answer:
    client = stage.client()
    client.post({"model": "m", "input": texts}, PATH)
    return client.answer()


def chat(stage: Stage, *lines: str, **fields: Any) -> Answer:
    client = stage.client()
    client.chat(more="\n".join(("x-ringrouter-cache: on", *lines)), **{"temperature": 0, "stream": False, **fields})
    return client.answer()


def reload(stage: Stage, toml: str) -> None:
    before = stage.counter("config_reloads")
    path = stage.router.config_path
    begin = path.read_text(encoding="utf-8").partition("\n[health]")[0]
    path.write_text(f"{begin}\n{toml}", encoding="utf-8")
    stage.router.signal(signal.SIGHUP)
    stage.wait(lambda: stage.counter("config_reloads") > before, "the file is read")


def hosts_of(stage: Stage) -> set[str]:
    client = stage.client()
    client.get("/ready")
    return set(client.answer().json()["hosts"])


def test_calls_for_vectors_do_not_stand_in_the_place_of_the_clients_that_wait_for_them() -> None:
    """With as many clients as may be in flight, each with a text that is not known."""
    with EmbeddingHost("e1") as host:
        toml = f"[limits]\nin_flight = 2\n{BASE}{VECTORS}batch_texts = 1\n{host_entry(host, slots=8)}"
        with router_of(toml, host) as stage:
            clients = [(stage.client(), f"text {index}") for index in range(2)]
            for client, text in clients:
                client.post({"model": "m", "input": [text, f"{text} again"]}, PATH)
            for client, text in clients:
                answer = client.answer()
                assert answer.status == 200, answer.body
                assert answer.json()["data"][0]["embedding"] == vector_of(text)


def test_one_request_with_more_texts_than_may_wait_is_answered() -> None:
    """Its calls are begun one after another, and fill no waiting room."""
    with EmbeddingHost("e1") as host:
        toml = f"[limits]\nwaiting = 100\n{BASE}{VECTORS}batch_texts = 1\n{host_entry(host, slots=1)}"
        with router_of(toml, host) as stage:
            texts = [f"t{index}" for index in range(200)]
            answer = embed(stage, texts)
            assert answer.status == 200, answer.body
            assert [item["embedding"] for item in answer.json()["data"]] == [vector_of(text) for text in texts]


def test_the_host_of_a_miss_is_named_after_another_was_taken_out() -> None:
    with EmbeddingHost("e1") as first, EmbeddingHost("e2") as second:
        rest = f"{BASE}{VECTORS}"
        with router_of(f"{rest}{host_entry(first)}{host_entry(second)}", first, second) as stage:
            reload(stage, f"{rest}{host_entry(second)}")
            stage.wait(lambda: hosts_of(stage) == {"e2"}, "the host is gone")
            answer = embed(stage, "after the reload")
            assert (answer.status, answer.headers["x-ringrouter-host"]) == (200, "e2")


def test_a_feature_with_a_model_of_its_own_shares_no_kept_answer_with_the_model_that_was_named() -> None:
    with ScriptedHost("alpha", models=("m",)) as alpha, ScriptedHost("beta", models=("n",)) as beta:
        toml = f'{BASE}{ANSWERS}[features.other]\nmodel = "n"\n{host_entry(alpha)}{host_entry(beta)}'
        with router_of(toml, alpha, beta) as stage:
            assert chat(stage).headers["x-ringrouter-host"] == "alpha"
            other = chat(stage, "x-ringrouter-tag-feature-name: other")
            assert other.headers["x-ringrouter-cache"] == "miss"
            assert other.headers["x-ringrouter-host"] == "beta"


def test_what_another_model_answered_in_place_of_the_one_asked_is_not_kept() -> None:
    with ScriptedHost("alpha", models=("m",)) as alpha, ScriptedHost("beta", models=("n",)) as beta:
        begin = f'{BASE}{ANSWERS}[models.m]\nfallback = ["n"]\n'
        with router_of(f"{begin}{host_entry(alpha)}{host_entry(beta)}", alpha, beta) as stage:
            reload(stage, f"{begin}{host_entry(alpha, drain=True)}{host_entry(beta)}")
            for _ in range(2):
                answer = chat(stage)
                assert answer.headers["x-ringrouter-cache"] == "miss"
                assert answer.headers["x-ringrouter-host"] == "beta"


def test_a_prompt_is_sent_again_though_its_answer_is_kept() -> None:
    with ScriptedHost("alpha") as alpha:
        warm = '[[cache.warm]]\nname = "p"\nmodel = "m"\nfile = "/x"\n'
        with router_of(f'{BASE}{ANSWERS}features = ["p"]\n{warm}{host_entry(alpha)}', alpha) as stage:
            pub.publish_prompts(stage.router.run_dir, pub.prompt("p", "be kind", keep_s=0.2))
            wait_until(lambda: len(alpha.exchanges) >= 2, "it was sent, and again to the idle host", 10)
            pub.publish_prompts(stage.router.run_dir)
            assert stage.counter("responses_hits") == 0
            stage._done.clear()
