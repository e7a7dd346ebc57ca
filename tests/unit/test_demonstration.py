"""The request that `ringrouter run` shows: what it reads of the stream, and how it tells the user where things are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from router import config
from router.embedded import demonstration


def parsed(listen: str = "", http: str = "127.0.0.1:8400") -> config.Config:
    return config.parse(f'version = 1\n[listen]\nhttp = "{http}"\n{listen}\n', need_keys=False)


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        (b'data: {"choices":[{"delta":{"content":"sky"}}]}\n', ["sky"]),
        (b'data:{"choices":[{"delta":{"content":"sky"}}]}\r\n', ["sky"]),
        (b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n', ["hm"]),
        (b'data: {"choices":[{"delta":{"reasoning":"hm"}}]}\n', ["hm"]),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n', []),
        (b'data: {"choices":[],"usage":{"completion_tokens":3}}\n', []),
        (b"data: [DONE]\n", []),
        (b"data:[DONE]\n", []),
        (b": keep-alive\n", []),
        (b"\n", []),
    ],
)
def test_text_is_read_from_events_and_nothing_else(line: bytes, pieces: list[str]) -> None:
    assert demonstration.content_of(line) == pieces


def test_an_error_event_is_an_error_with_its_message() -> None:
    with pytest.raises(demonstration.DemonstrationError, match="the host closed"):
        demonstration.content_of(b'data: {"error": {"message": "the host closed", "code": "host_closed"}}\n')


@pytest.mark.parametrize(
    ("http", "base_url"),
    [
        ("127.0.0.1:8400", "http://127.0.0.1:8400"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:80", "http://[::1]:80"),
        ("[::1]:80", "http://[::1]:80"),
    ],
)
def test_the_base_url_can_be_used_as_it_is_printed(http: str, base_url: str) -> None:
    assert demonstration.RouterClient(parsed(http=http)).base_url == base_url


def test_a_unix_socket_is_used_where_the_router_listens_on_one() -> None:
    assert demonstration.RouterClient(parsed(http="unix:/run/r.sock")).socket_path == "/run/r.sock"


def test_the_embedded_chat_model_is_asked_before_others_and_a_users_first_otherwise() -> None:
    assert demonstration.preferred_model(["all-minilm-l6-v2", "smollm2-135m"]) == "smollm2-135m"
    assert demonstration.preferred_model(["b", "a"]) == "b"
    with pytest.raises(demonstration.DemonstrationError, match="no model"):
        demonstration.preferred_model([])


def test_the_commands_to_try_name_a_place_only_where_it_is_not_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert demonstration.location_options(parsed()) == ""
    assert demonstration.location_options(parsed('run_dir = "/run/user/7/ringrouter"')) == ""
    options = demonstration.location_options(parsed('run_dir = "/dev/shm/my rings"\ninstance = "b"'))
    assert shlex.split(options) == ["--run-dir", "/dev/shm/my rings", "--instance", "b"]


def test_the_program_is_named_so_that_it_can_be_typed_where_the_user_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / ".venv" / "bin" / "ringrouter"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert demonstration.own_command() == ".venv/bin/ringrouter"
    monkeypatch.chdir("/")
    assert demonstration.own_command() == str(script).removeprefix("/")
    monkeypatch.setenv("PATH", str(script.parent))
    assert demonstration.own_command() == "ringrouter", "it is on the path"
    script.unlink()
    assert demonstration.own_command() == f"{script.with_name('python')} -m router"
