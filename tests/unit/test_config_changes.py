"""What differs between two configurations, aliases and fallback chains, and what contradicts itself."""

from __future__ import annotations

import pytest

from router.config import Config, aliases, fallback_chain, parse
from router.config.changes import changes, taken_over
from router.errors import ConfigError

HOST = '[[hosts]]\nname = "a"\nurl = "http://h:1"\nmodels = ["m", "n", "o"]\n'


def config(text: str = "", hosts: str = HOST) -> Config:
    return parse(f"version = 1\n{hosts}{text}", need_keys=False)


def texts(before: Config, after: Config) -> list[tuple[str, str]]:
    return [(each.text, each.needs) for each in changes(before, after)]


def test_the_same_file_has_no_changes() -> None:
    assert changes(config(), config()) == []
    assert changes(config(), config("[limits]\nwaiting = 1024\n")) == [], "a default that is written out is none"


def test_hosts_are_told_apart_by_name() -> None:
    b = HOST.replace('"a"', '"b"')
    assert texts(config(), config(hosts=b + HOST)) == [("hosts.b added", "")]
    assert texts(config(hosts=HOST + b), config(hosts=b)) == [("hosts.a removed", "")]
    assert texts(config(hosts=HOST + b), config(hosts=b + HOST)) == []


def test_keys_are_named_with_both_values() -> None:
    after = config('[models.m]\nfallback = ["n"]\n[limits]\nwaiting = 64\n', HOST + "slots = 8\n")
    before = config("[models.m]\n")
    assert sorted(texts(before, after)) == [
        ("hosts.a.slots: (absent) -> 8", ""),
        ("limits.waiting: 1024 -> 64", ""),
        ('models.m.fallback: [] -> ["n"]', ""),
    ]


def test_what_is_read_at_the_start_only_needs_a_restart() -> None:
    text = '[listen]\nhttp = "127.0.0.1:1"\n[rings]\ntokens = 2048\n[limits]\nin_flight = 9\nwaiting = 5\n'
    text += '[observer]\nhttp = "127.0.0.1:2"\n'
    before, after = config(), config(text)
    assert {key.partition(":")[0]: needs for key, needs in texts(before, after)} == {
        "listen.http": "router",
        "rings.tokens": "router",
        "limits.in_flight": "router",
        "limits.waiting": "",
        "observer.http": "observer",
    }
    running = taken_over(before, after)
    assert (running.listen, running.rings, running.limits.in_flight) == (before.listen, before.rings, 4096)
    assert running.limits.waiting == 5
    assert [each.key for each in changes(running, after)] == ["listen.http", "limits.in_flight", "rings.tokens"]


def test_no_secret_is_shown() -> None:
    found = texts(config(hosts=HOST + 'api_key_env = "sk-123"\n'), config(hosts=HOST + 'api_key_env = "sk-456"\n'))
    assert found == [("hosts.a.api_key_env: (not shown) -> (not shown)", "")]


# ---------------------------------------------------------------- names
def test_aliases_are_names_of_a_model() -> None:
    assert aliases(config('[models.m]\naliases = ["gpt-4o", "default"]\n')) == {"gpt-4o": "m", "default": "m"}


def test_each_model_of_a_chain_brings_its_own() -> None:
    text = '[models.m]\nfallback = ["n", "p"]\n[models.n]\nfallback = ["other", "p"]\n[models.o]\naliases = ["other"]\n'
    made = config(text, HOST.replace('"o"', '"o", "p"'))
    assert fallback_chain(made, "m") == ("n", "o", "p")
    assert fallback_chain(made, "o") == ()
    assert fallback_chain(made, "unheard-of") == ()


CONTRADICTIONS = {
    'models.m.fallback[0] = "m": expected a chain without a loop, this one is m -> m': '[models.m]\nfallback = ["m"]\n',
    'models.m.fallback[0] = "n": expected a chain without a loop, this one is m -> n -> o -> m': (
        '[models.m]\nfallback = ["n"]\n[models.n]\nfallback = ["o"]\n[models.o]\nfallback = ["m"]\n'
    ),
    'models.m.fallback[0] = "k": expected a chain without a loop, this one is m -> n -> m': (
        '[models.m]\nfallback = ["k"]\n[models.n]\naliases = ["k"]\nfallback = ["m"]\n'
    ),
    'models.m.fallback[0] = "q": expected the name of a model that a host has (models: m, n, o)': (
        '[models.m]\nfallback = ["q"]\n'
    ),
    'models.m.fallback[1] = "n": expected names that differ, it stands twice': '[models.m]\nfallback = ["n", "n"]\n',
    'models.m.aliases[0] = "n": expected a name that is not in use, this is the name of a model': (
        '[models.m]\naliases = ["n"]\n'
    ),
    'models.m.aliases[0] = "m": expected a name that is not in use, this is the name of the model itself': (
        '[models.m]\naliases = ["m"]\n'
    ),
    'models.n.aliases[0] = "x": expected names that differ, models.m has it too': (
        '[models.m]\naliases = ["x"]\n[models.n]\naliases = ["x"]\n'
    ),
    "health.breaker.open_s = 9: expected at most health.breaker.open_s_max (8)": (
        "[health.breaker]\nopen_s = 9\nopen_s_max = 8\n"
    ),
    "health.outliers.eject_s = 301: expected at most health.outliers.eject_s_max (300)": (
        "[health.outliers]\neject_s = 301\n"
    ),
}


@pytest.mark.parametrize(("message", "text"), CONTRADICTIONS.items())
def test_contradictions_name_the_key(message: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert str(caught.value) == message


def test_a_host_that_is_asked_for_its_models_may_have_any() -> None:
    made = config('[models.m]\nfallback = ["later"]\n', HOST + '[[hosts]]\nname = "b"\nurl = "http://h:2"\n')
    assert fallback_chain(made, "m") == ("later",)


def test_chains_that_meet_again_and_again_take_no_time() -> None:
    names = [f"m{i}" for i in range(60)]
    hosts = HOST.replace('["m", "n", "o"]', str(names).replace("'", '"'))
    text = "".join(f'[models.m{i}]\nfallback = ["m{i + 1}", "m{i + 2}"]\n' for i in range(58))
    assert fallback_chain(config(text, hosts), "m0") == tuple(names[1:])
