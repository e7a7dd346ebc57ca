"""``ringrouter doctor``: each thing that can be wrong is found, with what to do about it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from router import cli
from router.config import Config, parse
from router.doctor import machine, network, service
from router.doctor.findings import Finding, exit_code
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import free_port


def found(findings: Iterator[Finding]) -> tuple[str, str, str]:
    """The level, text and remedy of the one finding there is."""
    [finding] = findings
    return finding.level, finding.what, finding.todo


def with_hosts(*urls: str, more: str = "") -> Config:
    tables = "".join(f'[[hosts]]\nname = "h{n}"\nurl = "{url}"\nkind = "vllm"\n' for n, url in enumerate(urls))
    return parse(f"version = 1\n{more}\n{tables}", need_keys=False)


def test_a_host_that_answers_is_described_and_one_that_does_not_has_a_remedy() -> None:
    with ScriptedHost("gpu", models=("a", "b")) as host:
        good, bad = network.hosts(with_hosts(host.url, f"http://127.0.0.1:{free_port()}"))
    assert (good.level, good.what) == ("ok", "h0: vllm, 256 slots, models a, b")
    assert bad.level == "error"
    assert "refused" in bad.what
    assert bad.todo.startswith("start it, or correct its url: curl http://127.0.0.1:")


def test_without_hosts_there_is_an_error() -> None:
    level, what, todo = found(network.hosts(parse("version = 1")))
    assert (level, what) == ("error", "none is configured")
    assert "[[hosts]]" in todo


def test_a_port_that_somebody_else_has_is_found(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listen = f'[listen]\nhttp = ["127.0.0.1:{port}", "127.0.0.1:{free_port()}"]\nzeromq = []'
        config = with_hosts(more=listen)
        taken, free = network.ports(config, runs=False)
        assert (taken.level, taken.what) == ("error", f"127.0.0.1:{port}: Address already in use")
        assert f"grep {port}" in taken.todo
        assert free.level == "ok"
        assert {each.level for each in network.ports(config, runs=True)} == {"ok"}


def test_a_unix_path_with_a_file_is_found(directory: Path) -> None:
    (directory / "s").write_text("")
    config = with_hosts(more=f'[listen]\nhttp = "unix:{directory}/s"\nzeromq = []')
    level, what, _ = found(network.ports(config, runs=False))
    assert (level, what) == ("error", f"unix:{directory}/s: a file that is no socket is there")


def test_too_few_descriptors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (1024, 4096))
    level, what, todo = found(machine.descriptors(with_hosts()))
    assert level == "warning"
    assert "need 14,352" in what
    assert "LimitNOFILE=14352" in todo


def test_a_tmpfs_that_is_too_small_is_found(directory: Path) -> None:
    config = with_hosts(more=f'[listen]\nrun_dir = "{directory}"\n[rings]\ndone = 4_194_304\ntokens = 67_108_864')
    findings = list(machine.shared_memory(config))
    assert machine.ring_bytes(config) > 8 << 30
    free_bytes = __import__("shutil").disk_usage(directory).free
    expected = "error" if free_bytes < 2 * machine.ring_bytes(config) else "ok"
    assert findings[0].level == expected


def test_the_rings_take_what_is_said(directory: Path) -> None:
    """Of the default configuration, against what a real generation reserves."""
    from router.telemetry.writer import Telemetry  # noqa: PLC0415 - only this test makes one

    config = with_hosts()
    telemetry = Telemetry(directory / "main", config)
    size = sum(path.stat().st_size for path in telemetry.generation.path.rglob("*") if path.is_file())
    telemetry.close()
    assert size <= machine.ring_bytes(config) <= size * 1.1


def test_a_slow_clock_is_found(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = directory / "clock"
    monkeypatch.setattr(machine, "CLOCK_SOURCE", name)
    for clock, expected in (("tsc", "ok"), ("hpet", "warning")):
        name.write_text(f"{clock}\n")
        assert found(machine.clock())[0] == expected


def test_a_configuration_that_everybody_may_read_is_found(directory: Path) -> None:
    path = directory / "ringrouter.toml"
    path.write_text("")
    path.chmod(0o644)
    level, _, todo = found(service.permissions(path))
    assert (level, todo) == ("warning", f"chown root:ringrouter {path} && chmod 0640 {path}")
    path.chmod(0o640)
    assert found(service.permissions(path))[0] == "ok"


def test_keys_that_only_the_service_has_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    text = 'version = 1\n[[hosts]]\nname = "h"\nurl = "http://x"\n'
    for key in ('api_key_env = "SOME_KEY"', 'api_key_credential = "gpu"'):
        assert found(service.keys(parse(text + key, need_keys=False)))[0] == "warning"
    monkeypatch.setenv("SOME_KEY", "sk-1")
    level, what, _ = found(service.keys(parse(f'{text}api_key_env = "SOME_KEY"')))
    assert (level, what) == ("ok", "h has one")


def test_sharing_without_the_extension_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ringbuffer, "BACKEND", "plain")
    shared = parse("version = 1\n[loop]\nslots_shared = true", need_keys=False)
    assert next(machine.native_parts(shared)).level == "error"
    assert next(machine.native_parts(with_hosts())).level == "warning"


def test_warnings_alone_are_no_failure() -> None:
    assert exit_code([Finding("a", "ok", ""), Finding("b", "warning", "")]) == 0
    assert exit_code([Finding("a", "error", "")]) == 1


def test_the_command_goes_on_after_a_configuration_that_cannot_be_used(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "bad.toml"
    path.write_text("version = 1\n[limits]\nwating = 1\n")
    assert cli.main(["doctor", "--config", str(path), "--json"]) == 1
    page = json.loads(capsys.readouterr().out)
    assert page["schema"] == "ringrouter.doctor/1"
    checks = {finding["check"] for finding in page["findings"]}
    assert {"config", "shared memory", "descriptors", "clock", "native parts", "router"} <= checks
    [config] = [finding for finding in page["findings"] if finding["check"] == "config"]
    assert "limits.wating is not a known key" in config["what"]
    assert config["todo"] == f"correct it and run: ringrouter check {path}"
