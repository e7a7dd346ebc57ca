"""The keeper and the router together: what is kept over restarts and kills, and what a broken store leads to."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import lmdb
import numpy as np
import pytest

from ringbuffer import find_current
from router.caches import entries, keys, published
from router.cli.keeper_client import KeeperClient
from router.keep.store import Store
from router.telemetry.reader import DoneReader
from tests.faults.client import Answer, Client
from tests.faults.stage import QUIET, host_entry
from tests.support.embedding_host import EmbeddingHost, vector_of
from tests.support.keeper import AskedKeeper, Done, command, json_of
from tests.support.processes import RouterProcess
from tests.support.scripted_host import Gate
from tests.support.waiting import shared_memory_directory, wait_until

PATH = "/v1/embeddings"
NEAREST = "/v1/ringrouter/nearest"
STORE_BYTES = 4 << 20


@pytest.fixture
def host() -> Iterator[EmbeddingHost]:
    with EmbeddingHost("e1", dimensions=64) as host:
        yield host


class Place:
    """A directory with a configuration that a router and a keeper share."""

    def __init__(self, path: Path, host: EmbeddingHost, more: str = "") -> None:
        self.path = path
        self.cache_dir = path / "cache"
        self.store = self.cache_dir / "embeddings"
        toml = (
            f'{QUIET}[cache]\ndir = "{self.cache_dir}"\n[cache.embeddings]\nenabled = true\n'
            f"store_bytes = {STORE_BYTES}\nwait_ms = 1\n[cache.nearest]\nenabled = true\n"
            f"{more}{host_entry(host, slots=8)}"
        )
        self.router = RouterProcess(path, toml, listen='zeromq = ["ipc"]')
        self.router.write_config()
        self.keeper = AskedKeeper(self.router)

    def ask(self, texts: Any, path: str = PATH, **fields: Any) -> Answer:
        """Ask the router for vectors, or something else."""
        with Client(self.router.port) as client:
            client.post({"model": "m", "input": texts, **fields} if path == PATH else fields, path)
            return client.answer()

    def cache(self, *arguments: str) -> Done:
        """Run a command."""
        return command(self.router.config_path, *arguments)

    def counter(self, name: str) -> int:
        """Return a counter of the router."""
        return self.router.counter(name)

    def restart_router(self) -> None:
        """Kill the router and start it again; it has mapped the store when it answers."""
        self.router.kill()
        self.router.start()


@pytest.fixture
def place(host: EmbeddingHost) -> Iterator[Place]:
    with shared_memory_directory() as path:
        place = Place(path, host)
        try:
            yield place
        finally:
            for program in (place.router, place.keeper):
                if program.is_running:
                    program.kill()


def texts_file(path: Path, count: int) -> list[str]:
    texts = [f"text number {n}" for n in range(count)]
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return texts


# ---------------------------------------------------------------- kept
def test_vectors_outlive_both_processes(place: Place, host: EmbeddingHost) -> None:
    with place.keeper, place.router:
        first = place.ask(["one", "two"])
        wait_until(lambda: place.keeper.entry_count() == 2, "both are in the store")
    host.exchanges.clear()
    with place.keeper, place.router:
        again = place.ask(["one", "two"])
    assert again.headers["x-ringrouter-cache"] == "hit"
    assert again.body == first.body
    assert not host.calls


def test_a_router_without_a_keeper_answers_from_the_store(place: Place, host: EmbeddingHost) -> None:
    with place.router:
        with place.keeper:
            place.ask("kept")
            wait_until(lambda: place.keeper.entry_count() == 1, "it is in the store")
        place.restart_router()
        assert place.ask("kept").headers["x-ringrouter-cache"] == "hit"
        assert place.ask("not kept").headers["x-ringrouter-cache"] == "miss"
        assert place.ask("not kept").headers["x-ringrouter-cache"] == "hit", "its own memory has it"


def test_a_keeper_that_comes_later_finds_the_router_and_is_found(place: Place, host: EmbeddingHost) -> None:
    with place.router:
        assert place.ask("before").status == 200
        with place.keeper:
            wait_until(lambda: place.keeper.status()["embeddings"]["rings"], "the keeper reads the router's ring")
            place.ask("after")
            wait_until(lambda: place.keeper.entry_count() == 2, "the new one is in the store, and the one before it")


def test_a_killed_keeper_costs_nothing_and_its_successor_goes_on(place: Place, host: EmbeddingHost) -> None:
    with place.router:
        place.keeper.start()
        place.ask("first")
        wait_until(lambda: place.keeper.entry_count() == 1, "the first is in the store")
        place.keeper.kill()
        assert vectors(place.ask("while it is dead")) == [vector_of("while it is dead", 64)]
        with place.keeper:
            wait_until(lambda: place.keeper.status()["embeddings"]["rings"], "the next one reads the ring")
            place.ask("second")
            wait_until(lambda: place.keeper.entry_count() == 3, "the next one writes them and what came in between")
        assert json_of(place.cache("verify", "--json"))["problems"] == []


def vectors(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.body
    return [item["embedding"] for item in answer.json()["data"]]


# ---------------------------------------------------------------- broken stores
def damage_garbage(store: Path) -> None:
    store.mkdir(parents=True)
    (store / "data.mdb").write_bytes(b"this is no store at all " * 4096)


def damage_foreign(store: Path) -> None:
    store.mkdir(parents=True)
    with lmdb.open(str(store), map_size=1 << 20) as env, env.begin(write=True) as transaction:
        transaction.put(b"another program's", b"value")


def a_store(store: Path) -> None:
    ours = Store(store, STORE_BYTES)
    try:
        from tests.unit.test_cache_store import some_puts  # noqa: PLC0415

        ours.write(some_puts(500))
    finally:
        ours.close()


def damage_cut(store: Path) -> None:
    a_store(store)
    data = store / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2)


def damage_overwritten(store: Path) -> None:
    a_store(store)
    size = (store / "data.mdb").stat().st_size
    with (store / "data.mdb").open("r+b") as file:
        for at in range(4 * 4096, size, 4096):
            file.seek(at + 64)
            file.write(b"\xff" * 512)


@pytest.mark.parametrize("damage", [damage_garbage, damage_foreign, damage_cut, damage_overwritten])
def test_a_store_that_is_no_good_is_set_aside_and_everything_starts(
    place: Place, host: EmbeddingHost, damage: Any
) -> None:
    damage(place.store)
    with place.keeper, place.router:
        status = place.keeper.status()["embeddings"]
        assert "set aside" in status["problem"]
        assert "set aside" in place.keeper.log_text()
        place.ask("anew")
        wait_until(lambda: place.keeper.entry_count() == 1, "the new store is written")
        place.restart_router()
        assert place.ask("anew").headers["x-ringrouter-cache"] == "hit"
    aside = [path.name for path in place.cache_dir.iterdir() if "set-aside" in path.name]
    assert len(aside) == 1


def test_a_second_keeper_is_refused_in_one_line(place: Place) -> None:
    with place.keeper:
        done = subprocess.run(place.keeper.command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "another keeper writes in" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_new_store_is_noticed_by_a_router_that_runs(place: Place, host: EmbeddingHost) -> None:
    with place.router:
        place.keeper.start()
        place.ask("in the old store")
        wait_until(lambda: place.keeper.entry_count() == 1, "it is in the store")
        place.keeper.stop()
        shutil.rmtree(place.store)
        with place.keeper:
            asked = itertools.count()
            wait_until(
                lambda: is_found_in_store(place, f"only there {next(asked)}"), "the router has the new store", 15
            )


def is_found_in_store(place: Place, text: str) -> bool:
    """Whether the router has a text from the store that it was never asked for before."""
    space = keys.Space("m")
    key = keys.key_of(space.space_id(), text)
    kind, numbers = entries.from_floats(vector_of(text, 64))
    entry = entries.pack(key, kind, numbers, tokens=1, host_us=1, made_s=1, exact=True)
    name = space.record()
    with KeeperClient(place.keeper.socket_path) as keeper:
        assert keeper.ask("cache.put", [len(name).to_bytes(2, "little") + name + key + entry])["durable"] == 1
    answer = place.ask(text)
    assert vectors(answer) == [vector_of(text, 64)]
    return answer.headers["x-ringrouter-cache"] == "hit"


# ---------------------------------------------------------------- commands
def test_warm_computes_what_is_missing_and_accounts_for_every_text(place: Place, host: EmbeddingHost) -> None:
    file = place.path / "texts.jsonl"
    texts = texts_file(file, 300)
    with file.open("a", encoding="utf-8") as out:
        out.write('{"text": ""}\n{"text": "text number 7"}\n{"text": "bad"}\n')
    host.poison.add("bad")
    host.echo = "org/model-v1"
    with place.keeper, place.router:
        first = json_of(place.cache("warm", str(file), "--model", "m", "--json"), 1)
        assert {k: first[k] for k in ("texts", "present", "durable", "repeated", "empty", "refused", "dropped")} == {
            "texts": 303, "present": 0, "durable": 300, "repeated": 1, "empty": 1, "refused": 1, "dropped": 0,
        }  # fmt: skip
        assert first["reasons"] == ["'bad': bad is too long"]
        assert place.keeper.entry_count() == 300
        host.poison.clear()
        again = json_of(place.cache("warm", str(file), "--model", "m", "--json"))
        assert (again["present"], again["durable"]) == (300, 1)
        place.restart_router()
        host.exchanges.clear()
        answer = place.ask(texts)
        assert answer.headers["x-ringrouter-cache"] == "hit"
        assert vectors(answer) == [vector_of(text, 64) for text in texts]
        wait_until(lambda: place.ask(texts[:2]).json()["model"] == "org/model-v1", "as the host says it")
        assert not host.calls


def test_what_a_killed_warm_reported_is_there(place: Place, host: EmbeddingHost) -> None:
    file = place.path / "texts.jsonl"
    texts_file(file, 2000)
    host.gate, host.held = Gate(), {"text number 1500"}  # it is not done before the keeper is killed
    with place.router:
        place.keeper.start()
        line = [*place.keeper.command[:3], "cache", "warm", str(file), "--model", "m", "--json"]
        with subprocess.Popen([*line, "--config", str(place.router.config_path)], stdout=subprocess.PIPE) as warm:
            wait_until(lambda: place.keeper.entry_count() >= 200, "some are written")
            place.keeper.kill()
            host.release()
            out, _ = warm.communicate(timeout=60)
        account = json.loads(out)
        assert warm.returncode == 1
        assert account["problem"]
        assert account["durable"] >= 1
        with place.keeper:
            assert json_of(place.cache("verify", "--json"))["problems"] == []
            assert place.keeper.entry_count() >= account["durable"]
            rest = json_of(place.cache("warm", str(file), "--model", "m", "--json"))
            assert rest["present"] + rest["durable"] == 2000
            assert place.keeper.entry_count() == 2000


def test_purge_is_forgotten_in_memory_too(place: Place, host: EmbeddingHost) -> None:
    with place.keeper, place.router:
        place.ask(["one", "two"])
        wait_until(lambda: place.keeper.entry_count() == 2, "both are in the store")
        shown = json_of(place.cache("get", "one", "--model", "m", "--json"))
        assert shown["vector"] == vector_of("one", 64)
        assert (shown["bits"], shown["dimensions"]) == (32, 64)
        assert json_of(place.cache("stats", "--json"))["spaces"] == [
            {"model": "m", "revision": "", "dimensions": None, "vectors": 2}
        ]
        assert json_of(place.cache("purge", "--model", "m", "--text", "one", "--json"))["removed"] == 1
        wait_until(lambda: place.ask("one").headers["x-ringrouter-cache"] == "miss", "it is asked for again")
        assert place.ask("two").headers["x-ringrouter-cache"] == "hit"
        wait_until(lambda: place.keeper.entry_count() == 2, "it is there again")
        place.keeper.stop()
        assert json_of(place.cache("purge", "--all", "--json"))["removed"] == 2
        assert json_of(place.cache("stats", "--json"))["store"]["entries"] == 0


def test_what_was_purged_without_a_keeper_does_not_come_back_from_a_routers_memory(
    place: Place, host: EmbeddingHost
) -> None:
    with place.router:
        place.keeper.start()
        place.ask(["one", "two"])
        wait_until(lambda: place.keeper.entry_count() == 2, "both are in the store")
        place.keeper.stop()
        assert json_of(place.cache("purge", "--all", "--json"))["removed"] == 2
        assert place.ask("one").headers["x-ringrouter-cache"] == "hit", "nobody has told the router yet"
        with place.keeper:
            wait_until(lambda: place.ask("one").headers["x-ringrouter-cache"] == "miss", "the new keeper tells")
            wait_until(lambda: place.keeper.entry_count() == 1, "what was asked for again is kept again")
            assert place.cache("get", "two", "--model", "m", "--json").returncode == 1


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.long)])
def test_a_keeper_killed_while_it_publishes_leaves_whole_tools_and_nothing_beside_them(
    place: Place, host: EmbeddingHost, count: int
) -> None:
    """Its file changes all the time, and it is killed in the middle of whatever it does then."""
    file, published_file = place.path / "tools.json", place.router.run_dir / "keep.tools"
    source = f'[[cache.tools.sources]]\nname = "a"\nfile = "{file}"\n'
    place.router._toml = place.router._toml.replace("[cache.nearest]", f"{source}[cache.nearest]")

    def write(number: int) -> None:
        tools = [{"name": f"t{n}", "description": f"{number} " * 2000} for n in range(100)]
        file.with_suffix(".new").write_text(json.dumps(tools), encoding="utf-8")
        file.with_suffix(".new").replace(file)

    for number in range(count):
        write(number)
        place.keeper.start()
        sleep(0.15 * number / count)  # the moment is to be another one each time
        place.keeper.kill()
        if published_file.exists():
            _, value = published.unpack(published_file.read_bytes(), published.TOOLS, published.PublishedTools)
            assert len(value.tools) in {0, 100}
            assert len({tool.body.count(b"0 ") for tool in value.tools}) <= 1, "of one version"
    (place.router.run_dir / "keep.tools.4194305").write_bytes(b"what a writer leaves that was killed within")
    write(99)
    with place.keeper:
        wait_until(lambda: b"99 99" in published_file.read_bytes(), "the next one goes on")
        left = [path.name for path in place.router.run_dir.glob("keep.tools.*")]
        assert left == []


def test_a_hang_up_does_not_end_the_keeper(place: Place) -> None:
    with place.keeper:
        place.keeper.signal(signal.SIGHUP)
        wait_until(lambda: "refreshing" in place.keeper.log_text(), "it has heard")
        assert place.keeper.status()["embeddings"]["entries"] == 0


def test_what_is_warmed_by_an_alias_is_found_under_every_name(host: EmbeddingHost) -> None:
    with shared_memory_directory() as path:
        place = Place(path, host, '[models.m]\naliases = ["other"]\n')
        file = path / "texts.txt"
        file.write_text("by alias\n", encoding="utf-8")
        with place.keeper, place.router:
            assert json_of(place.cache("warm", str(file), "--model", "other", "--json"))["durable"] == 1
            assert json_of(place.cache("warm", str(file), "--model", "m", "--json"))["present"] == 1
            assert json_of(place.cache("purge", "--model", "other", "--json"))["removed"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["warm", "nothing.txt", "--model", "m"], "there is no such file"),
        (["warm", "file.csv", "--model", "m"], "expected a name that ends in .txt, .jsonl, .parquet"),
        (["purge"], "cache purge takes --all or --model"),
        (["stats"], "no keeper runs, and there is no store"),
        (["table", "build"], "takes a NAME, a FILE and --model"),
    ],
)
def test_usage_errors_are_one_line(place: Place, arguments: list[str], said: str) -> None:
    done = place.cache(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- eviction
def test_the_store_stays_in_its_bounds_and_routers_go_on(place: Place, host: EmbeddingHost) -> None:
    host.dimensions = 1024
    file = place.path / "texts.jsonl"
    texts_file(file, 900)
    with place.keeper, place.router:
        account = json_of(place.cache("warm", str(file), "--model", "m", "--json"))
        assert account["durable"] == 900
        status = place.keeper.status()["embeddings"]
        assert status["evicted"] > 0
        assert account["evicted"] <= status["evicted"], "what the router's ring brought first is not warm's"
        assert status["used_bytes"] <= STORE_BYTES
        assert (place.store / "data.mdb").stat().st_size <= STORE_BYTES
        assert json_of(place.cache("verify", "--json"))["problems"] == []
        assert place.ask("text number 899").headers["x-ringrouter-cache"] == "hit"


@pytest.mark.parametrize("written", [30, 200])
def test_a_keeper_killed_while_it_evicts_leaves_a_whole_store(place: Place, host: EmbeddingHost, written: int) -> None:
    host.dimensions = 1024
    file = place.path / "texts.jsonl"
    texts_file(file, 600)
    with place.router:
        place.keeper.start()
        assert json_of(place.cache("warm", str(file), "--model", "m", "--json"))["durable"] == 600
        # Not what warm tells: the keeper may have had them from the router's ring first, and made room for those.
        assert place.keeper.status()["embeddings"]["evicted"] > 0, "the store is full"
        texts = [f"other text {n}" for n in range(600)]
        file.write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
        host.gate, host.held = Gate(), {"other text 500"}  # it is not done before the keeper is killed
        before = place.keeper.status()["embeddings"]["written"]
        line = [*place.keeper.command[:3], "cache", "warm", str(file), "--model", "m", "--json"]
        with subprocess.Popen([*line, "--config", str(place.router.config_path)], stdout=subprocess.PIPE) as warm:
            enough = before + written
            wait_until(lambda: any("other text" in str(call) for call in host.calls), "warm has begun")
            wait_until(lambda: place.keeper.status()["embeddings"]["written"] >= enough, "others take their places")
            place.keeper.kill()
            host.release()
            out, _ = warm.communicate(timeout=60)
        account = json.loads(out)
        assert json_of(place.cache("verify", "--json"))["problems"] == [], "looked at without a keeper"
        assert account["problem"], "warm says that it did not come to its end"
        with place.keeper:
            assert "problem" not in place.keeper.status()["embeddings"], "it was not set aside"
            assert place.ask("one more").status == 200


def test_a_router_killed_during_warm_loses_nothing_that_was_reported(place: Place, host: EmbeddingHost) -> None:
    file = place.path / "texts.jsonl"
    texts_file(file, 1200)
    with place.keeper:
        place.router.start()
        line = [*place.keeper.command[:3], "cache", "warm", str(file), "--model", "m", "--json"]
        with subprocess.Popen([*line, "--config", str(place.router.config_path)], stdout=subprocess.PIPE) as warm:
            wait_until(lambda: place.keeper.entry_count() >= 300, "some are written")
            place.restart_router()
            out, _ = warm.communicate(timeout=60)
        account = json.loads(out)
        assert account["durable"] + account["present"] == 1200, "it asks again while the router is away"
        assert warm.returncode == 0
        assert place.keeper.entry_count() == 1200
        assert json_of(place.cache("verify", "--json"))["problems"] == []
        place.router.stop()


# ---------------------------------------------------------------- nearest
def table_file(place: Place, count: int) -> Path:
    path = place.path / "items.jsonl"
    lines = [{"id": f"i{n}", "text": f"item {n}", "metadata": {"n": n}} for n in range(count)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def wanted(text: str, count: int, k: int) -> list[str]:
    rows = np.array([vector_of(f"item {n}", 64) for n in range(count)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    query = np.array(vector_of(text, 64))
    order = np.argsort(-(rows @ (query / np.linalg.norm(query))))
    return [f"i{n}" for n in order[:k]]


def test_nearest_by_text_and_by_vector_over_both_ingresses(place: Place, host: EmbeddingHost) -> None:
    from tests.faults.zeromq_client import ZeromqClient  # noqa: PLC0415

    with place.keeper, place.router:
        built = place.cache("table", "build", "docs", str(table_file(place, 200)), "--model", "m")
        assert built.returncode == 0, built.stderr
        wait_until(lambda: "docs" in place.keeper.status()["nearest"]["tables"], "the keeper has the table")
        question = {"table": "docs", "input": "what is near", "k": 5}
        wait_until(lambda: place.ask(None, NEAREST, **question).status == 200, "the router knows the table")
        answer = place.ask(None, NEAREST, **question).json()
        assert [item["id"] for item in answer["data"]] == wanted("what is near", 200, 5)
        assert answer["data"][0]["metadata"] == {"n": int(answer["data"][0]["id"][1:])}
        scores = [item["score"] for item in answer["data"]]
        assert scores == sorted(scores, reverse=True)
        by_vector = place.ask(None, NEAREST, table="docs", vector=vector_of("what is near", 64), k=5).json()
        assert by_vector == answer
        with ZeromqClient(f"ipc://{place.router.instance_dir}/zmq.sock") as client:
            over_zeromq = client.finish(client.ask("n1", question, "nearest"))
            assert over_zeromq.end is not None
            assert json.loads(over_zeromq.end.body or b"") == answer
        again = place.cache("table", "build", "docs", str(table_file(place, 100)), "--model", "m")
        assert again.returncode == 0, again.stderr
        wait_until(
            lambda: place.ask(None, NEAREST, **question).json()["version"] != answer["version"], "the new version"
        )
        assert [i["id"] for i in place.ask(None, NEAREST, **question).json()["data"]] == wanted("what is near", 100, 5)


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        ({"table": "nowhere", "input": "x"}, 404, "no table is called 'nowhere'"),
        ({"table": "docs"}, 400, "expected input or vector, one of them"),
        ({"table": "docs", "input": "x", "k": 0}, 400, "k = 0: expected 1 to 1000"),
        ({"table": "docs", "vector": [1.0, 2.0]}, 400, "vector has 2 numbers, table 'docs' has 64"),
        ({"table": "docs", "vector": [0.0] * 64}, 400, "not all 0"),
        ({"table": "docs", "vector": "***"}, 400, "vector: "),
        ({"table": "docs", "input": "x", "kk": 1}, 400, "unknown field kk"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(running: Place, question: dict[str, Any], status: int, said: str) -> None:
    answer = running.ask(None, NEAREST, **question)
    assert answer.status == status, answer.body
    assert said in answer.error["message"]


def test_a_question_says_its_class_as_any_request(running: Place) -> None:
    question = {"table": "docs", "input": "of a class", "k": 1}
    with Client(running.router.port) as client:
        client.post(question, NEAREST, more="x-ringrouter-class: urgent\r\n")
        refused = client.answer()
        assert (refused.status, refused.error["param"]) == (400, "x-ringrouter-class")
        client.post(question, NEAREST, more="x-ringrouter-class: batch\r\n")
        assert client.answer().status == 200
    reader = DoneReader(find_current(running.router.instance_dir), "oldest")
    try:
        records: list[dict[str, Any]] = []

        def has_both() -> bool:
            records.extend(record for record in reader.poll() if record["workload"] == 3)
            return len(records) == 2

        wait_until(has_both, "the question and the call for its vector are of the class")
    finally:
        reader.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Place]:
    with shared_memory_directory() as path, EmbeddingHost("e1", dimensions=64) as host:
        place = Place(path, host)
        with place.keeper, place.router:
            built = place.cache("table", "build", "docs", str(table_file(place, 10)), "--model", "m")
            assert built.returncode == 0, built.stderr
            known = {"table": "docs", "input": "x"}
            wait_until(lambda: place.ask(None, NEAREST, **known).status == 200, "the router knows the table")
            yield place


def test_a_keeper_that_hangs_is_up_no_more_and_asked_nothing_until_it_goes_on(
    place: Place, host: EmbeddingHost
) -> None:
    with place.keeper, place.router:
        place.cache("table", "build", "docs", str(table_file(place, 10)), "--model", "m")
        question = {"table": "docs", "input": "x"}
        wait_until(lambda: place.ask(None, NEAREST, **question).status == 200, "the router knows the table")
        assert place.counter("keeper_up") == 1
        place.keeper.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: place.counter("keeper_up") == 0, "the router sees that it hangs")
            answer = place.ask(None, NEAREST, **question)
            assert answer.status == 503
            assert "the keeper (ringrouter keep) hangs" in answer.error["message"]
            assert place.ask("while it hangs").status == 200
        finally:
            place.keeper.signal(signal.SIGCONT)
        wait_until(lambda: place.counter("keeper_up") == 1, "it goes on")
        assert place.ask(None, NEAREST, **question).status == 200


def test_without_a_keeper_questions_are_refused_at_once(place: Place, host: EmbeddingHost) -> None:
    with place.router:
        answer = place.ask(None, NEAREST, table="docs", input="x")
        assert answer.status == 503
        assert "the keeper (ringrouter keep) is not running" in answer.error["message"]
        place.keeper.start()
        place.cache("table", "build", "docs", str(table_file(place, 10)), "--model", "m")
        question = {"table": "docs", "input": "x"}
        wait_until(lambda: place.ask(None, NEAREST, **question).status == 200, "the router knows the table")
        place.keeper.signal(signal.SIGKILL)
        wait_until(lambda: place.ask(None, NEAREST, **question).status == 503, "it knows that the keeper is gone")
