"""The observer's traces as a whole: configuration that is refused, keys, counts, and what is told of failures."""

from __future__ import annotations

import os
import stat
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from router import config
from router.errors import ConfigError
from router.observer.pipeline import Pipeline
from router.observer.traces import book
from router.observer.traces.book import TraceBook, headers_of, key_path, naming_of, resource_of
from tests.observer.test_traces_sampling import S, request
from tests.support.otlp_collector import Collector
from tests.support.waiting import wait_until


def settings(traces: str = "", more: str = "") -> config.Config:
    return config.parse(f"version = 1\n{more}\n[observer.traces]\n{traces}\n")


class TestConfiguration:
    @pytest.mark.parametrize(
        ("traces", "expected"),
        [
            ('endpoint = "collector:4318"', "observer.traces.endpoint (not shown): expected http:// or https://"),
            ('endpoint = "http://"', "observer.traces.endpoint (not shown)"),
            ("sample_ratio = 1.5", "observer.traces.sample_ratio = 1.5: expected"),
            ("spool_bytes = 5", "observer.traces.spool_bytes = 5: expected"),
            ("keep_slowest = 1000", "observer.traces.keep_slowest = 1000: expected"),
            ('user_id = "md5"', "observer.traces.user_id = "),
            ('ca_file = "/ca.pem"', "observer.traces.ca_file = "),
            ('headers = { "host" = "x" }', "observer.traces.headers: expected names of headers"),
            ('headers = { "a" = "1" }\nheaders_env = { "A" = "B" }', "the header stands twice"),
            ('resource = { "service.name" = "x" }', "observer.traces.resource.service.name"),
            ("endpont = 1", "observer.traces.endpont"),
        ],
    )
    def test_what_cannot_be_is_refused_by_name(self, traces: str, expected: str) -> None:
        with pytest.raises(ConfigError) as refused:
            settings(traces)
        assert expected in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_an_endpoints_secrets_are_not_shown(self) -> None:
        with pytest.raises(ConfigError) as refused:
            settings('endpoint = "ftp://user:s3cret@host/"')
        assert "s3cret" not in str(refused.value)

    def test_by_default_nothing_is_exported(self, tmp_path: Path) -> None:
        one = TraceBook(settings(), tmp_path)
        one.add([request(1, outcome="timeout")], S)
        assert one.problems() == []
        assert not (tmp_path / "traces" / "spool").exists()
        assert len(one.find(request(1).trace_id)) == 1
        one.close()

    def test_without_the_package_the_start_fails_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(book, "find_spec", lambda name: None if name == book._PACKAGE else find_spec(name))
        with pytest.raises(ConfigError, match=r"pip install 'ringrouter\[observer\]'"):
            TraceBook(settings('endpoint = "http://127.0.0.1:9/v1/traces"'), tmp_path)


class TestHeaders:
    def of(self, text: str) -> dict[str, str]:
        return headers_of(settings(text).observer.traces)

    def test_they_come_from_the_file_the_environment_and_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text("from-file\n")
        monkeypatch.setenv("TOKEN", "from-env")
        text = (
            'headers = { "x-a" = "plain" }\nheaders_env = { "x-b" = "TOKEN" }\n'
            f'headers_file = {{ "x-c" = "{tmp_path / "token"}" }}'
        )
        assert self.of(text) == {"x-a": "plain", "x-b": "from-env", "x-c": "from-file"}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('headers_env = { "x-b" = "NOT_SET" }', "NOT_SET"),
            ('headers_file = { "x-b" = "/not/there" }', "/not/there"),
            ('headers_env = { "x-b" = "BAD" }', "line"),
        ],
    )
    def test_what_is_missing_is_named_and_never_shown(
        self, text: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BAD", "line\nend")
        with pytest.raises(ConfigError) as refused:
            self.of(text)
        assert "x-b" in str(refused.value)
        assert value not in str(refused.value)


class TestUsers:
    def test_the_key_is_made_once_and_is_its_owners(self, tmp_path: Path) -> None:
        first, second = naming_of(settings(), tmp_path), naming_of(settings(), tmp_path)
        assert first.user_key == second.user_key
        assert (len(first.user_key), first.user_id) == (32, "hash")
        assert stat.S_IMODE(key_path(tmp_path).stat().st_mode) == 0o600
        assert [path.name for path in key_path(tmp_path).parent.iterdir()] == ["user-id.key"]

    def test_who_was_killed_while_it_made_the_key_is_not_in_the_way(self, tmp_path: Path) -> None:
        path = key_path(tmp_path)
        path.parent.mkdir()
        path.with_suffix(f".{os.getpid()}.tmp").write_bytes(b"half")  # in a container all have the same number
        assert len(naming_of(settings(), tmp_path).user_key) == 32

    def test_several_machines_share_one_by_a_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("USERS", "k" * 16)
        assert naming_of(settings('user_id_key_env = "USERS"'), tmp_path).user_key == b"k" * 16
        monkeypatch.setenv("USERS", "short")
        with pytest.raises(ConfigError, match="at least 16 characters") as refused:
            naming_of(settings('user_id_key_env = "USERS"'), tmp_path)
        assert "short" not in str(refused.value)

    def test_without_a_place_for_a_key_users_are_left_out(self) -> None:
        assert naming_of(settings(), None).user_id == "off"


def test_a_pipeline_that_ends_ends_its_export_too(tmp_path: Path) -> None:
    with Collector() as collector:
        toml = f'endpoint = "{collector.url}"\n[observer.journal]\nenabled = false'
        one = settings(toml, more=f'[observer]\ndata_dir = "{tmp_path}"\n')
        pipeline = Pipeline(one, tmp_path / "run", S)
        assert pipeline.traces.exporting
        pipeline.traces.add([request(1, outcome="timeout")], S)
        pipeline.close(S)
        assert not pipeline.traces.exporting
        assert [span for span in collector.spans() if span.kind == "server"]


def test_the_resource_says_whose_spans_they_are() -> None:
    found = resource_of(settings('service_name = "edge"\nresource = { "deployment.environment.name" = "test" }'))
    assert (found["service.name"], found["deployment.environment.name"]) == ("edge", "test")
    assert found["service.instance.id"]


def test_proxies_and_kinds_of_hosts_are_known() -> None:
    more = '[listen]\ntrusted_proxies = ["10.0.0.1"]\n[[hosts]]\nname = "a"\nurl = "http://h:1"\nkind = "vllm"\n'
    naming = naming_of(settings(more=more), None)
    assert (naming.has_proxies, naming.providers) == (True, {"a": "vllm"})


class TestCounts:
    def readings(self, one: TraceBook) -> dict[Any, float]:
        return {(each.name, *(value for _, value in each.labels)): each.value for each in one.readings()}

    def test_what_is_kept_and_exported_is_counted(self, tmp_path: Path) -> None:
        with Collector() as collector:
            one = TraceBook(settings(f'endpoint = "{collector.url}"\nsample_ratio = 0.0'), tmp_path)
            one.add([request(1, outcome="timeout"), request(2)], 5 * S)
            collector.wait(bool, "the export")
            name = "ringrouter_traces_exported"
            wait_until(lambda: self.readings(one)[name, "exported"] == 1, "the count")
            assert self.readings(one)["ringrouter_traces_kept", "error"] == 1
            assert self.readings(one)["ringrouter_traces_held",] == 1
            assert len(one.find(request(2).trace_id)) == 1, "the slowest so far can be opened as well"
            one.close()
            assert {span.attributes.get("ringrouter.request.seq") for span in collector.spans()} >= {1, 2}
            kept = [span.attributes["ringrouter.kept"] for span in collector.spans() if span.kind == "server"]
            assert kept == [["error"], ["slowest"]]

    def test_what_an_objective_missed_stands_in_the_span(self, tmp_path: Path) -> None:
        with Collector() as collector:
            text = f'endpoint = "{collector.url}"\nsample_ratio = 0.0\nkeep_slowest = 0'
            one = TraceBook(settings(text), tmp_path, lambda _: ["fast"])
            one.add([request(1)], 5 * S)
            one.close()
            (whole,) = [span for span in collector.spans() if span.kind == "server"]
            assert whole.attributes["ringrouter.slo.missed"] == ["fast"]
            assert whole.attributes["ringrouter.kept"] == ["slo"]
