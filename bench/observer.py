"""What watching costs: the router, for each event it records, and the observer, for each event it reads.

    python -m bench.observer
    python -m bench.observer --streams 512 --tokens 1000 --seconds 5

The first figure is the call that publishes a token record. For the others a stand-in for the router writes what
``--streams`` streams of ``--rate`` tokens/s in all bring, a tenth of a second at a time, and the observer takes each
tenth before the next one is written. Only its own processor time counts: `events/s` is what one core could take.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import machine
from ringbuffer import BACKEND, AppendWriter, BroadcastWriter, CountersWriter, Generation, TableWriter
from router.config import Slices
from router.observer.aggregate import Aggregate
from router.observer.follow import Follower
from router.telemetry import records as rec
from router.telemetry.counters import CATALOGUE
from router.telemetry.records import Kind, TokenFlag

TENTHS_PER_S = 10
TENTH_NS = 10**9 // TENTHS_PER_S
PUBLISH_ROUNDS = 15
PUBLISH_COUNT = 20_000
FEATURE_COUNT = 8
USER_COUNT = 100_000
PUBLISH_NS_MAX = 1000.0
"""What recording an event may cost the router, with the C backend."""
RATE_MIN = 200_000.0
"""Token events per second that one core of the observer must keep up with."""
WARM_UP_TENTHS = 5
_HOST_TEXT = int(Kind.TEXT) | int(TokenFlag.HOST_EVENT) << 8 | 1 << 16
_NO_REST = rec.REST.pack(*[0] * len(rec.REST.unpack(bytes(rec.REST.size))))


class Router:
    """Writes what many streams bring: every stream has one request after the other."""

    def __init__(self, run_dir: Path, stream_count: int, tokens_each: int, rate: int) -> None:
        self.generation = Generation.create(run_dir / "main")
        path, schema = self.generation.path, rec.RECORD_SCHEMA
        self.tokens = BroadcastWriter.create(
            path / "tokens.ring", slot_count=1 << 18, slot_size=64, record_schema=schema, name="tokens"
        )
        self.done = BroadcastWriter.create(
            path / "done.ring", slot_count=1 << 14, slot_size=1024, record_schema=schema, name="done"
        )
        inflight = TableWriter.create(
            path / "inflight.tab", row_count=16, row_size=1024, record_schema=schema, name="inflight"
        )
        names = AppendWriter.create(path / "names.tab", row_count=64, row_size=96, record_schema=schema, name="names")
        counters = CountersWriter.create(path / "counters", CATALOGUE)
        for kind, value_id, text in _names():
            names.append(rec.NAME.pack(kind, value_id, len(text), text.encode()))
        self._segments = (self.tokens, self.done, inflight, names, counters)
        self.generation.activate()
        self._tokens_each = tokens_each
        self._gap_ns = 10**9 * stream_count // rate
        self._seqs = np.arange(stream_count, dtype=np.uint64)
        self._places = np.arange(stream_count, dtype=np.uint64) * tokens_each // stream_count  # not all end at once
        self._begun_ns = np.full(stream_count, time.monotonic_ns())
        self._next_seq = stream_count
        self._now_ns = time.monotonic_ns()
        self._due = 0.0
        self._rounds_per_tenth = rate / TENTHS_PER_S / stream_count

    def write_tenth(self) -> int:
        """Write what a tenth of a second brings; return how many token events that is."""
        self._due += self._rounds_per_tenth
        round_count = int(self._due)
        self._due -= round_count
        for _ in range(round_count):
            self._write_round()
        return round_count * len(self._seqs)

    def _write_round(self) -> None:
        """Write one token of every stream, and the ends of those that have had their last one."""
        self._now_ns += self._gap_ns
        count = len(self._seqs)
        words: NDArray[np.uint64] = np.zeros((count, 7), np.uint64)
        words[:, 0] = self._now_ns + np.arange(count)
        words[:, 1] = self._seqs
        words[:, 2] = _HOST_TEXT
        words[:, 3] = self._places | 200 << 32
        words[:, 4] = np.where(self._places > 0, self._gap_ns, 0)
        self.tokens.publish_batch(words.tobytes())
        self._places += 1
        for stream in np.flatnonzero(self._places == self._tokens_each).tolist():
            self._end(stream)

    def _end(self, stream: int) -> None:
        now_ns, seq = self._now_ns + len(self._seqs), int(self._seqs[stream])
        self.tokens.publish(now_ns, seq, int(Kind.DONE), 0, 0, 0, 0)
        self.done.publish_record(_done_payload(seq, int(self._begun_ns[stream]), now_ns, self._tokens_each))
        self._seqs[stream], self._places[stream], self._begun_ns[stream] = self._next_seq, 0, now_ns
        self.tokens.publish(now_ns, self._next_seq, int(Kind.DISPATCHED), 0, 0, 0, 0)
        self._next_seq += 1

    def close(self) -> None:
        """Give up the locks."""
        for segment in self._segments:
            segment.close()
        self.generation.close()


def _names() -> list[tuple[int, int, str]]:
    features = [(0, i + 1, f"feature-{i}") for i in range(FEATURE_COUNT)]
    return [(rec.NAME_HOST, 1, "gpu-0"), (rec.NAME_MODEL, 1, "chat"), *features]


def _done_payload(seq: int, begun_ns: int, now_ns: int, tokens: int) -> bytes:
    first_ns = begun_ns + (now_ns - begun_ns) // tokens
    stamps = (*[begun_ns] * 10, first_ns, first_ns, now_ns, now_ns, now_ns)
    head = rec.HEAD.pack(
        seq, *stamps, first_ns, first_ns, 0, 50, 50,
        rec.Outcome.OK, 0, 200, rec.DoneFlag.STREAM, 1, 1, rec.Endpoint.CHAT, 1, 1, rec.Phase.DONE,
    )  # fmt: skip
    counts = rec.REST.unpack(_NO_REST)
    rest = rec.REST.pack(100, tokens, 0, 0, 1, tokens, tokens, 1, *counts[8:])
    tag_ids = [1 + seq % FEATURE_COUNT] + [0] * (rec.TAG_SLOT_COUNT - 1)
    user = f"user-{seq % USER_COUNT}".encode()
    identity = rec.IDENTITY.pack(*tag_ids, user, b"", f"request-{seq}".encode(), b"", b"", b"", 0)
    return head + rest + bytes(rec.IDENTITY_OFFSET - len(head) - len(rest)) + identity


class Taken(NamedTuple):
    """What one tenth took of the observer's processor time."""

    event_count: int
    read_ns: int
    count_ns: int


def take_tenths(router: Router, run_dir: Path, state_dir: Path, tenth_count: int) -> list[Taken]:
    """Let the observer follow a router for so many tenths of a second."""
    follower = Follower(run_dir, state_dir)
    aggregate = Aggregate(Slices(), (), time.time_ns())
    taken = []
    for tenth in range(WARM_UP_TENTHS + tenth_count):
        event_count = router.write_tenth()
        wall_ns = time.time_ns() + tenth * TENTH_NS
        begin_ns = time.thread_time_ns()
        batch = follower.poll(time.monotonic_ns())
        follower.commit(batch.rows)
        read_ns = time.thread_time_ns()
        aggregate.add(batch.rows, batch.pace, wall_ns)
        if tenth % TENTHS_PER_S == 0:
            aggregate.tick(wall_ns)
        taken.append(Taken(event_count, read_ns - begin_ns, time.thread_time_ns() - read_ns))
    if follower.lost_event_count or follower.lost_request_count:
        raise RuntimeError("the observer lost records: a tenth of a second must fit into the rings")
    follower.close()
    return taken[WARM_UP_TENTHS:]


def publish_ns(router: Router) -> float:
    """Return what publishing one token record costs, the least of several rounds: everything else is the machine."""
    publish, rounds = router.tokens.publish, []
    for _ in range(PUBLISH_ROUNDS):
        begin_ns = time.perf_counter_ns()
        for index in range(PUBLISH_COUNT):
            publish(begin_ns, 7, _HOST_TEXT, index, 20_000_000, 0, 0)
        rounds.append((time.perf_counter_ns() - begin_ns) / PUBLISH_COUNT)
    return min(rounds)


def report(taken: Sequence[Taken], rate: int) -> float:
    """Print what the observer took and return the events per second that one core could take."""
    events = sum(each.event_count for each in taken)
    for what, spent_ns in (
        ("read and assembled", sum(each.read_ns for each in taken)),
        ("counted in histograms", sum(each.count_ns for each in taken)),
        ("both", sum(each.read_ns + each.count_ns for each in taken)),
    ):
        print(
            f"{what:<24}{spent_ns / events:>8,.0f} ns an event {1e9 * events / spent_ns:>13,.0f} events/s on one core"
        )
    longest_ms = max(each.read_ns + each.count_ns for each in taken) / 1e6
    middle_ms = statistics.median(each.read_ns + each.count_ns for each in taken) / 1e6
    print(f"a tenth of a second at {rate:,} events/s takes {middle_ms:.1f} ms, {longest_ms:.1f} ms at most")
    print(
        f"largest resident size: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB, rings included"
    )
    return 1e9 * events / sum(each.read_ns + each.count_ns for each in taken)


def main() -> int:
    """Measure and print; 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.observer", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=2000, help="streams at the same time (default: 2000)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each answer (default: 200)")
    parser.add_argument("--rate", type=int, default=200_000, help="token events per second, all together")
    parser.add_argument("--seconds", type=float, default=5, help="of traffic (default: 5)")
    arguments = parser.parse_args()
    for fact in machine.facts():
        print(fact)
    with tempfile.TemporaryDirectory(prefix="rr-bench-", dir="/dev/shm") as run, tempfile.TemporaryDirectory() as state:
        router = Router(Path(run), arguments.streams, arguments.tokens, arguments.rate)
        try:
            gc.freeze()
            cost_ns = publish_ns(router)
            print(f"the router records an event in {cost_ns:.0f} ns ({BACKEND} backend)")
            tenths = round(arguments.seconds * TENTHS_PER_S)
            rate = report(take_tenths(router, Path(run), Path(state), tenths), arguments.rate)
        finally:
            router.close()
    return int(rate < RATE_MIN or (BACKEND == "c" and cost_ns > PUBLISH_NS_MAX))


if __name__ == "__main__":
    sys.exit(main())
