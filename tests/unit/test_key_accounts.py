"""Keys: windows of what was used, accounts, hashes, the configuration and the command."""

from __future__ import annotations

import hashlib
import io
import json
import stat
from collections import deque
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import cli
from router.config import KeyConfig, load, parse
from router.config.changes import changes
from router.errors import ConfigError, ErrorKind, RequestError
from router.ingress.access import client_of
from router.keys import tokens
from router.keys.account import Account, tokens_of
from router.keys.windows import RequestWindow, TokenWindow
from router.request import Request

S = 1_000_000_000
HASH = "sha256:" + "ab" * 32
BASE = 'version = 1\n[[hosts]]\nname = "a"\nurl = "http://127.0.0.1:1"\n'


# ---------------------------------------------------------------- windows
@given(st.integers(1, 6), st.lists(st.integers(0, 40), max_size=60))
def test_no_span_has_more_requests_than_the_limit_and_none_is_refused_that_fits(limit: int, steps: list[int]) -> None:
    window, taken, now = RequestWindow(limit, span_ns=60), deque[int](), 1_000
    for step in steps:
        now += step
        while taken and taken[0] <= now - 60:
            taken.popleft()
        wait_ns = window.wait_ns(now)
        assert (wait_ns <= 0) == (len(taken) < limit), "exactly as a list of all times says"
        if wait_ns > 0:
            assert wait_ns == taken[0] + 60 - now
            assert window.count(now) == limit
        else:
            window.note(now)
            taken.append(now)


def test_a_request_that_was_not_taken_leaves_its_place() -> None:
    window = RequestWindow(2)
    window.note(10 * S)
    window.note(11 * S)
    window.take_back()
    assert window.wait_ns(12 * S) <= 0
    window.note(12 * S)
    assert window.wait_ns(12 * S) == 58 * S


@pytest.mark.parametrize(("limit", "wait_s"), [(1, 52), (2, 51), (3, 50), (4, 0)])
def test_a_window_of_another_limit_knows_the_same_requests(limit: int, wait_s: int) -> None:
    window = RequestWindow(3)
    for at_s in (10, 11, 12):
        window.note(at_s * S)
    assert max(window.resized(limit).wait_ns(20 * S), 0) == wait_s * S


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 50)), max_size=60), st.integers(1, 100))
def test_tokens_count_for_their_span_and_at_most_a_bucket_longer(steps: list[tuple[int, int]], limit: int) -> None:
    window, used, now = TokenWindow(60, 6), list[tuple[int, int]](), 5
    for step, count in steps:
        now += step
        wait_ns = window.wait_ns(now, limit)
        surely = sum(n for at, n in used if at > now - 60)
        perhaps = sum(n for at, n in used if at > now - 70)
        assert surely <= window.total <= perhaps
        assert (wait_ns == 0) == (window.total < limit)
        if wait_ns:
            twin = TokenWindow(60, 6)
            for at, n in used:
                twin.note(at, n)
            assert twin.wait_ns(now + wait_ns, limit) == 0, "then it is free"
            twin = TokenWindow(60, 6)
            for at, n in used:
                twin.note(at, n)
            assert twin.wait_ns(now + wait_ns - 1, limit) == 1, "and not before"
        window.note(now, count)
        used.append((now, count))


# ---------------------------------------------------------------- accounts
def request(name: str = "m", asked: str | None = None) -> Any:
    made = Request.__new__(Request)
    for field, value in Request.__dataclass_fields__.items():  # type: ignore[attr-defined]
        if hasattr(value, "default"):
            setattr(made, field, value.default)
    made.model = SimpleNamespace(name=name)
    made.fields = SimpleNamespace(model=asked or name)
    made.body = b"x" * 400
    return made


def account(instances: int = 1, **settings: Any) -> Account:
    return Account(KeyConfig(name="ci", hash=HASH, **settings), 7, instances)


def refusal(of: Account, asked: Any, now: int = 0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        of.admit(asked, now)
    return caught.value


def test_an_account_says_who_asks() -> None:
    admitted = request()
    own = account()
    own.admit(admitted, 0)
    assert (admitted.terms.account, admitted.terms.key_id, admitted.share_key) == (own, 7, "ci")


def test_requests_a_minute_say_exactly_when_to_come_back() -> None:
    own = account(requests_per_minute=2)
    own.admit(request(), 10 * S)
    own.admit(request(), 12 * S)
    error = refusal(own, request(), 20 * S + 1)
    assert (error.kind, error.retry_after_s) == (ErrorKind.RATE_LIMITED, 50)
    refusal(own, request(), 70 * S - 1)
    own.admit(request(), 70 * S)


def test_in_flight_is_freed_by_the_end() -> None:
    own = account(in_flight=2)
    first = request()
    own.admit(first, 0)
    own.admit(request(), 0)
    assert refusal(own, request()).kind == ErrorKind.RATE_LIMITED
    own.finished(first, 1)
    last = request()
    own.admit(last, 1)
    own.take_back(last)
    assert own.in_flight == 1


def test_tokens_pass_their_limit_by_no_more_than_what_is_in_flight() -> None:
    own = account(tokens_per_minute=100)
    running = [request() for _ in range(3)]
    for each in running:
        own.admit(each, 0)
        each.usage = b'{"prompt_tokens": 30, "completion_tokens": 40}'
    for each in running:
        own.finished(each, S)
    assert own.usage(S)["tokens_per_minute"] == {"used": 210, "limit": 100}
    assert refusal(own, request(), 2 * S).retry_after_s == 60, "the bucket of the first second, all of it"
    own.admit(request(), 62 * S)


def test_a_client_that_leaves_pays_for_the_prompt() -> None:
    left = request()
    left.sent_ns = left.left_ns = 1
    left.content_count = 3
    assert tokens_of(left) == 400 // 4 + 3
    never_sent = request()
    never_sent.left_ns = 1
    assert tokens_of(never_sent) == 0


def test_limits_are_divided_by_the_instances() -> None:
    own = account(instances=2, in_flight=5, requests_per_minute=4)
    own.admit(request(), 0)
    own.admit(request(), 0)
    assert refusal(own, request()).kind == ErrorKind.RATE_LIMITED
    assert own.usage(0)["in_flight"] == {"used": 2, "limit": 2}


def test_other_settings_forget_nothing_that_was_used() -> None:
    own = account(requests_per_minute=5, tokens_per_day=10)
    done = request()
    own.admit(done, 0)
    done.usage = b'{"prompt_tokens": 5, "completion_tokens": 5}'
    own.finished(done, 0)
    own.configure(KeyConfig(name="ci", hash=HASH, requests_per_minute=1, tokens_per_day=11), 1)
    assert refusal(own, request(), S).retry_after_s == 59
    own.configure(KeyConfig(name="ci", hash=HASH, tokens_per_day=10), 1)
    assert "tokens_per_day" in str(refusal(own, request(), S))


@pytest.mark.parametrize(
    ("patterns", "name", "asked", "is_allowed"),
    [
        (["*"], "llama", None, True),
        (["lla*"], "llama", None, True),
        (["chat"], "llama", "chat", True),
        (["chat"], "llama", "other", False),
        (["Llama"], "llama", None, False),
        (["small", "m?d"], "mid", None, True),
    ],
)
def test_models_are_allowed_by_one_of_their_names(
    patterns: list[str], name: str, asked: str | None, is_allowed: bool
) -> None:
    own = account(models=patterns)
    if is_allowed:
        own.admit(request(name, asked), 0)
    else:
        assert refusal(own, request(name, asked)).kind == ErrorKind.FORBIDDEN
        assert own.in_flight == 0


def test_forced_tags_win_and_default_tags_yield() -> None:
    own = account(tags={"feature_name": "ci"}, tags_default={"channel": "batch"})
    headers = {b"x-ringrouter-tag-feature_name": b"mine", b"baggage": b"channel=mine"}
    own.put_tags(headers)
    assert headers == {b"x-ringrouter-tag-feature-name": b"ci", b"baggage": b"channel=batch,channel=mine"}


# ---------------------------------------------------------------- hashes
def test_keys_are_long_and_unlike_and_hashed_plainly() -> None:
    made = {tokens.new_token() for _ in range(50)}
    assert len(made) == 50
    one = made.pop()
    assert one.startswith("rr_")
    assert len(one) == 46
    assert tokens.hash_of(one) == "sha256:" + hashlib.sha256(one.encode()).hexdigest()


# ---------------------------------------------------------------- configuration
def key(**settings: str) -> str:
    return "[[keys]]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


CI = key(name='"ci"', hash=f'"{HASH}"')
OTHER_HASH = '"sha256:' + "cd" * 32 + '"'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (key(name='"ci"'), "keys[0] (ci) has neither hash nor curve"),
        (key(name='"ci"', hash='"rr_the-key-itself"'), "keys[0].hash (not shown): expected sha256:"),
        (CI + key(name='"ci"', hash=OTHER_HASH), "keys[1].name (ci): expected values that differ, keys[0] has it too"),
        (CI + key(name='"b"', hash=f'"{HASH}"'), "keys[1].hash (b): expected values that differ, keys[0] has it too"),
        (key(name='"ci"', hash=f'"{HASH}"', role='"root"'), 'keys[0].role = "root": expected one of'),
        (key(name='"ci"', hash=f'"{HASH}"', tags='{ nope = "x" }'), "keys[0].tags.nope: expected the name of a tag"),
        (key(name='"ci"', hash=f'"{HASH}"', tags='{ channel = "" }'), 'keys[0].tags.channel = "": expected 1 to 64'),
        (key(name='"ci"', hash=f'"{HASH}"', curve='"short"'), "keys[0].curve (not shown): expected a public key"),
        (key(name='"ci"', curve=f'"{"a" * 40}"'), "keys[0].curve (ci): expected listen.curve_key_file"),
        ('[listen]\ntrusted_proxies = ["10.0.0.0/99"]\n', 'listen.trusted_proxies[0] = "10.0.0.0/99": expected an'),
        (
            "[access]\ninstances = 4\n" + key(name='"ci"', hash=f'"{HASH}"', in_flight="3"),
            "keys[0].in_flight = 3: expected 0 or at least access.instances (4)",
        ),
        ('[listen]\nhttp = "0.0.0.0:1"\n', 'listen.http[0] = "0.0.0.0:1": other machines can reach it: expected keys'),
        ('[listen]\nhttp = "0.0.0.0:1"\n' + CI, "it is not encrypted: expected listen.plaintext_ok = true"),
        ('[listen]\nhttp = "gpu-box:1"\n' + CI, "it is not encrypted: expected listen.plaintext_ok = true"),
        ('[listen]\nzeromq = "tcp://*:1"\n', 'listen.zeromq[0] = "tcp://*:1": other machines can reach it'),
        ('[listen]\nadmin = ["127.0.0.1:1"]\n', 'listen.admin[0] = "127.0.0.1:1": expected keys ([[keys]])'),
        ('[access]\nkeys_file = "/nowhere/keys.toml"\n', 'access.keys_file = "/nowhere/keys.toml": No such file'),
        ('[access]\nkeys_credential = "keys"\n', 'access.keys_credential = "keys": expected a credential that systemd'),
    ],
)
def test_bad_settings_are_named(toml: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError) as caught:
        parse(BASE + toml)
    assert message in str(caught.value)
    assert "rr_the-key-itself" not in str(caught.value)


@pytest.mark.parametrize(
    "toml",
    [
        '[listen]\nhttp = ["127.0.0.5:1", "localhost:2", "[::1]:3", "unix:/tmp/x.sock"]\n',
        '[listen]\nhttp = "0.0.0.0:1"\nplaintext_ok = true\n' + CI,
        '[listen]\nzeromq = "tcp://0.0.0.0:1"\ncurve_key_file = "/etc/x"\n' + CI,
        '[listen]\nadmin = ["unix:/tmp/admin.sock"]\n',
    ],
)
def test_what_is_safe_is_accepted(toml: str) -> None:
    parse(BASE + toml)


def test_further_keys_come_from_a_file_and_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys.toml").write_text(key(name='"b"', hash=OTHER_HASH))
    (tmp_path / "cred").write_text(key(name='"c"', hash='"sha256:' + "ef" * 32 + '"'))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    access = f'[access]\nkeys_file = "{tmp_path}/keys.toml"\nkeys_credential = "cred"\n'
    assert [each.name for each in parse(BASE + access + CI).keys] == ["ci", "b", "c"]
    (tmp_path / "keys.toml").chmod(0o666)
    with pytest.raises(ConfigError, match="only its owner may write"):
        parse(BASE + access + CI)
    assert [each.name for each in parse(BASE + access + CI, need_keys=False).keys] == ["ci"], "readers need no keys"


def test_changes_of_keys_are_told_by_name_and_show_no_hash() -> None:
    more = CI.replace("ab" * 32, "cd" * 32) + "in_flight = 5\n" + key(name='"b"', hash=f'"{HASH}"')
    assert [each.text for each in changes(parse(BASE + CI), parse(BASE + more))] == [
        "keys.ci.hash: (not shown) -> (not shown)",
        "keys.ci.in_flight: 0 -> 5",
        "keys.b added",
    ]


# ---------------------------------------------------------------- whom the log names
def test_the_log_names_the_client_a_trusted_proxy_names() -> None:

    class Head:
        def __init__(self, forwarded: str) -> None:
            self.headers = {b"x-forwarded-for": forwarded.encode()} if forwarded else {}

    class Connection:
        def __init__(self, address: str) -> None:
            self.peer_address = lambda: address

    proxies = [ip_network("10.0.0.0/8"), ip_network("::1")]
    cases = [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("::1", "[2001:db8::1]:99", "2001:db8::1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "<script>", "10.0.0.1"),
        ("unix", "198.51.100.1", "198.51.100.1"),
    ]
    for address, forwarded, expected in cases:
        found: Any = client_of(Connection(address), Head(forwarded), proxies)  # type: ignore[arg-type]
        assert found == expected, (address, forwarded)
    assert client_of(Connection("unix"), Head("1.2.3.4"), []) == "unix"  # type: ignore[arg-type]


# ---------------------------------------------------------------- the command
def test_a_new_key_can_be_used_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert cli.main(["keys", "new", "ci", "--file", str(file), "--in-flight", "3", "--model", "small*"]) == 0
    token = capsys.readouterr().out.strip()
    assert cli.main(["keys", "new", "ops", "--file", str(file), "--role", "operator"]) == 0
    capsys.readouterr()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert token not in file.read_text()
    config = tmp_path / "router.toml"
    config.write_text(f'{BASE}[access]\nkeys_file = "{file}"\n')
    ci, ops = load(config).keys
    assert (ci.hash, ci.in_flight, ci.models, ops.role) == (tokens.hash_of(token), 3, ["small*"], "operator")
    assert cli.main(["keys", "list", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "in_flight 3" in shown
    assert "operator" in shown
    assert ci.hash not in shown
    assert cli.main(["keys", "list", "--config", str(config), "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["keys"]] == ["ci", "ops"]


def test_a_name_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert cli.main(["keys", "new", "ci", "--file", str(file)]) == 0
    before = file.read_text()
    capsys.readouterr()
    assert cli.main(["keys", "new", "ci", "--file", str(file)]) == 2
    out, err = capsys.readouterr()
    assert "rr_" not in out, "no key is shown that is of no use"
    assert 'a key is called "ci" already' in err
    assert file.read_text() == before


def test_a_key_is_hashed_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("rr_abc\n"))
    assert cli.main(["keys", "hash"]) == 0
    assert capsys.readouterr().out.strip() == tokens.hash_of("rr_abc")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert cli.main(["keys", "hash"]) == 2


def test_curve_keys_are_written_once_and_for_their_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curve.key"
    assert cli.main(["keys", "curve", str(file)]) == 0
    public = capsys.readouterr().out.strip()
    assert len(public) == 40
    assert f'public = "{public}"' in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cli.main(["keys", "curve", str(file)]) == 2
    assert "not written over" in capsys.readouterr().err


@pytest.mark.parametrize("role", ["client", "operator"])
def test_hosts_are_named_to_operators_alone(role: str) -> None:
    own = account(role=role)
    error = RequestError(ErrorKind.NO_HOST, "model 'm' is not known yet: no answer from gpu-1, gpu-2 so far", "model")
    told = own.in_its_words(error)
    assert told.message == (error.message if role == "operator" else "model 'm' is not known yet")
    assert (told.kind, told.param) == (error.kind, error.param)
    refused = RequestError(ErrorKind.RATE_LIMITED, "later", retry_after_s=7)
    assert own.in_its_words(refused) is refused
