"""What looks like a key is told in no error, and what does not is."""

from __future__ import annotations

import secrets
import uuid
from pathlib import Path
from random import Random

import pytest

from router.config import load, parse
from router.config.changes import changes
from router.errors import ConfigError
from router.keys.tokens import new_token
from router.masking import MASK, masked

KEYS = {
    "own": new_token(),
    "openai": f"sk-proj-{secrets.token_urlsafe(32)}",
    "anthropic": f"sk-ant-api03-{secrets.token_urlsafe(32)}",
    "huggingface": "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ",
    "hexadecimal": secrets.token_hex(24),
    "hexadecimal, digits together": "3fbffda818593845757221c886768600",
    "hexadecimal, in capitals": "1234567890ABCDEF1234567890ABCDEF",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "uuid": str(uuid.uuid4()),
}
WORDS = (
    "meta-llama-3.1-70B-Instruct-GGUF",
    "Qwen2.5-Coder-32B-Instruct-AWQ",
    "gpu-node-12.rack-7.example.internal",
    "/dev/shm/rr-test-mj0lv8iu3k2n9x7q/router.toml",
    "timeouts.first_token_s = 1_000_000_000_000_000_000_000",
    "unix:/run/ringrouter/main/zmq.sock",
    "keys[0].requests_per_minute = 100_001: expected a whole number between 0 and 100_000",
)
BASE = 'version = 1\n[[hosts]]\nname = "a"\nurl = "http://127.0.0.1:1"\n'


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_is_not_shown_wherever_it_stands(key: str) -> None:
    for text in (key, f"x = {key!r}: expected", f'["{key}", 1]', f"{key} is not a known key", f"Bearer {key}"):
        assert key not in masked(text)
        assert masked(text) == text.replace(key, MASK)


def test_random_keys_are_found_hundreds_of_times_over() -> None:
    """The hexadecimal ones from a seed: one in three million has no letter, and a number is shown."""
    dice = Random(5)
    for _ in range(500):
        for key in (new_token(), dice.randbytes(16).hex()):
            assert masked(f"a = {key}") == f"a = {MASK}"


@pytest.mark.parametrize("text", WORDS)
def test_names_and_paths_are_shown(text: str) -> None:
    assert masked(text) == text


def test_a_password_in_an_address_is_not_shown_and_the_address_is() -> None:
    assert masked('hosts[0].url = "http://me:pass@gpu:1/x"') == f'hosts[0].url = "http://{MASK}@gpu:1/x"'


@pytest.mark.parametrize("kind", ["own", "openai", "hexadecimal"])
@pytest.mark.parametrize(
    "toml",
    [
        "[listen]\nhttp = ['KEY']\n",
        "[listen]\ninstance = 'a KEY'\n",
        "[limits]\nin_flight = 'KEY'\n",
        "[limits]\n'KEY' = 1\n",
        "[limits]\n'in flight KEY' = { KEY = 'KEY' }\n",
        "[[keys]]\nname = 'KEY'\n",
        "[[keys]]\nname = 'ci'\nhash = 'KEY'\n",
        "[cache]\napi_key_credential = '/KEY'\n",
        "[cache.embeddings]\nmodels = ['KEY', 'KEY']\n",
        "[models.m]\naliases = ['KEY', 'KEY']\n",
        "[hosts.facts]\nkind = 'KEY'\n",
    ],
)
def test_no_error_of_the_configuration_shows_one(toml: str, kind: str, tmp_path: Path) -> None:
    key = KEYS[kind]
    path = tmp_path / "router.toml"
    path.write_text(BASE + toml.replace("KEY", key), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert key not in str(caught.value)
    assert key[6:] not in str(caught.value)
    assert str(path) in str(caught.value), "the file is named"


def test_a_change_of_the_configuration_is_told_without_one() -> None:
    before, after = (parse(f"{BASE}models = ['{KEYS['own']}{n}']\n") for n in "ab")
    text = " ".join(change.text for change in changes(before, after))
    assert "hosts" in text
    assert KEYS["own"] not in text
