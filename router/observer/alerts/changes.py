"""What was changed lately: at the routers, as they tell themselves, and in the traffic.

A router writes what it took over into its generation (:mod:`router.telemetry.change_log`). Of the traffic, a value of
``prompt_version`` (of its feature), ``model``, ``variant`` (of its experiment), ``host`` and ``feature_name`` counts as
a change when it is seen for the first time. What was seen is kept on disk; without that file all that comes in the
first ten minutes is taken for what was there before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ringbuffer import RingError, find_generations
from router.observer.alerts.model import Change
from router.observer.rows import RequestRow
from router.telemetry.change_log import DIRECTORY, FILE, Entry, read_changes

KEPT_NS: Final = 3_600_000_000_000
"""How long a change may have to do with what is wrong now."""
KEPT_MAX: Final = 200
SEEN_MAX: Final = 8192
"""Values that are remembered; over it those that were seen longest ago are forgotten."""
LEARN_NS: Final = 600_000_000_000
SCHEMA: Final = "ringrouter.seen/1"
SEEN_FILE: Final = "seen.json"


class _Seen(msgspec.Struct):
    schema: str
    values: list[str]


class Changes:
    """All changes of the last hour. ``time_scale`` makes the hour shorter, for tests."""

    def __init__(self, directory: Path, time_scale: float = 1.0) -> None:
        self._path = directory / SEEN_FILE
        self._kept_ns = round(KEPT_NS / time_scale)
        self._learn_ns = round(LEARN_NS / time_scale)
        self._learns_until_ns: int | None = None
        self._files: dict[Path, tuple[int, int, list[Entry]]] = {}
        """Of each file its size, its time of change, and what it says."""
        self._of_routers: dict[tuple[str, int, str], Change] = {}
        self._of_traffic: list[Change] = []
        self._seen: dict[str, None] = {}
        """In the order in which they were seen last."""
        self._is_saved = True
        self._is_new = not self._load()
        """All that comes may have been there before."""

    # ------------------------------------------------------------ the traffic
    def add(self, rows: Sequence[RequestRow], wall_ns: int) -> None:
        """Look for values that were never there before."""
        if self._is_new and rows:
            self._learns_until_ns = self._learns_until_ns or wall_ns + self._learn_ns
            self._is_new = wall_ns < self._learns_until_ns
        for row in rows:
            for name, value in _values(row):
                key = f"{name} {value}"
                if key in self._seen:
                    if len(self._seen) > SEEN_MAX // 2:  # else none will be forgotten, and the order is of no use
                        self._seen[key] = self._seen.pop(key)
                    continue
                self._seen[key] = None
                self._is_saved = False
                if not self._is_new:
                    self._of_traffic.append(Change(wall_ns=row.start_wall_ns, instance="", text=f"{key} first seen"))
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        del self._of_traffic[:-KEPT_MAX]

    # ------------------------------------------------------------ the routers
    def read(self, run_dir: Path, instances: Iterable[str], offset_ns: int) -> None:
        """Read what the routers have written since; ``offset_ns`` is calendar time less monotonic time."""
        present: set[Path] = set()
        for instance in instances:
            with contextlib.suppress(RingError):
                for generation in find_generations(run_dir / instance):
                    present.add(generation)
                    for entry in self._entries(generation):
                        wall_ns = entry.t_ns + offset_ns
                        key = instance, entry.t_ns, entry.text
                        self._of_routers.setdefault(key, Change(wall_ns=wall_ns, instance=instance, text=entry.text))
        self._files = {path: known for path, known in self._files.items() if path in present}
        if len(self._of_routers) > KEPT_MAX:
            newest_last = sorted(self._of_routers.items(), key=lambda item: item[1].wall_ns)
            self._of_routers = dict(newest_last[-KEPT_MAX:])

    def _entries(self, generation: Path) -> list[Entry]:
        try:
            stat = (generation / DIRECTORY / FILE).stat()
        except OSError:
            return []
        known = self._files.get(generation)
        if known is None or known[:2] != (stat.st_size, stat.st_mtime_ns):
            known = self._files[generation] = (stat.st_size, stat.st_mtime_ns, read_changes(generation))
        return known[2]

    def has_said_stop(self, generation: Path) -> bool:
        """Whether the router of a generation ended because it was told to."""
        entries = self._entries(generation)
        return bool(entries) and entries[-1].kind == "stop"

    # ------------------------------------------------------------ what is known
    def recent(self, wall_ns: int) -> Sequence[Change]:
        """Return the changes of the last hour, the newest first."""
        since_ns = wall_ns - self._kept_ns
        self._of_routers = {key: each for key, each in self._of_routers.items() if each.wall_ns >= since_ns}
        self._of_traffic = [each for each in self._of_traffic if each.wall_ns >= since_ns]
        found = [*self._of_routers.values(), *self._of_traffic]
        return sorted(found, key=lambda each: -each.wall_ns)[:KEPT_MAX]

    def save(self) -> None:
        """Keep what was seen, for the next observer; raises OSError. Not before all that was there is known."""
        if self._is_saved or self._is_new:
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(_Seen(SCHEMA, list(self._seen))))
        temporary.replace(self._path)
        self._is_saved = True

    def _load(self) -> bool:
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_Seen)
        except (OSError, ValueError):  # then everything is new, and nothing is told of it
            return False
        if file.schema != SCHEMA:
            return False
        self._seen = dict.fromkeys(file.values[-SEEN_MAX:])
        return True


def _values(row: RequestRow) -> Iterable[tuple[str, str]]:
    tags = row.tags
    feature = tags.get("feature_name", "")
    if version := tags.get("prompt_version", ""):
        yield "prompt_version", f"{feature}/{version}" if feature else version
    if feature:
        yield "feature_name", feature
    if variant := tags.get("variant", ""):
        experiment = tags.get("experiment", "")
        yield "variant", f"{experiment}/{variant}" if experiment else variant
    if row.model:
        yield "model", row.model
    if row.host:
        yield "host", row.host
