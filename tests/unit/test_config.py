"""The configuration: what is accepted, and that every refusal names key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import config
from router.config import Config, parse
from router.errors import ConfigError

HOST = '[[hosts]]\nname = "a"\nurl = "http://127.0.0.1:1"\n'


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(f"version = 1\n{text}")
    return str(caught.value)


def test_the_shortest_file_has_every_default() -> None:
    assert parse("version = 1") == Config(version=1)


def test_a_single_address_needs_no_list() -> None:
    assert parse('version = 1\n[listen]\nhttp = "unix:/tmp/s"').listen.http == ["unix:/tmp/s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nattempts = 9", "limits.attempts = 9: expected a whole number between 1 and 4"),
        ("[limits]\nattempts = 2.5", "limits.attempts = 2.5: expected a whole number between 1 and 4"),
        ("[limits]\nattempts = true", "limits.attempts = true: expected a whole number between 1 and 4"),
        ("[timeouts]\nhead_s = 0", "timeouts.head_s = 0: expected a number above 0, at most 3600"),
        ("[timeouts]\nhead_s = nan", "timeouts.head_s = NaN: expected a number above 0, at most 3600"),
        ('[log]\nlevel = "b"', 'log.level = "b": expected one of "debug", "error", "info", "warning"'),
        ("[log]\nlevel = 3", 'log.level = 3: expected one of "debug", "error", "info", "warning"'),
        ("log = 3", "log = 3: expected a table with the keys format, level"),
        ('[models.x]\nfold = "b"', 'models.x.fold = "b": expected one of "always", "auto", "never"'),
        ('[models."a.b"]\nfold = 1', 'models."a.b".fold = 1: expected one of "always", "auto", "never"'),
        ("[listen]\nhttp = []", "listen.http = []: expected a list of at least 1, each `host:port` or `unix:/path`"),
        ("[listen]\nhttp = [3]", "listen.http[0] = 3: expected `host:port` or `unix:/path`"),
        ('[tags]\nown = ["A"]', 'tags.own[0] = "A": expected 1 to 40 of `a-z0-9_`, the first a letter'),
        (
            '[[hosts]]\nname = "a"\nurl = "https://x"',
            'hosts[0].url = "https://x": expected `http://host:port` or `unix:///path/of.sock`',
        ),
        (
            f"{HOST}models = 3",
            "hosts[0].models = 3: expected a list of names, or a table of `name for clients = name at the host`",
        ),
        (f"{HOST}models = [3]", "hosts[0].models[0] = 3: expected text"),
        (f"{HOST}models = {{ x = 3 }}", "hosts[0].models.x = 3: expected text"),
        (f"{HOST}[hosts.facts]\nprogress = 1", "hosts[0].facts.progress = 1: expected true or false"),
        (
            f'{HOST}[hosts.facts]\npaths = ["/rerank", "score"]',
            'hosts[0].facts.paths[1] = "score": expected a path that begins with `/`, without `?` or `#`',
        ),
        (
            f'{HOST}[hosts.facts]\npaths = ["/rerank?a=b"]',
            'hosts[0].facts.paths[0] = "/rerank?a=b": expected a path that begins with `/`, without `?` or `#`',
        ),
        (f"{HOST}slots = 0", "hosts[0].slots = 0: expected a whole number between 1 and 65_536"),
    ],
)
def test_a_refused_value_is_named_with_what_is_allowed(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "begins", "allowed"),
    [
        ("[listen]\nhtpp = 1", "listen.htpp is not a known key; did you mean 'http'?", "http, instance, plaintext_ok"),
        ("[models.chat]\nfoo = 1", "models.chat.foo is not a known key", "routing, stream_by_default, timeouts"),
        ("[models.chat.timeouts]\nqueue = 1", "models.chat.timeouts.queue is not a known key", "queue_s, total_s"),
        (f"{HOST}foo = 1", "hosts[0].foo is not a known key", "api_key_env, cost_per_hour, drain, facts, kind, models"),
        (f"{HOST}[hosts.facts]\nfoo = 1", "hosts[0].facts.foo is not a known key", "progress, request_id_header"),
        ("foo = 1", "foo is not a known key", "health, hosts, keys, limits"),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_of_its_section(text: str, begins: str, allowed: str) -> None:
    message = refusal(text)
    assert message.startswith(begins)
    assert allowed in message


def test_a_missing_key_is_named_with_what_is_expected() -> None:
    message = refusal('[[hosts]]\nname = "a"')
    assert message == "hosts[0].url is missing: expected `http://host:port` or `unix:///path/of.sock`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "version is missing: begin the file with `version = 1`"),
        ("version = 2", "version = 2: expected 1"),
        ('version = "1"', 'version = "1": expected 1'),
    ],
)
def test_the_version_is_asked_for(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_broken_toml_says_where() -> None:
    with pytest.raises(ConfigError, match=r"not TOML: .*line 2"):
        parse("version = 1\nlimits = = 3\n")


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(f'[log]\nlevel = "{"x" * 10_000}"')) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HOST + HOST, 'hosts[1].name = "a": expected names that differ, hosts[0] has it too'),
        ("[rings]\ndone = 1000", "rings.done = 1000: expected a power of two, e.g. 512 or 1024"),
        ('[tags]\nown = ["variant"]', 'tags.own[0] = "variant": expected a name that is not a built-in tag'),
        ('[tags]\nown = ["a", "a"]', 'tags.own[1] = "a": expected names that differ, this one stands twice'),
        (
            "[limits]\nclient_resume_bytes = 300_000",
            "limits.client_resume_bytes = 300000: expected less than limits.client_buffer_bytes (262144)",
        ),
        (
            '[listen]\nhttp = "a:99999"',
            'listen.http[0] = "a:99999": expected host:port (port 0 to 65535) or unix:/absolute/path',
        ),
        (
            '[[hosts]]\nname = "a"\nurl = "http://x:1/v1"',
            'hosts[0].url = "http://x:1/v1": expected http://host:port without a path',
        ),
        (
            '[observer]\nhttp = "8401"',
            'observer.http = "8401": expected host:port (port 0 to 65535) or unix:/absolute/path',
        ),
        (
            '[observer.slices]\ntags = ["modle"]',
            f'observer.slices.tags[0] = "modle": expected {config.SLICE_ALLOWED}',
        ),
        (
            '[observer.slices]\ntags = ["model,host,channel"]',
            f'observer.slices.tags[0] = "model,host,channel": expected {config.SLICE_ALLOWED}',
        ),
        (
            '[observer.slices]\ntags = ["model", "model"]',
            'observer.slices.tags[1] = "model": expected values that differ, it stands twice',
        ),
        ('[observer.slices]\ntop = ["host"]', 'observer.slices.top[0] = "host": expected the name of a tag'),
        (
            '[[observer.prices]]\nmodel = "m"\ninput = 1\noutput = 1\n' * 2,
            'observer.prices[1].model = "m": expected values that differ, it stands twice',
        ),
        ("[[observer.goodput]]", "observer.goodput[0] is without a limit: expected ttft_s, tpot_s or e2e_s"),
    ],
)
def test_what_one_value_alone_cannot_show_is_checked(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("name", ["..", ".", "-x", "a/b", "", "a\\n", "x" * 65])
def test_names_that_are_no_directory_or_header_are_refused(name: str) -> None:
    assert "expected 1 to 64 of" in refusal(f'[listen]\ninstance = "{name}"')
    assert "hosts[0].name" in refusal(f'[[hosts]]\nname = "{name}"\nurl = "http://x"')


def test_rows_of_names_may_be_any_number() -> None:
    assert parse("version = 1\n[rings]\nnames = 1000").rings.names == 1000


class TestKeys:
    def test_a_key_that_is_not_in_the_environment_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SOME_KEY", raising=False)
        expected = 'hosts[0].api_key_env = "SOME_KEY": expected the name of an environment variable that is set'
        assert refusal(f'{HOST}api_key_env = "SOME_KEY"') == expected

    def test_a_key_written_into_the_file_is_not_repeated(self) -> None:
        assert "sk-secret" not in refusal(f'{HOST}api_key_env = "sk-secret"')

    def test_only_the_router_needs_the_key(self) -> None:
        text = f'version = 1\n{HOST}api_key_env = "A_KEY_THAT_IS_NOT_SET"'
        assert parse(text, need_keys=False).hosts[0].api_key_env == "A_KEY_THAT_IS_NOT_SET"


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "address"),
        [
            ("http://h:8080", ("h", 8080)),
            ("http://h:8080/", ("h", 8080)),
            ("http://h", ("h", 80)),
            ("http://[::1]:9", ("::1", 9)),
            ("http://[::1]", ("::1", 80)),
            ("unix:///run/x.sock", "/run/x.sock"),
        ],
    )
    def test_urls_of_hosts(self, url: str, address: tuple[str, int] | str) -> None:
        assert config.host_address(url, "k") == address

    @pytest.mark.parametrize(
        "address", ["unix:relative", "unix:/" + "x" * 200, "nohost", ":80", "h:", "h:x", "h:65536"]
    )
    def test_bad_addresses_name_the_key(self, address: str) -> None:
        with pytest.raises(ConfigError, match=r"^k = "):
            config.split_address(address, "k")


class TestModelTimeouts:
    def test_its_own_go_before_the_general_ones(self) -> None:
        text = "version = 1\n[timeouts]\nqueue_s = 7\nidle_s = 8\n[models.m.timeouts]\nqueue_s = 3"
        own = config.model_timeouts(parse(text), "m")
        assert (own.queue_s, own.idle_s) == (3, 8)

    def test_a_model_without_a_section_has_the_general_ones(self) -> None:
        parsed = parse("version = 1")
        assert config.model_timeouts(parsed, "m") is parsed.timeouts


_FEATURE = "[features.f]\n"
_HOST = '[[hosts]]\nname = "a"\nurl = "http://h:1"\nmodels = ["y"]'


class TestAdmission:
    def test_the_classes_of_a_model(self) -> None:
        text = "version = 1\n[models.m.admission]\nclasses.batch = { waiting = 5, starve_s = 9 }\n"
        admission = parse(text).models["m"].admission
        assert (admission.of("batch").waiting, admission.starve_s("batch"), admission.starve_s("realtime")) == (5, 9, 5)
        assert admission.of("realtime").deadline_ms is None
        assert not admission.settles

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[models.m.admission.classes.vip]\nwaiting = 1", ".vip is not a known key (allowed: one of "),
            ("[models.m.admission.classes.batch]\nwaiting = 1025", ".waiting = 1025: expected at most limits.waiting"),
            (
                "[models.m.admission.classes.batch]\ndeadline_ms = 0",
                ".deadline_ms = 0: expected a number between 1 and",
            ),
            (
                "[models.m.levers]\ntemperature_min = 1\ntemperature_max = 0.5",
                "_min = 1: expected at most models.m.levers.",
            ),
            (
                f"{_FEATURE}max_output_tokens = 5\ndefault_max_output_tokens = 6",
                "_tokens = 6: expected at most features.f.",
            ),
            (
                f"{_FEATURE}temperature_max = 1\ndefault_temperature = 2",
                "= 2: expected at most features.f.temperature_max",
            ),
            (
                f"{_FEATURE}temperature_min = 1\ndefault_temperature = 0",
                "= 0: expected at least features.f.temperature_min",
            ),
            (f'{_FEATURE}model = "x"\n{_HOST}', 'features.f.model = "x": expected a model that a host has (y)'),
            (
                '[features.""]\ndefault_class = "batch"',
                'features."": expected a name, the value of the tag feature_name',
            ),
        ],
    )
    def test_contradictions_are_named(self, text: str, expected: str) -> None:
        section = text.partition("]")[0][1:]
        assert expected in refusal(text)
        assert refusal(text).startswith(section)

    def test_a_feature_may_name_a_model_that_is_not_known_yet(self) -> None:
        text = '[features.f]\nmodel = "x"\n[[hosts]]\nname = "a"\nurl = "http://h:1"\n'
        assert parse(f"version = 1\n{text}").features["f"].model == "x"


class TestLoad:
    def test_errors_begin_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_text("version = 3")
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        assert str(caught.value) == f"{path}: version = 3: expected 1"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none.toml: No such file or directory$"):
            config.load(tmp_path / "none.toml")

    def test_a_file_that_is_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_bytes(b"version = 1 # \xff")
        with pytest.raises(ConfigError, match=r"not UTF-8 at byte 14$"):
            config.load(path)


class TestRunDir:
    @pytest.fixture(autouse=True)
    def _bare_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    def test_the_order_is_config_systemd_xdg_shm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bare, named = parse("version = 1"), parse('version = 1\n[listen]\nrun_dir = "/run/x"')
        assert config.run_dir(bare).parent == Path("/dev/shm")
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
        assert config.run_dir(bare) == Path("/run/user/7/ringrouter")
        monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ringrouter:/run/other")
        assert config.run_dir(bare) == Path("/run/ringrouter")
        assert config.run_dir(named) == Path("/run/x")

    def test_the_journal_is_where_config_systemd_xdg_or_the_home_directory_say(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bare, named = parse("version = 1"), parse('version = 1\n[observer]\ndata_dir = "/srv/x"')
        monkeypatch.delenv("STATE_DIRECTORY", raising=False)
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        monkeypatch.setenv("HOME", "/home/u")
        assert config.data_dir(bare) == Path("/home/u/.local/state/ringrouter")
        monkeypatch.setenv("XDG_STATE_HOME", "/state")
        assert config.data_dir(bare) == Path("/state/ringrouter")
        monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/ringrouter:/var/lib/other")
        assert config.data_dir(bare) == Path("/var/lib/ringrouter")
        assert config.data_dir(named) == Path("/srv/x")

    def test_tags_of_the_users_own_can_be_sliced_by(self) -> None:
        text = 'version = 1\n[tags]\nown = ["plan"]\n[observer.slices]\ntags = ["plan", "plan,host"]\ntop = ["plan"]'
        assert parse(text).observer.slices.tags == ["plan", "plan,host"]

    def test_a_relative_one_is_refused(self) -> None:
        assert refusal('[observer]\ndata_dir = "x"').endswith("expected an absolute path or nothing")
        assert refusal('[listen]\nrun_dir = "rings"').endswith("expected an absolute path or nothing")
