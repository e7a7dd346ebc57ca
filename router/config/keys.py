"""The sections of who may ask: keys, their limits, where they are found, and what contradicts itself among them."""

from __future__ import annotations

import re
import stat
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config.base import Section, between, credential_or_nothing, named, path_or_nothing
from router.config.credentials import credential_file
from router.config.places import split_address
from router.config_schema import explain, shown
from router.errors import ConfigError
from router.telemetry.records import TAGS, TEXT_TAGS

if TYPE_CHECKING:
    from router.config import Config

KEYS_MAX: Final = 4000
"""Below the 4,096 values that a name of the records may take."""
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_Z85_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""32 bytes in Z85 (https://rfc.zeromq.org/spec/32/)."""
_TAG_VALUE_BYTES_MAX: Final = 64
_KEYS_FILE_BYTES_MAX: Final = 16 << 20
_NOT_SETTABLE: Final = frozenset({"request_id", "model_name"})
"""Tags that the router itself fills in."""
TAG_NAMES: Final = frozenset({*TAGS, *TEXT_TAGS}) - _NOT_SETTABLE


class KeyConfig(Section, frozen=True):
    """`[[keys]]`: a key that clients show (`ringrouter keys new`). While there are any, nobody asks without one."""

    name: Annotated[str, named("What the key is called in records, limits and logs.")]
    hash: Annotated[
        str,
        Meta(
            description="`sha256:` and the SHA-256 of the key in hexadecimal, as `ringrouter keys hash` prints it. "
            "The key itself is never in a file of the router."
        ),
    ] = ""
    curve: Annotated[
        str,
        Meta(
            description="Public CURVE key of a client of ZeroMQ over TCP, 40 characters of Z85, as `ringrouter keys "
            "curve` prints it. Beside `hash` or instead of it."
        ),
    ] = ""
    role: Annotated[
        Literal["client", "operator", "read-only"],
        Meta(
            description="`client` asks models; `read-only` looks at models and at the state of the router; `operator` "
            "does both, reloads, and takes hosts out."
        ),
    ] = "client"
    models: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(
            min_length=1,
            max_length=256,
            description="Models it may use, with `*` and `?` as in a shell. One name of a model is enough, an alias "
            "too; what the rules of a model or a feature put in its place follows from them.",
        ),
    ] = msgspec.field(default_factory=lambda: ["*"])
    tags: Annotated[
        dict[str, str],
        Meta(max_length=32, description='Tags that its requests have, whatever they say, e.g. `{ user_id = "ci" }`.'),
    ] = msgspec.field(default_factory=dict)
    tags_default: Annotated[
        dict[str, str], Meta(max_length=32, description="Tags that its requests have where they say nothing else.")
    ] = msgspec.field(default_factory=dict)
    requests_per_minute: Annotated[
        int,
        between(0, 100_000, "Requests in any 60 seconds, exactly; then 429 with the seconds to wait. 0 = no limit."),
    ] = 0
    in_flight: Annotated[int, between(0, 65_536, "Requests waiting or running at once, exactly. 0 = no limit.")] = 0
    tokens_per_minute: Annotated[
        int,
        between(
            0, 1 << 40, "Tokens in and out in the last minute above which nothing new is taken. They are known when an "
            "answer ends, so the limit is passed by what is in flight then, and by no more. 0 = no limit.",
        ),
    ] = 0  # fmt: skip
    tokens_per_day: Annotated[int, between(0, 1 << 50, "The same for the last 24 hours. 0 = no limit.")] = 0


class AccessConfig(Section, frozen=True):
    """`[access]`: where further keys are found, and how their limits are shared."""

    keys_file: Annotated[
        str,
        path_or_nothing(
            "A file of `[[keys]]` and nothing else, read with this one. It must not be writable by others."
        ),
    ] = ""
    keys_credential: Annotated[
        str,
        credential_or_nothing("The same as a credential of systemd (`LoadCredential=`)."),
    ] = ""
    instances: Annotated[
        int,
        between(1, 256, "Routers that serve the same clients with this file: each holds its share of every limit."),
    ] = 1


class _KeysFile(Section, frozen=True):
    keys: list[KeyConfig] = msgspec.field(default_factory=list)


def with_keys(config: Config) -> Config:
    """Return the configuration with the keys of its file and credential behind its own; raises :class:`ConfigError`."""
    access = config.access
    found = list(config.keys)
    if access.keys_file:
        found += _read_keys(Path(access.keys_file), f"access.keys_file = {shown(access.keys_file)}")
    if access.keys_credential:
        key = f"access.keys_credential = {shown(access.keys_credential)}"
        found += _read_keys(credential_file(access.keys_credential, key), key)
    return msgspec.structs.replace(config, keys=found) if len(found) > len(config.keys) else config


def _read_keys(path: Path, key: str) -> list[KeyConfig]:
    try:
        status = path.stat()
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{key}: expected a file that only its owner may write (chmod go-w)")
        if status.st_size > _KEYS_FILE_BYTES_MAX:
            raise ConfigError(f"{key}: expected at most {_KEYS_FILE_BYTES_MAX} bytes, it has {status.st_size}")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{key}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{key}: not TOML: {error}") from None
    try:
        return msgspec.convert(raw, _KeysFile).keys
    except msgspec.ValidationError:
        raise ConfigError(f"{key}: {explain(_KeysFile, raw)}") from None


# ---------------------------------------------------------------- contradictions
def check_access(config: Config) -> None:
    """Check the keys, and that nobody can ask from elsewhere without one; raises :class:`ConfigError`."""
    if len(config.keys) > KEYS_MAX:
        raise ConfigError(f"keys: {len(config.keys)} are given, at most {KEYS_MAX} are allowed")
    seen: dict[str, str] = {}
    for index, key in enumerate(config.keys):
        _check_key(config, key, f"keys[{index}]")
        for kind in ("name", "hash", "curve"):
            value = getattr(key, kind)
            other = seen.setdefault(f"{kind} {value}", f"keys[{index}]")
            if value and other != f"keys[{index}]":
                raise ConfigError(f"keys[{index}].{kind} ({key.name}): expected values that differ, {other} has it too")
    for index, each in enumerate(config.listen.trusted_proxies):
        try:
            ip_network(each, strict=False)
        except ValueError:
            key_and_value = f"listen.trusted_proxies[{index}] = {shown(each)}"
            raise ConfigError(f"{key_and_value}: expected an address or a network, e.g. 10.0.0.0/8") from None
    check_exposure(config)


def _check_key(config: Config, key: KeyConfig, where: str) -> None:
    if not key.hash and not key.curve:
        raise ConfigError(f"{where} ({key.name}) has neither hash nor curve: expected one of them or both")
    if key.hash and not _HASH.fullmatch(key.hash):  # somebody may have written the key itself here
        raise ConfigError(
            f"{where}.hash (not shown): expected sha256: and 64 hexadecimal digits, as `ringrouter keys hash` prints"
        )
    if key.curve and not _Z85_KEY.fullmatch(key.curve):
        raise ConfigError(f"{where}.curve (not shown): expected a public key, 40 characters of Z85")
    listen = config.listen
    if key.curve and not listen.has_curve:
        raise ConfigError(
            f"{where}.curve ({key.name}): expected listen.curve_key_file beside it (`ringrouter keys curve`)"
        )
    known = TAG_NAMES | {*config.tags.own}
    for table in ("tags", "tags_default"):
        for name, value in getattr(key, table).items():
            if name not in known:
                raise ConfigError(f"{where}.{table}.{name}: expected the name of a tag that clients may set")
            if not value or len(value.encode()) > _TAG_VALUE_BYTES_MAX or not value.isprintable():
                raise ConfigError(
                    f"{where}.{table}.{name} = {shown(value)}: expected 1 to {_TAG_VALUE_BYTES_MAX} printable bytes"
                )
    for name in ("requests_per_minute", "in_flight", "tokens_per_minute", "tokens_per_day"):
        limit = getattr(key, name)
        if 0 < limit < config.access.instances:
            raise ConfigError(
                f"{where}.{name} = {limit}: expected 0 or at least access.instances ({config.access.instances})"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; of a name other than ``localhost`` that is not known."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: Config) -> None:
    """Check that whoever can reach the router from another machine needs a key, and that nobody overlooks that HTTP is
    in the clear; raises :class:`ConfigError` that names the key.
    """
    listen = config.listen
    for table in ("http", "admin"):
        for index, address in enumerate(getattr(listen, table)):
            where = split_address(address, f"listen.{table}[{index}]")
            key = f"listen.{table}[{index}] = {shown(address)}"
            if isinstance(where, str):
                continue
            if table == "admin" and not config.keys:
                raise ConfigError(f"{key}: expected keys ([[keys]]) where the admin surface is not a unix socket")
            if not is_loopback(where[0]):
                _check_wide(config, key, encrypted=False)
    for index, endpoint in enumerate(listen.zeromq):
        address = endpoint.removeprefix("tcp://")
        where = split_address(address, f"listen.zeromq[{index}]") if address != endpoint else ""
        if not isinstance(where, str) and not is_loopback(where[0]):
            _check_wide(config, f"listen.zeromq[{index}] = {shown(endpoint)}", encrypted=listen.has_curve)


def check_passed(config: Config, where: str, *, encrypted: bool) -> None:
    """Check the same of a socket that systemd holds, ``http://address:port`` or ``unix:/path``."""
    address = split_address(where.removeprefix("http://"), "the socket unit")
    if not isinstance(address, str) and not is_loopback(address[0]):
        _check_wide(config, f"the socket unit's {where}", encrypted=encrypted)


def _check_wide(config: Config, key: str, *, encrypted: bool) -> None:
    reach = f"{key}: other machines can reach it"
    if not config.keys:
        raise ConfigError(f"{reach}: expected keys (`ringrouter keys new`, [[keys]]) or an address of loopback")
    if not encrypted and not config.listen.plaintext_ok:
        raise ConfigError(
            f"{reach}, and it is not encrypted: expected listen.plaintext_ok = true (behind a proxy that speaks TLS, "
            "docs/security.md) or an address of loopback"
        )
