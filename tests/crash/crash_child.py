"""A writer that is killed at a numbered step: ``crash_child.py BACKEND STEPS [EXTENSION]``.

Each line of input, ``ROLE STEP PATH``, forks a process that prepares PATH, begins to count, does what ROLE says and is
ended by SIGKILL before STEP. The answer is ``killed``, or ``done`` when there are not that many steps.

STEPS is ``lines``: every line of the package is a step; or ``stores``: every store of the C extension to a shared word
is one. EXTENSION is a build of the extension that counts its stores.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

SCHEMA = (1, 0)
SLOT_COUNT = 4
BEFORE = 6
"""Records published before the steps are counted: more than a ring holds, so that a step overwrites one."""
BATCH = 3


def words_of(n: int) -> tuple[int, int, int, int, int, int, int]:
    return (n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6)


def record_of(n: int) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words_of(n))


class LineSteps:
    """Counts the lines of the package that are about to run."""

    def __init__(self) -> None:
        self._left = 0
        self._package = str(Path(rb.__file__).parent)

    def arm(self, step: int) -> None:
        self._left = step
        sys.settrace(self._on_call)

    def disarm(self) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._on_line if frame.f_code.co_filename.startswith(self._package) else None

    def _on_line(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


class StoreSteps:
    """Counts the stores of the C extension, which does so itself."""

    def __init__(self, extension: str) -> None:
        self._left = ctypes.c_int64.in_dll(ctypes.CDLL(extension), "ring_steps_left")

    def arm(self, step: int) -> None:
        self._left.value = step

    def disarm(self) -> None:
        self._left.value = 0


def load_extension(path: str) -> None:
    """Let the package find this build of its extension."""
    name = "ringbuffer._words"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


# ------------------------------------------------------------------- roles
def lossy_ring(path: Path) -> rb.BroadcastWriter:
    return rb.BroadcastWriter.create(path, slot_count=SLOT_COUNT, slot_size=64, record_schema=SCHEMA, name="tokens")


def create_ring(path: Path, step: int) -> None:
    steps.arm(step)
    lossy_ring(path / "ring")


def create_generation(path: Path, step: int) -> None:
    old = rb.Generation.create(path)
    lossy_ring(old.path / "ring").close()
    old.activate()
    old.close()
    steps.arm(step)
    generation = rb.Generation.create(path)
    lossy_ring(generation.path / "ring")
    generation.activate()


def lossy_ring_with_records(path: Path) -> rb.BroadcastWriter:
    writer = lossy_ring(path / "ring")
    for n in range(BEFORE):
        writer.publish(*words_of(n))
    return writer


def publish_words(path: Path, step: int) -> None:
    writer = lossy_ring_with_records(path)
    steps.arm(step)
    writer.publish(*words_of(BEFORE))


def publish_record(path: Path, step: int) -> None:
    writer = lossy_ring_with_records(path)
    steps.arm(step)
    writer.publish_record(record_of(BEFORE))


def publish_batch(path: Path, step: int) -> None:
    writer = lossy_ring_with_records(path)
    steps.arm(step)
    writer.publish_batch(b"".join(record_of(BEFORE + n) for n in range(BATCH)))


def gating_ring_with_records(path: Path) -> rb.GatingProducer:
    """A ring whose one consumer, which lives on in the parent's place, has released all but one record."""
    producer = rb.GatingProducer.create(
        path / "ring", slot_count=SLOT_COUNT, slot_size=64, record_schema=SCHEMA, name="requests", consumers_max=2
    )
    consumer = rb.GatingConsumer.register(path / "ring", "reader")
    for n in range(BEFORE):
        producer.try_publish(*words_of(n))
        consumer.release(n)
    return producer


def gating_words(path: Path, step: int) -> None:
    producer = gating_ring_with_records(path)
    steps.arm(step)
    producer.try_publish(*words_of(BEFORE))


def gating_batch(path: Path, step: int) -> None:
    producer = gating_ring_with_records(path)
    steps.arm(step)
    producer.try_publish_batch(b"".join(record_of(BEFORE + n) for n in range(BATCH)))


def gating_claim(path: Path, step: int) -> None:
    producer = gating_ring_with_records(path)
    steps.arm(step)
    first = producer.try_claim(BATCH)
    for n in range(first, first + BATCH):
        producer.store(n, *words_of(n))
    producer.publish_upto(first + BATCH)


def register(path: Path, step: int) -> None:
    """The ring is the parent's."""
    steps.arm(step)
    rb.GatingConsumer.register(path / "ring", "doomed")


def leave(path: Path, step: int) -> None:
    consumer = rb.GatingConsumer.register(path / "ring", "doomed")
    steps.arm(step)
    consumer.close()


def table(path: Path) -> rb.TableWriter:
    writer = rb.TableWriter.create(path / "ring", row_count=2, row_size=64, record_schema=SCHEMA, name="inflight")
    writer.write(0, record_of(0))
    writer.write(1, record_of(1))
    return writer


def write_row(path: Path, step: int) -> None:
    writer = table(path)
    steps.arm(step)
    writer.write(1, record_of(2))


def clear_row(path: Path, step: int) -> None:
    writer = table(path)
    steps.arm(step)
    writer.clear(1)


def append_row(path: Path, step: int) -> None:
    writer = rb.AppendWriter.create(path / "ring", row_count=2, row_size=64, record_schema=SCHEMA, name="names")
    writer.append(record_of(0))
    steps.arm(step)
    writer.append(record_of(1))


def note_errors(path: Path, step: int) -> None:
    errors = rb.DistinctErrorsWriter.create(path / "ring", row_count=4)
    errors.note("first", 1)
    steps.arm(step)
    errors.note("second", 2)
    errors.note("first", 3)


# ------------------------------------------------------------------- forks
def play(role: str, step: int, path: Path) -> str:
    pid = os.fork()
    if pid == 0:
        globals()[role](path, step)
        steps.disarm()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    return "done" if status == 0 else f"failed with status {status}"


if __name__ == "__main__":
    if len(sys.argv) > 3:
        load_extension(sys.argv[3])
    os.environ["RINGBUFFER_BACKEND"] = sys.argv[1]
    import ringbuffer as rb

    steps: LineSteps | StoreSteps = StoreSteps(sys.argv[3]) if sys.argv[2] == "stores" else LineSteps()
    for line in sys.stdin:
        name, number, directory = line.split(maxsplit=2)
        print(play(name, int(number), Path(directory.rstrip("\n"))), flush=True)  # noqa: T201 - the answer
