"""Sections of tools, kept answers and prompts: what is refused, by name."""

from __future__ import annotations

import pytest

from router.config import needs_keeper, parse
from router.config.caches import keeper_key
from router.errors import ConfigError

SOURCE = '[[cache.tools.sources]]\nname = "a"\nurl = "http://x/mcp"\n'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            '[[cache.tools.sources]]\nname = "a"\n',
            "sources[0] has none of them: expected one of file, command, url",
        ),
        (SOURCE + 'file = "/a.json"\n', "cache.tools.sources[0] has file and url: expected one of"),
        (
            '[[cache.tools.sources]]\nname = "a"\nfile = "/a.yaml"\n',
            'cache.tools.sources[0].file = "/a.yaml": expected',
        ),
        ('[[cache.tools.sources]]\nname = "a"\nfile = "a.json"\n', "expected an absolute path"),
        ('[[cache.tools.sources]]\nname = "a.b"\nfile = "/a.json"\n', "expected 1 to 32 of `A-Za-z0-9_-`"),
        (SOURCE + SOURCE, 'cache.tools.sources[1].name = "a": expected names that differ'),
        (SOURCE + 'env = { A = "1" }\n', "env is given without cache.tools.sources[0].command"),
        ('[[cache.tools.sources]]\nname = "a"\nfile = "/a.json"\ntoken_env = "T"\n', "token_env is given without"),
        (
            SOURCE + '[cache.tools.toolsets]\nx = ["b.*"]\n',
            'cache.tools.toolsets.x[0] = "b.*": expected one of the sources (a)',
        ),
        (SOURCE + '[cache.tools.toolsets]\nx = ["b"]\n', "expected SOURCE.TOOL, e.g. b.*"),
        (SOURCE + "[cache.tools.toolsets]\nx = []\n", "cache.tools.toolsets.x is empty"),
        ('[cache.tools]\nselect_model = "v"\n', "cache.tools has no sources"),
        ('[cache.responses]\nfeatures = ["x"]\n', "features is given without cache.responses.enabled"),
        (
            "[cache.responses]\ntotal_bytes = 65536\nanswer_bytes = 65537\n",
            "answer_bytes = 65537: expected at most",
        ),
        (
            '[[cache.warm]]\nname = "a"\nmodel = "m"\nfile = "p"\n',
            'cache.warm[0].file = "p": expected an absolute path',
        ),
        (
            '[[cache.warm]]\nname = "a"\nmodel = "m"\nfile = "/p"\n' * 2,
            'cache.warm[1].name = "a": expected names that differ',
        ),
        ('[[cache.warm]]\nname = "a"\nmodel = "m"\nfile = "/p"\ntools = ["b.*"]\n', "cache.warm[0].tools[0]"),
    ],
)
def test_a_contradiction_is_refused_by_its_key(toml: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(f"version = 1\n{toml}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_keeper_is_needed_for_tools_and_prompts_and_not_for_kept_answers() -> None:
    assert not needs_keeper(parse("version = 1\n[cache.responses]\nenabled = true\n").cache)
    assert needs_keeper(parse(f"version = 1\n{SOURCE}").cache)
    assert needs_keeper(parse('version = 1\n[[cache.warm]]\nname = "a"\nmodel = "m"\nfile = "/p"\n').cache)


def test_the_key_of_the_keeper_is_the_keepers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEEPER_KEY", raising=False)
    cache = parse('version = 1\n[cache]\napi_key_env = "KEEPER_KEY"\n').cache  # as the router reads it
    with pytest.raises(ConfigError, match=r'cache.api_key_env = "KEEPER_KEY": expected the name of an environment'):
        keeper_key(cache)
    monkeypatch.setenv("KEEPER_KEY", "sk-1")
    assert keeper_key(cache) == "sk-1"
    assert keeper_key(parse("version = 1\n").cache) == ""


def test_a_key_that_stands_in_the_place_of_its_name_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"\(not shown\)"):
        keeper_key(parse('version = 1\n[cache]\napi_key_env = "sk-very-secret"\n').cache)
    with pytest.raises(ConfigError, match="cache has api_key_env and api_key_credential"):
        parse('version = 1\n[cache]\napi_key_env = "A"\napi_key_credential = "a"\n')
