"""docs/ringbuffer.md says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ringbuffer
from bench.ring import MEASURES, PEERS
from ringbuffer import layout

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "ringbuffer.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HOLD = "\nimport sys\nprint(flush=True)\nsys.stdin.readline()\n"


def section(title: str) -> str:
    return re.split(r"^#+ ", TEXT.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def placed(program: str, folder: Path) -> str:
    """Return a program of the document that works in another folder."""
    return program.replace("/dev/shm", str(folder))


def run_pair(first: str, second: str) -> list[str]:
    """Run the second program while the first one holds what it made; return what the second one printed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        command = [sys.executable, "-c", second]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=100)
    finally:
        holder.communicate("\n", timeout=30)
    assert holder.returncode == 0
    return done.stdout.splitlines()


def test_the_lossy_example_works_as_it_stands_there(tmp_path: Path) -> None:
    write, read = (placed(program, tmp_path) for program in PROGRAMS[:2])
    assert run_pair(write + HOLD, read) == [*(f"{n} {n}" for n in range(10)), "0 lost"]


def test_the_gating_example_works_as_it_stands_there(tmp_path: Path) -> None:
    produce, consume = (placed(program, tmp_path) for program in PROGRAMS[2:])
    produce += (
        "\nimport select\nprint(flush=True)\nselect.select([bells], [], [])\n"
        "bells.serve()\nfor n in range(1000):\n    send(bytes(56 * 10))\nbells.close()\n"
    )
    count = "total = 0\ndef handle(records):\n    global total\n    total += len(records) // 64\n"
    assert run_pair(produce, f"{count}{consume}\nprint(total)") == ["10000"], "every record, then the end"


def test_every_public_name_and_every_method_is_there() -> None:
    for name in ringbuffer.__all__:
        assert re.search(rf"\b{name}\b", TEXT), name
    api = section("API")
    for name in ("BroadcastWriter", "BroadcastReader", "GatingProducer", "GatingConsumer", "Doorbell", "TableWriter"):
        own = api.partition(f"**`{name}`**")[2].partition("**`")[0]
        for method in re.findall(r"`\.(\w+)", own):
            # Methods of the backend are set in the constructor.
            source = (ROOT / "ringbuffer" / f"{getattr(ringbuffer, name).__module__.rpartition('.')[2]}.py").read_text()
            assert hasattr(getattr(ringbuffer, name), method) or f"self.{method} = " in source, f"{name}.{method}"


def test_the_offsets_are_those_of_the_layout() -> None:
    header = section("Every segment")
    for offset in (layout.NAME_OFFSET, layout.CONSUMERS_MAX_OFFSET, layout.PUBLISHED_OFFSET, layout.HEARTBEAT_OFFSET):
        assert f"0x{offset:03x} │" in header
    assert f"0x{layout.FULL_COUNT_OFFSET:03x} │ full" in header
    assert f"0x{layout.EXTRA_OFFSET:03x} │ gating ring" in header
    assert f"{layout.CONSUMER_BYTES} bytes a row" in TEXT
    assert f"+0x{layout.CONSUMER_RELEASED:02x} │released" in TEXT
    for offset, what in ((layout.COUNTER_UNIT, "unit"), (layout.COUNTER_LABEL, "label"), (layout.ERROR_TEXT, "text")):
        assert f"+0x{offset:02x} │ {what}: " in TEXT
    assert f"distinct errors, {layout.ERROR_ROW_BYTES} bytes" in TEXT


def test_the_orderings_are_those_of_the_package() -> None:
    letters = re.findall(r"^\| (\w) \|", section("Orderings"), re.MULTILINE)
    assert letters == re.findall(r"^SYNC (\w) ", ringbuffer.__doc__ or "", re.MULTILINE)


def test_every_error_is_explained() -> None:
    kinds = {name for name in ringbuffer.__all__ if isinstance(value := getattr(ringbuffer, name), type)
             and issubclass(value, ringbuffer.RingError)} - {"RingError"}  # fmt: skip
    assert kinds <= set(re.findall(r"`(\w+)`", section("When something fails")))


def test_the_table_is_that_of_the_measurement() -> None:
    pytest.importorskip("ringbuffer._words", reason="without the extension its rows are not measured")
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| [\d.,]+ \(", section("Figures"), re.MULTILINE)
    assert sorted(rows) == sorted((load, peer.name) for load in MEASURES for peer in PEERS if load in peer.loads)
    assert "python -m bench.ring" in TEXT
