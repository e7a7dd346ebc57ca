"""``ringrouter tail``: finished requests as they end, one line each.

Exit codes: 1 when there is no ring to read, 2 usage, 5 when its layout is of another version.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from ringbuffer import Missing, RingError, find_current, find_generations, writer_state
from ringbuffer.stats import shown
from router.cli import EXIT_OK, fail, fail_to_read
from router.cli.location import instance_dir
from router.errors import ConfigError
from router.telemetry.reader import DoneReader, Names
from router.telemetry.records import NAME_OWN_TAG, OWN_TAG_COUNT, TAGS, TEXT_TAGS
from router.telemetry.units import duration

SCHEMA: Final = "ringrouter.tail/1"
IDLE_S: Final = 0.05
"""Pause when nothing is new: short for whoever reads the lines, and next to no work."""
_STATE_CHECK_S: Final = 1.0

_COLUMNS: Final = (
    ("time", "<12"),
    ("model", "<20"),
    ("host", "<12"),
    ("outcome", "<24"),
    ("TTFT", ">9"),
    ("TPOT", ">9"),
    ("tokens", ">7"),
    ("E2E", ">9"),
    (" request id", "<"),
)

_FIELDS: Final = ("model", "host", "endpoint", "outcome", "error", "policy", *TEXT_TAGS)
"""What ``--where`` knows beside the tags."""

Item = dict[str, Any] | str
"""A finished request, or a note about the reading itself."""
Where = Sequence[tuple[str, str]]
"""Names and the values that a request must have, all of them; an empty value is for what was not given."""


def run(args: argparse.Namespace) -> int:
    """Print the last requests and then, unless told otherwise, each as it ends, for ever."""
    try:
        directory = instance_dir(args)
    except ConfigError as error:
        return fail(error)
    try:
        known = known_names(find_current(directory))
        unknown = [name for name, _ in args.where if name not in known]
        if unknown:
            return fail(f"--where {unknown[0]}: expected one of {', '.join(sorted(known))}")
        if args.follow:
            items = follow(directory, args.last, _pause, args.where)
        else:
            items = latest(directory, args.last, args.where)
        _show(items, as_json=args.json)
    except RingError as error:
        return fail_to_read(error)
    return EXIT_OK


def _show(items: Iterator[Item], *, as_json: bool) -> None:
    if not as_json:
        print(_line([name for name, _ in _COLUMNS]))
    show = _show_json if as_json else _show_text
    for item in items:
        show(item)


def _pause(seconds: float) -> None:
    """Hand the lines on before waiting: whoever reads them through a pipe wants them now."""
    sys.stdout.flush()
    time.sleep(seconds)


def known_names(directory: Path) -> set[str]:
    """Return what requests of a generation can be chosen by: their fields, every tag and the user's own tags."""
    names = Names(directory)
    own = [names.text(NAME_OWN_TAG, position) for position in range(1, OWN_TAG_COUNT + 1)]
    names.close()
    return {*_FIELDS, *TAGS, *(name for name in own if not name.startswith("#"))}


def matches(done: dict[str, Any], where: Where) -> bool:
    """Return whether a request has all the values."""
    return all(_value(done, name) == _wanted(name, value) for name, value in where)


def _value(done: dict[str, Any], name: str) -> str:
    if name == "error":
        return _wanted(name, done["error"])
    return str(done[name] if name in _FIELDS else done["tags"].get(name, ""))


def _wanted(name: str, value: str) -> str:
    """A request without an error is found by ``error=none``, as it is shown, and by ``error=``."""
    return "" if (name, value) == ("error", "none") else value


def latest(instance: Path, count: int, where: Where = ()) -> Iterator[Item]:
    """Yield the last ``count`` matching requests that finished in the current generation."""
    with _attach(find_current(instance), count, where) as reader:
        yield from _drain(reader, where)


def follow(
    instance: Path, last_count: int, sleep: Callable[[float], None] = time.sleep, where: Where = ()
) -> Iterator[Item]:
    """Yield the last requests and then each as it ends, through every restart of the router; never ends by itself.

    A generation is left when a newer one is current and nothing more can come in the old one; then the next one is
    read from its beginning. The position stands as ``tail-PID`` in ``readers/`` of the generation that is being read.
    """
    name = f"tail-{os.getpid()}"
    directory = find_current(instance)
    reader = _attach(directory, last_count, where, name)
    try:
        while True:
            yield from _read_generation(reader, directory, instance, sleep, where)
            reader.close()
            directory, reader = _next_generation(instance, directory, name)
            yield shown(f"the router was restarted; going on in {directory}")
    finally:
        reader.close()


def _next_generation(instance: Path, directory: Path, name: str) -> tuple[Path, DoneReader]:
    """Attach to the oldest generation after this one that can still be read, at its beginning."""
    current = find_current(instance)
    for path in [path for path in find_generations(instance) if _is_after(path, directory) and path != current]:
        with contextlib.suppress(RingError):  # deleted meanwhile, or given up before it was complete
            return path, DoneReader(path, "oldest", name)
    return current, DoneReader(current, "oldest", name)


def _is_after(generation: Path, directory: Path) -> bool:
    return directory.name.isdecimal() and int(generation.name) > int(directory.name)


def _attach(directory: Path, last_count: int, where: Where = (), name: str | None = None) -> DoneReader:
    """Attach to a generation so many matching records before its end."""
    if where and last_count:
        return DoneReader(directory, _first_match(directory, last_count, where), name)
    with DoneReader(directory) as at_end:
        begin = max(0, at_end.position - min(last_count, at_end.slot_count))
    return DoneReader(directory, begin, name)


def _first_match(directory: Path, last_count: int, where: Where) -> int:
    """Return the position of the first of the last so many matching records; the end if there is none."""
    found: deque[int] = deque(maxlen=last_count)
    with DoneReader(directory, "oldest") as reader:
        before = -1
        while reader.position != before:
            before = reader.position
            found.extend(reader.position - 1 for done in reader.poll(1) if matches(done, where))
        return found[0] if found else reader.position


def _read_generation(
    reader: DoneReader, directory: Path, instance: Path, sleep: Callable[[float], None], where: Where
) -> Iterator[Item]:
    """Yield what is in one generation until a newer one is current."""
    looked_s, known_state = time.monotonic(), "alive"
    while True:
        # Looked up before the ring is drained: the writer of a generation is gone before the next one is current, so
        # what is drained after that is all there ever will be.
        superseded = _is_superseded(directory, instance)
        yield from _drain(reader, where)
        if superseded:
            return
        if time.monotonic() - looked_s >= _STATE_CHECK_S:
            looked_s, state = time.monotonic(), _state(directory)
            if state not in {known_state, "restarted"}:
                yield f"the router is {state}"
                known_state = state
        sleep(IDLE_S)


def _state(directory: Path) -> str:
    try:
        return writer_state(directory)
    except Missing:  # two restarts later the directory is gone; what is mapped can still be read
        return "restarted"


def _is_superseded(directory: Path, instance: Path) -> bool:
    try:
        return find_current(instance) != directory
    except Missing:
        return False


def _drain(reader: DoneReader, where: Where) -> Iterator[Item]:
    """Yield every matching request there is now, and how much was lost or damaged on the way."""
    lost_count, damaged_count = reader.lost_count, reader.damage.count
    while True:
        before = reader.position
        for done in reader.poll():
            if matches(done, where):
                yield done | {"ended": _calendar_time(reader.wall_ns(done["stamps"]["done"]))}
        if reader.lost_count > lost_count:
            yield _loss(reader.lost_count - lost_count)
            lost_count = reader.lost_count
        if reader.damage.count > damaged_count:
            yield reader.damage.text
            damaged_count = reader.damage.count
        if reader.position == before:
            return


def _loss(count: int) -> str:
    if count == 1:
        return "1 request was overwritten before it was read"
    return f"{count:,} requests were overwritten before they were read"


def _calendar_time(wall_ns: int) -> str:
    """Return local time with the offset from UTC, to the millisecond."""
    return datetime.fromtimestamp(wall_ns / 1e9).astimezone().isoformat(timespec="milliseconds")


def _show_json(item: Item) -> None:
    record = {"note": item} if isinstance(item, str) else item
    sys.stdout.write(msgspec.json.encode({"schema": SCHEMA} | record).decode() + "\n")


def _show_text(item: Item) -> None:
    print(shown(f"-- {item}" if isinstance(item, str) else _line(_cells(item))))


def _cells(done: dict[str, Any]) -> list[str]:
    outcome = done["outcome"] if done["outcome"] == "ok" else f"{done['outcome']}: {done['error']}"
    return [
        done["ended"].partition("T")[2][:12],
        done["model"] or "-",
        done["host"] or "-",
        outcome,
        duration(done["ttft_ns"]),
        duration(done["tpot_ns"]),
        f"{done['n_out']:,}",
        duration(done["e2e_ns"]),
        f" {done['request_id']}",
    ]


def _line(cells: list[str]) -> str:
    return " ".join(f"{cell:{form}}" for cell, (_, form) in zip(cells, _COLUMNS, strict=True)).rstrip()
