"""``[models.NAME.routing]``: what is taken, and contradictions with the key that they are about."""

from __future__ import annotations

from typing import Any

import pytest

from router import config
from router.config import Config
from router.errors import ConfigError

HOSTS = """
[[hosts]]
name = "gpu-0"
url = "http://127.0.0.1:1"
models = ["chat"]
cost_per_hour = 2.0
weight = 3
priority = 7

[[hosts]]
name = "gpu-1"
url = "http://127.0.0.1:2"
models = ["chat", "a b"]

[[hosts]]
name = "asked"
url = "http://127.0.0.1:3"
cost_per_hour = 0
"""


def parse(routing: str, model: str = "chat", hosts: str = HOSTS) -> Config:
    return config.parse(f"version = 1\n{hosts}\n[models.{model}.routing]\n{routing}")


def test_without_a_word_the_default_decides() -> None:
    routing = config.ModelConfig().routing
    assert routing.is_default
    assert parse("load_bound = 3.0").models["chat"].routing.is_default, "a bound alone chooses no policy"


@pytest.mark.parametrize(
    "keys",
    [
        'policy = "weighted"\nweights = { gpu-0 = 5, asked = 2 }',
        'policy = "prefix_affinity"\nload_bound = 1\nidle_share = 0\nblock_bytes = 64\ncache_tokens = 1_000_000',
        'sticky = "user_id"\nsessions_max = 10\nsession_idle_s = 5',
        'sticky = "header:x-conversation-id"',
        'order = "priority"',
    ],
)
def test_it_is_taken(keys: str) -> None:
    assert not parse(keys).models["chat"].routing.is_default


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ('policy = "fastest"', ('models.chat.routing.policy = "fastest"', '"prefix_affinity"')),
        ("polcy = 1", ("models.chat.routing.polcy is not a known key", "did you mean 'policy'")),
        ("load_bound = 0.5", ("models.chat.routing.load_bound = 0.5", "between 1 and 100")),
        ("blocks_max = 0", ("models.chat.routing.blocks_max = 0", "between 1")),
        ("decay_s = 0", ("models.chat.routing.decay_s = 0", "above 0")),
        ('sticky = "header:X-Upper"', ("models.chat.routing.sticky", "in lower case")),
        ('sticky = "session"', ("models.chat.routing.sticky", '`"session_id"`')),
        (
            'policy = "weighted"\nweights = { gpu-9 = 1 }',
            (
                "models.chat.routing.weights.gpu-9: expected the name of a host",
                "hosts of the model: asked, gpu-0, gpu-1",
            ),
        ),
        (
            'policy = "weighted"\nweights = { gpu-0 = 0 }',
            ("models.chat.routing.weights.gpu-0 = 0", "between 1 and 1000"),
        ),
        ("weights = { gpu-0 = 2 }", ('has no effect with policy = "least_outstanding"', 'policy = "weighted"')),
        ('order = "cost"', ('models.chat.routing.order = "cost"', "expected cost_per_hour", "gpu-1 has none")),
    ],
)
def test_a_contradiction_is_named_with_its_key(keys: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(keys)
    for part in parts:
        assert part in str(error.value)


def test_a_weight_of_a_host_without_the_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'^models\."a b"\.routing\.weights\.gpu-0: expected a host that has the model'
    ):
        parse('policy = "weighted"\nweights = { gpu-0 = 2 }', '"a b"')


@pytest.mark.parametrize("key", ["weight = 0", "weight = 1.5", "priority = -1", "weight = 1001"])
def test_weights_and_priorities_of_hosts_have_bounds(key: str) -> None:
    host: dict[str, Any] = {"key": key.partition(" ")[0]}
    with pytest.raises(ConfigError, match=rf"^hosts\[0\]\.{host['key']} = "):
        config.parse(f'version = 1\n[[hosts]]\nname = "a"\nurl = "http://127.0.0.1:1"\n{key}\n')
