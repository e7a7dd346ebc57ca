"""Tools of files and of real MCP servers, as the keeper publishes them: fetched, refreshed, checked, and kept when a
source is gone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from router.caches import published
from router.caches.published import PublishedSource, PublishedTools, Subscription
from router.config import parse
from router.keep import tool_sources
from router.keep.tools import ToolKeeper
from tests.support import published as pub
from tests.support.processes import Program
from tests.support.waiting import WAIT_S, free_port

ROOT = Path(__file__).resolve().parents[2]


class Stand:
    """A keeper of tools in this process, and what it has published."""

    def __init__(self, directory: Path, toml: str) -> None:
        config = parse(f'version = 1\n[listen]\nrun_dir = "{directory}"\n{toml}')
        self.keeper = ToolKeeper(config, directory, structlog.get_logger())
        self.path = directory / "keep.tools"
        self._subscription = Subscription(self.path, published.TOOLS, PublishedTools)
        self.value = PublishedTools()
        self.publication_count = 0

    async def __aenter__(self) -> Stand:
        await self.keeper.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.keeper.stop()

    async def wait(self, is_so: Callable[[PublishedTools], object], what: str) -> PublishedTools:
        """Wait until what is published is so."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    value = self._subscription.poll()
                    if value is not None:
                        self.value = value
                        self.publication_count += 1
                    if is_so(self.value):
                        return self.value
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_S:g} s in vain: {what}; the sources: {self.value.sources}") from None

    async def wait_names(self, *names: str) -> PublishedTools:
        """Wait until exactly these tools are published."""
        return await self.wait(lambda value: sorted(t.name for t in value.tools) == sorted(names), str(names))

    def source(self, name: str) -> PublishedSource:
        """Return how a source is doing, by what was published last."""
        return next(source for source in self.value.sources if source.name == name)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def source_toml(name: str, **keys: Any) -> str:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return f'[[cache.tools.sources]]\nname = "{name}"\n{lines}'


def stdio(name: str, module: str, file: Path, **keys: Any) -> str:
    command = [sys.executable, "-m", f"tests.support.{module}", str(file)]
    return source_toml(name, command=command, **keys) + f'env = {{ PYTHONPATH = "{ROOT}" }}\n'


def write(path: Path, value: Any) -> None:
    """Write a file as a whole, as an editor does."""
    beside = path.with_suffix(".new")
    beside.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    beside.replace(path)


@contextmanager
def http_server(directory: Path, file: Path, port: int) -> Iterator[Program]:
    command = [sys.executable, "-m", "tests.support.mcp_server", str(file), "--port", str(port)]
    server = Program("mcp", command, directory / "mcp.log", {"PYTHONPATH": str(ROOT)})
    with server:
        yield server
        server.kill()  # told to stop it would wait for whoever listens to it


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_sources, "BETWEEN_S", 0.05)
    monkeypatch.setattr(tool_sources, "RETRY_S_MIN", 0.1)
    monkeypatch.setattr(tool_sources, "RETRY_S_MAX", 0.2)
    monkeypatch.setattr(tool_sources, "FILE_LOOK_S", 0.02)


# ---------------------------------------------------------------- servers
def test_a_server_over_stdio_is_asked_at_the_start_and_when_it_says_that_its_tools_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    write(file, {"now": "Weather now.", "next.week": "Weather next week."})

    async def test() -> None:
        async with Stand(tmp_path, stdio("weather", "mcp_server", file)) as stand:
            value = await stand.wait_names("weather.now", "weather.next.week")
            functions = {tool.name: json.loads(tool.body) for tool in value.tools}
            first = functions["weather.now"]
            assert first["type"] == "function"
            assert first["function"]["name"] == "weather__now"
            assert first["function"]["description"] == "Weather now."
            assert first["function"]["parameters"]["properties"]["city"]["type"] == "string"
            assert first["function"]["parameters"]["required"] == ["city"]
            assert functions["weather.next.week"]["function"]["name"] == "weather__next__week"
            assert (stand.source("weather").state, stand.source("weather").transport) == ("ok", "stdio")
            write(file, {"now": "Weather now.", "storm": "Is there a storm?"})
            await stand.wait_names("weather.now", "weather.storm")

    run(test)


def test_a_server_over_http_is_followed_through_its_death_and_its_return(tmp_path: Path) -> None:
    file, port = tmp_path / "names.json", free_port()
    write(file, {"create": "Creates."})

    async def test() -> None:
        toml = source_toml("calendar", url=f"http://127.0.0.1:{port}/mcp")
        async with Stand(tmp_path, toml) as stand:
            await stand.wait(lambda value: value.sources and value.sources[0].state == "failed", "nobody is there yet")
            assert not stand.value.tools
            with http_server(tmp_path, file, port) as server:
                await stand.wait_names("calendar.create")
                fetched_wall_ns = stand.source("calendar").fetched_wall_ns
                write(file, {"create": "Creates.", "delete": "Deletes."})
                value = await stand.wait_names("calendar.create", "calendar.delete")
                assert value.sources[0].fetched_wall_ns > fetched_wall_ns
                server.kill()
                value = await stand.wait(lambda value: value.sources[0].state == "stale", "it is seen to be dead")
                assert len(value.tools) == 2, "its last good tools stand"
                assert value.sources[0].error
            write(file, {"create": "Creates."})
            with http_server(tmp_path, file, port):
                await stand.wait_names("calendar.create")
                assert stand.source("calendar").state == "ok"

    run(test)


def test_a_server_of_an_older_protocol_tells_by_a_notification(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    tools = [{"name": "a", "inputSchema": {"type": "object"}}]
    write(file, {"mode": "ok", "tools": tools})

    async def test() -> None:
        async with Stand(tmp_path, stdio("old", "old_mcp_server", file, ttl_s=3600)) as stand:
            await stand.wait_names("old.a")
            write(file, {"mode": "pages", "tools": [*tools, {**tools[0], "name": "b"}, {**tools[0], "name": "c"}]})
            await stand.wait_names("old.a", "old.b", "old.c")

    run(test)


@pytest.mark.parametrize(
    ("mode", "said"), [("hang", "no answer within"), ("garbage", "no answer within"), ("error", "no tools today")]
)
def test_a_server_that_fails_is_named_with_the_reason_and_asked_again(tmp_path: Path, mode: str, said: str) -> None:
    file = tmp_path / "script.json"
    tools = [{"name": "a", "inputSchema": {"type": "object"}}]
    write(file, {"mode": mode, "tools": tools})

    async def test() -> None:
        toml = "[cache.tools]\ntimeout_s = 2\n" + stdio("old", "old_mcp_server", file)
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait(lambda value: value.sources and value.sources[0].error, "it fails")
            assert value.sources[0].state == "failed"
            assert said in value.sources[0].error
            assert "\n" not in value.sources[0].error
            assert stand.keeper.status()["problem"].startswith("old: ")
            write(file, {"mode": "ok", "tools": tools})
            await stand.wait_names("old.a")
            assert "problem" not in stand.keeper.status()

    run(test)


@pytest.mark.parametrize(
    ("mode", "reason"), [("ok", "there are 3 tools already (cache.tools.tools)"), ("endless", "it stands twice")]
)
def test_a_server_of_too_many_tools_is_cut_at_the_bound(tmp_path: Path, mode: str, reason: str) -> None:
    file = tmp_path / "script.json"
    count = 4 if mode == "ok" else 3
    tools = [{"name": f"t{i}", "inputSchema": {"type": "object"}} for i in range(count)]
    write(file, {"mode": mode, "tools": tools})

    async def test() -> None:
        toml = "[cache.tools]\ntools = 3\n" + stdio("old", "old_mcp_server", file)
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait_names("old.t0", "old.t1", "old.t2")
            assert any(reason in each for each in value.sources[0].refused)
            assert len(value.sources[0].refused) <= 3, "it is not asked for more pages than that takes"

    run(test)


def test_a_server_that_says_nothing_is_asked_again_when_its_tools_are_old(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    write(file, {"mode": "ok", "tools": [{"name": "a", "inputSchema": {"type": "object"}}]})

    async def test() -> None:
        async with Stand(tmp_path, stdio("old", "old_mcp_server", file, ttl_s=0.2)) as stand:
            first = await stand.wait_names("old.a")
            fetched = first.sources[0].fetched_wall_ns
            await stand.wait(lambda value: value.sources[0].fetched_wall_ns > fetched + 3 * 10**8, "asked twice more")

    run(test)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with Stand(tmp_path, source_toml("none", command=["/nowhere/program"])) as stand:
            value = await stand.wait(lambda value: value.sources and value.sources[0].error, "it fails")
            assert "/nowhere/program" in value.sources[0].error

    run(test)


def test_no_process_outlives_the_keeper(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    write(file, {"now": "Now."})
    mark = str(file)

    def processes() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark.encode() in path.read_bytes():
                    found.append(path.parent.name)
            except OSError:
                continue
        return found

    async def test() -> None:
        async with Stand(tmp_path, stdio("weather", "mcp_server", file)) as stand:
            await stand.wait_names("weather.now")
            assert len(processes()) == 1
        assert processes() == []

    run(test)


# ---------------------------------------------------------------- files
def test_files_of_both_forms_are_read_and_read_again_when_they_change(tmp_path: Path) -> None:
    as_json, as_toml = tmp_path / "a.json", tmp_path / "b.toml"
    write(as_json, [pub.function("one"), {"name": "two", "strict": True, "parameters": {"type": "object"}}])
    write(as_toml, '[[tools]]\nname = "three"\ndescription = "Third."\nparameters.type = "object"\n')

    async def test() -> None:
        toml = source_toml("a", file=str(as_json), prefix=False) + source_toml("b", file=str(as_toml))
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait_names("a.one", "a.two", "b.three")
            functions = [json.loads(tool.body)["function"] for tool in value.tools]
            assert [function["name"] for function in functions] == ["one", "two", "b__three"]
            assert functions[1]["strict"] is True
            assert functions[2]["description"] == "Third."
            write(as_json, {"tools": [pub.function("four")]})
            await stand.wait_names("a.four", "b.three")
            write(as_json, "{broken")
            value = await stand.wait(lambda value: value.sources[0].state == "stale", "it is seen to be broken")
            assert "it is not JSON" in value.sources[0].error
            assert [tool.name for tool in value.tools] == ["a.four", "b.three"]
            as_json.unlink()
            await stand.wait(lambda value: "No such file" in value.sources[0].error, "it is gone")
            write(as_json, [])
            await stand.wait_names("b.three")

    run(test)


BAD: dict[str, Any] = {
    "not an object": {"name": "bad", "parameters": {"type": "string"}},
    "no schema": {"name": "bad", "parameters": {"type": "object", "properties": {"x": {"type": "strin"}}}},
    "no name": {"parameters": {"type": "object"}},
    "a space": {"name": "bad tool", "parameters": {"type": "object"}},
    "too long": {"name": "b" * 60, "parameters": {"type": "object"}},
    "too large": {"name": "bad", "description": "x" * 3000, "parameters": {"type": "object"}},
    "not text": {"name": "bad", "description": 5, "parameters": {"type": "object"}},
    "not a function": "bad",
}
REASONS = {
    "not an object": "files.bad: its parameters are not a JSON Schema of type object",
    "no schema": "files.bad: its parameters are no JSON Schema: at properties/x/type: 'strin' is not valid",
    "no name": "files[1]: it has no name",
    "a space": "files.bad tool: its name must be 1 to 128 of A-Za-z0-9_.-",
    "too long": "its function name would be files__bbb",
    "too large": "files.bad: it has 3",
    "not text": "files.bad: its description is not text",
    "not a function": "files[1]: it has no name",
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tool_is_refused_by_name_and_the_others_stay(tmp_path: Path, what: str) -> None:
    file = tmp_path / "tools.json"
    write(file, [pub.function("one"), BAD[what], pub.function("two")])

    async def test() -> None:
        toml = "[cache.tools]\ntool_bytes = 2048\n" + source_toml("files", file=str(file))
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait_names("files.one", "files.two")
            assert value.sources[0].state == "ok"
            (refused,) = value.sources[0].refused
            assert REASONS[what] in refused
            assert REASONS[what] in stand.keeper.status()["problem"]

    run(test)


def test_two_tools_with_one_function_name_are_not_both_published(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    write(one, [pub.function("b__c"), pub.function("b.c")])
    write(two, [pub.function("c")])

    async def test() -> None:
        toml = source_toml("a", file=str(one)) + source_toml("a__b", file=str(two))
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait(lambda value: len(value.sources) == 2, "both are read")
            assert [tool.name for tool in value.tools] == ["a.b__c"]
            assert value.sources[0].refused == ["a.b.c: its function name a__b__c is that of a.b__c"]
            assert value.sources[1].refused == ["a__b.c: its function name a__b__c is that of a.b__c"]

    run(test)


def test_all_tools_together_stay_in_their_bound(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    write(file, [pub.function(f"t{i}", "x" * 200) for i in range(10)])

    async def test() -> None:
        toml = "[cache.tools]\ntotal_bytes = 1024\n" + source_toml("a", file=str(file))
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait(lambda value: value.sources, "it is read")
            assert 0 < sum(len(tool.body) for tool in value.tools) <= 1024
            assert len(value.tools) + len(value.sources[0].refused) == 10
            assert "cache.tools.total_bytes" in value.sources[0].refused[0]

    run(test)


# ---------------------------------------------------------------- restarts and reloads
def test_after_a_restart_what_was_published_stands_until_its_source_answers(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    write(file, [pub.function("one")])

    async def test() -> None:
        toml = source_toml("a", file=str(file)) + source_toml("b", command=["/nowhere/program"])
        pub.publish_tools(
            tmp_path,
            PublishedTools(
                [
                    PublishedSource("b", "stdio", "ok", 1, 5, "", []),
                    PublishedSource("c", "stdio", "ok", 1, 5, "", []),
                ],
                [pub.tool("b.old"), pub.tool("c.forgotten")],
            ),
        )
        async with Stand(tmp_path, toml) as stand:
            value = await stand.wait_names("a.one", "b.old")
            await stand.wait(lambda value: "/nowhere/program" in stand.source("b").error, "it was tried")
            assert (stand.source("b").state, stand.source("b").fetched_wall_ns) == ("stale", 5)
            assert value.tools[1] == pub.tool("b.old")

    run(test)


def test_all_sources_are_asked_again_when_told_to(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    write(file, {"mode": "ok", "tools": [{"name": "a", "inputSchema": {"type": "object"}}]})

    async def test() -> None:
        async with Stand(tmp_path, stdio("old", "old_mcp_server", file)) as stand:
            first = await stand.wait_names("old.a")
            fetched = first.sources[0].fetched_wall_ns
            await stand.keeper.verbs["tools.refresh"](None)
            await stand.wait(lambda value: value.sources[0].fetched_wall_ns > fetched, "it is asked again")
            told = await stand.keeper.verbs["tools"](None)
            assert told["tools"] == [{"name": "old.a", "bytes": len(first.tools[0].body)}]
            assert told["sources"][0]["age_s"] < 5

    run(test)
