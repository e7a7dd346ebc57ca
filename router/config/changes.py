"""What differs between two configurations, and what of it a running router can take over; pure.

Hosts are told apart by their names, not by their places in the file. Values that may hold a secret are never shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

import msgspec

from router.config_schema import shown, shown_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.config import Config

_FIXED_SECTIONS: Final = ("listen", "rings", "tags", "loop", "log", "cache")
"""Sections that are read at the start only: sockets, shared memory and the event loop are made of them."""
_FIXED_LIMITS: Final = ("in_flight", "connections", "body_bytes")
"""Likewise of `[limits]`: the in-flight table has rows, the process descriptors and libzmq buffers for so many."""
_OF_OBSERVER: Final = ("observer", "slo")
"""Sections that another process reads, which has no reload of its own."""
_NOT_SHOWN: Final = frozenset({"api_key_env", "secret", "key", "token", "password", "hash"})
_NOT_SHOWN_OF_OBSERVER: Final = frozenset({"url", "endpoint", "external_url", "headers", "headers_env"})
"""Addresses of webhooks and collectors often hold a secret; headers, and all below them, are made for it."""
_ABSENT: Final = object()


class Change(NamedTuple):
    """One key that differs. ``before`` and ``after`` are values as they would stand in the file, empty where the key
    has none.
    """

    key: str
    before: str
    after: str
    needs: str
    """What must be started anew before it counts, ``router`` or ``observer``; empty: a running router takes it over."""

    @property
    def text(self) -> str:
        """Return it in words: ``hosts.gpu-1 added``, ``limits.waiting: 1024 -> 64``."""
        if not self.before and not self.after:
            return self.key
        return f"{self.key}: {self.before or '(absent)'} -> {self.after or '(absent)'}"


def changes(before: Config, after: Config) -> list[Change]:
    """Return what differs, in the order of the file's sections; defaults that are written out are no difference."""
    return _between(_as_table(before), _as_table(after))


def outline(config: Config) -> bytes:
    """Return a configuration for :func:`changes_since`, as JSON in which checksums stand for what is never shown."""
    table = {section: _outlined(section, value) for section, value in _as_table(config).items()}
    return msgspec.json.encode(table)


def changes_since(before: bytes, after: Config) -> list[Change]:
    """Return what differs from the configuration of an :func:`outline`, that of another version of this program too;
    ValueError when that is none.
    """
    old: dict[str, Any] = msgspec.json.decode(before, type=dict[str, Any])
    new: dict[str, Any] = msgspec.json.decode(outline(after), type=dict[str, Any])
    return _between(old, new)


def _between(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    found: list[Change] = []
    for section, value in new.items():
        found += _differing(section, old.get(section), value)
    return found


def _outlined(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _outlined(f"{key}.{shown_key(name)}", below) for name, below in value.items()}
    if value and _is_secret(key):
        return f"#{crc32(msgspec.json.encode(value)):08x}"
    return value


def taken_over(running: Config, wanted: Config) -> Config:
    """Return the configuration that a router can go on with: as wanted, but for what only a restart can change."""
    fixed = {name: getattr(running, name) for name in _FIXED_SECTIONS}
    limits = msgspec.structs.replace(wanted.limits, **{n: getattr(running.limits, n) for n in _FIXED_LIMITS})
    return msgspec.structs.replace(wanted, limits=limits, **fixed)


def _as_table(config: Config) -> dict[str, Any]:
    table: dict[str, Any] = msgspec.to_builtins(config)
    table["hosts"] = {host["name"]: host for host in table["hosts"]}
    table["keys"] = {key["name"]: key for key in table["keys"]}
    table["slo"] = {slo["name"]: slo for slo in table["slo"]}
    alerts = table["observer"]["alerts"]
    alerts["sinks"] = {sink["name"]: sink for sink in alerts["sinks"]}
    return table


def _differing(key: str, old: Any, new: Any) -> Iterator[Change]:
    """Yield what differs at a key and below it."""
    if old == new:
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        yield Change(key, _shown(key, old), _shown(key, new), _needs(key))
        return
    has_names = key in {"hosts", "models", "features", "keys", "slo", "observer.alerts.sinks"}
    for name in [*old, *(name for name in new if name not in old)]:
        below = f"{key}.{shown_key(name)}"
        was, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if has_names and (was is _ABSENT or now is _ABSENT):
            yield Change(f"{below} {'added' if was is _ABSENT else 'removed'}", "", "", "")
        else:
            yield from _differing(below, None if was is _ABSENT else was, None if now is _ABSENT else now)


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    return "(not shown)" if _is_secret(key) else shown(value)


def _is_secret(key: str) -> bool:
    section, *below = key.split(".")
    if below and below[-1] in _NOT_SHOWN:
        return True
    return section in _OF_OBSERVER and not _NOT_SHOWN_OF_OBSERVER.isdisjoint(below)


def _needs(key: str) -> str:
    section, _, rest = key.partition(".")
    if section in _OF_OBSERVER:
        return "observer"
    return "router" if section in _FIXED_SECTIONS or (section == "limits" and rest in _FIXED_LIMITS) else ""
