"""How hosts are, for ``ringrouter top``: from the rings of the routers that its observer follows, where these are on
this machine. The observer counts requests; whether a host gets any is the routers' to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringbuffer import RingError
from router import config
from router.observer.state import Source
from router.telemetry.host_rows import HostRow, read_hosts

_AT_WORK: Final = ("alive", "hung")


class HostState(NamedTuple):
    """How a host is. ``is_barred``: a router gives it no requests."""

    text: str
    is_barred: bool
    running_count: int


def places(settings: config.Config) -> list[Path]:
    """Return where routers of a configuration have their rings."""
    return list(dict.fromkeys((config.run_dir(settings), config.tmpfs_run_dir())))


def host_states(sources: Sequence[Source], places: Sequence[Path]) -> dict[str, HostState]:
    """Return how each host of the routers is that live, by name; nothing of routers whose rings are not here."""
    by_router = {
        source.instance: rows
        for source in sources
        if source.state in _AT_WORK and (rows := _rows(place / source.instance / source.generation for place in places))
    }
    names = dict.fromkeys(row.name for rows in by_router.values() for row in rows)
    return {name: _state(name, by_router) for name in sorted(names)}


def _rows(directories: Iterable[Path]) -> list[HostRow]:
    for directory in directories:
        try:
            if directory.is_dir():
                return read_hosts(directory)
        except (OSError, RingError):  # it ends just now, is of another version, or is not ours to read
            continue
    return []


def _state(name: str, by_router: Mapping[str, Sequence[HostRow]]) -> HostState:
    found = {router: row for router, rows in by_router.items() for row in rows if row.name == name}
    texts = {router: f"{row.text}, removed" if row.is_removed else row.text for router, row in found.items()}
    alike = len(set(texts.values())) == 1
    text = next(iter(texts.values())) if alike else "; ".join(f"{router}: {text}" for router, text in texts.items())
    return HostState(text, any(row.bar for row in found.values()), sum(row.running for row in found.values()))
