"""Follows every router of a run directory: all instances, all generations, each to its end and in order.

Rows come exactly once, also when this process is killed at any moment, by this agreement with the journal::

    batch = follower.poll(now_ns)      rows that are nowhere else yet
    ...                                they are written and made durable
    follower.commit(rows)              only now the position may pass them

After a kill everything behind the position is read again. The rows that were durable but not yet committed are among
it: ``durable`` names these, as the journal has them, and they are not handed out again; the journal's last minute is
more than enough. What the rings have overwritten in the meantime is lost, and told exactly as a
:class:`router.observer.batch.Loss`; of token records, those count as lost that a killed observer had read, but whose
requests had not ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ringbuffer import Missing, RingError, find_current, writer_state
from router.observer.batch import EMPTY, NO_PACE, Batch, Loss, PaceArrays
from router.observer.life import Finished, HostLoads, Life, Sealed, nothing_sealed
from router.observer.positions import FollowError, Positions
from router.observer.rows import RequestRow, RowKey

__all__ = ["FollowError", "Follower", "RouterView"]

LOOK_EVERY_NS: Final = 500_000_000
"""How often new instances and generations are looked for, and whether the routers are alive."""

_LifeKey = tuple[str, int]
_NONE_DURABLE: Final[Mapping[RowKey, int]] = {}


class RouterView(NamedTuple):
    """One router as it is now."""

    instance: str
    generation: int
    state: str
    """``alive``, ``hung``, ``dead``; ``gone`` when its directory is."""
    counters: dict[str, int]
    loads: HostLoads
    lag_records: int
    """Records written and not read yet, all rings together."""


class Follower:
    """Reads all routers below ``run_dir``; single-threaded, never waits, never disturbs a router.

    ``state_dir`` keeps the position. ``instances`` are the names to follow, ``None`` for all, also those to come.
    ``durable`` are the rows that the journal has behind the position, each key with its ``done_seq``; it
    is looked at when a router is first read. ``sealed`` is asked for more of them of a router whose position is not
    known, unless it was started after this was made. Raises FollowError and OSError as
    :class:`router.observer.positions.Positions`.
    """

    def __init__(
        self,
        run_dir: Path,
        state_dir: Path,
        instances: Sequence[str] | None = None,
        durable: Mapping[RowKey, int] = _NONE_DURABLE,
        sealed: Sealed = nothing_sealed,
    ) -> None:
        self._run_dir = run_dir
        self._instances = instances
        self._durable = durable
        self._sealed = sealed
        self._begun_ns = time.monotonic_ns()
        self._positions = Positions(state_dir)
        self._lives: dict[_LifeKey, Life] = {}
        self._unreadable: set[_LifeKey] = set()
        self._states: dict[str, str] = {}
        self._current: dict[str, int] = {}
        """The current generation by instance, readable or not."""
        self._followed = self._positions.instances
        """Instances that were followed before: of a new generation nothing may be missed."""
        self._looked_ns: int | None = None
        self._fault: Exception | None = None
        self._ended_event_count = 0
        self.problems: dict[str, str] = {}
        """Why a router cannot be read, one line each, by instance."""
        self.row_count = 0
        """Rows handed out."""
        self.lost_request_count = 0
        """Requests that will never be rows: their records were overwritten, or torn by the router's death."""
        self.lost_event_count = 0
        """Token records that were overwritten before they were read."""

    @property
    def event_count(self) -> int:
        """Token records read."""
        return self._ended_event_count + sum(life.event_count for life in self._lives.values())

    @property
    def lag_records(self) -> int:
        """Records written and not read yet; large after a pause: then poll again at once."""
        return sum(life.lag_records for life in self._lives.values())

    def poll(self, now_ns: int) -> Batch:
        """Return what has finished since the last poll in all routers together; ``now_ns`` is ``CLOCK_MONOTONIC``.

        A router at which reading failed is in :meth:`raise_fault`.
        """
        if self._looked_ns is None or now_ns - self._looked_ns >= LOOK_EVERY_NS:
            self._looked_ns = now_ns
            self._look()
        finished: list[Finished] = []
        losses: list[Loss] = []
        for life in self._readable():
            is_gone = self._is_gone(life)
            try:
                more, lost = life.poll(now_ns, writer_is_gone=is_gone)
            except Exception as error:  # whatever it is, the other routers' rows are not to wait for it
                self._fault = self._fault or error
                continue
            finished += more
            losses += lost
        self._count(finished, losses)
        return _batch(finished, losses) if finished or losses else EMPTY

    def raise_fault(self) -> None:
        """Raise, once, what reading a router raised."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def take_known(self) -> list[RequestRow]:
        """Return, once, the rows that the journal has already and that were met in the rings since the last call.

        Whoever works out what ran beside what needs them; they are not to be counted or written again.
        """
        return [row for life in self._sorted_lives() for row in life.take_known()]

    def commit(self, rows: Iterable[RequestRow]) -> None:
        """Let the position pass these rows: they are durable. Raises OSError when it cannot be saved."""
        for row in rows:
            life = self._lives.get((row.instance, row.generation))
            if life is not None:
                life.commit(row.key)
        for life in self._lives.values():
            self._positions.put(life.position())
        self._positions.save()
        self._retire()

    def routers(self) -> list[RouterView]:
        """Return how each instance fares now."""
        return [self._view(instance) for instance in sorted(self._current)]

    def _view(self, instance: str) -> RouterView:
        lives = [life for life in self._sorted_lives() if life.instance == instance]
        state = self._states[instance]
        if not lives:  # dead, and read to its end
            return RouterView(instance, self._current[instance], state, {}, HostLoads({}, 0), 0)
        newest, lag_records = lives[-1], sum(life.lag_records for life in lives)
        return RouterView(instance, newest.generation, state, newest.counters(), newest.loads(), lag_records)

    def close(self) -> None:
        """Save the position, unmap everything and let another observer go on from there."""
        with contextlib.suppress(OSError):  # then it begins a little earlier
            self.commit(())
        for life in self._lives.values():
            life.close()
        self._lives.clear()
        self._positions.close()

    # ------------------------------------------------------------ which lives there are
    def _sorted_lives(self) -> list[Life]:
        return [self._lives[key] for key in sorted(self._lives)]

    def _readable(self) -> list[Life]:
        """Return the lives to read now: of each instance the oldest that is not over."""
        first: dict[str, Life] = {}
        for life in self._sorted_lives():
            if not life.is_over:
                first.setdefault(life.instance, life)
        return list(first.values())

    def _is_gone(self, life: Life) -> bool:
        """Whether the router of this life can write no more. One with a newer life has ended: it held the lock."""
        is_current = life.generation >= self._current.get(life.instance, 0)
        return not is_current or self._states.get(life.instance) in {"dead", "gone"}

    def _look(self) -> None:
        present: set[_LifeKey] = set()
        for directory in self._instance_directories():
            instance = directory.name
            generations = _generations(directory)
            if generations:
                self._current[instance] = int(generations[-1].name)
            present.update((instance, int(path.name)) for path in generations)
            for path in generations:
                self._open(instance, path, is_newest=path is generations[-1])
        for instance in self._current:
            self._states[instance] = _state(self._run_dir / instance, self._states.get(instance, "alive"))
        self._retire()
        self._positions.forget_gone(present | set(self._lives))

    def _instance_directories(self) -> list[Path]:
        try:
            entries = sorted(self._run_dir.iterdir())
        except OSError:  # not there yet, most likely
            return []
        return [each for each in entries if each.is_dir() and (self._instances is None or each.name in self._instances)]

    def _open(self, instance: str, directory: Path, *, is_newest: bool) -> None:
        key = instance, int(directory.name)
        position = self._positions.get(*key)
        if key in self._lives or key in self._unreadable or (position is not None and position.is_closed):
            return
        try:
            from_start = instance in self._followed
            # Nothing of a router that began after us can be put away; asking would take a moment each time.
            sealed = self._sealed if key[1] < self._begun_ns else nothing_sealed
            self._lives[key] = Life(directory, instance, position, self._durable, sealed, from_start=from_start)
            self._followed.add(instance)
        except (RingError, OSError) as error:
            self.problems[instance] = str(error)
            if not is_newest:  # it will not become better
                self._unreadable.add(key)
            return
        self.problems.pop(instance, None)

    def _retire(self) -> None:
        """Let go of the lives that are over and durable to the last row."""
        for key in [key for key, life in self._lives.items() if life.is_closed]:
            life = self._lives.pop(key)
            self._positions.put(life.position())
            self._ended_event_count += life.event_count
            life.close()

    def _count(self, finished: list[Finished], losses: list[Loss]) -> None:
        self.row_count += len(finished)
        for loss in losses:
            if loss.what == "tokens":
                self.lost_event_count += loss.record_count
            else:
                self.lost_request_count += loss.record_count


def _generations(instance_dir: Path) -> list[Path]:
    """Return the generations up to the current one, oldest first; a newer one is not complete yet."""
    try:
        current = int(find_current(instance_dir).name)
        names = [name for name in os.listdir(instance_dir) if name.isdigit() and int(name) <= current]
    except (RingError, OSError, ValueError):
        return []
    return [instance_dir / name for name in sorted(names, key=int)]


def _state(instance_dir: Path, before: str) -> str:
    try:
        state = writer_state(instance_dir)
    except Missing:
        return "gone"
    except RingError:  # it may not be looked at just now; nobody has died of that
        return before
    return "dead" if state == "restarted" else state


def _batch(finished: list[Finished], losses: list[Loss]) -> Batch:
    finished.sort(key=lambda each: each.row.done_mono_ns)
    gap_counts = [len(each.gaps) for each in finished]
    pace = NO_PACE
    if any(gap_counts):
        index = np.repeat(np.arange(len(finished), dtype=np.int32), gap_counts)
        pace = PaceArrays(index, np.concatenate([each.gaps for each in finished]))
    return Batch([each.row for each in finished], pace, losses)
