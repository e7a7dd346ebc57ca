"""The C of the rings in two threads: as it is, and under a sanitizer that knows only the orders it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ordering.harness_build import (
    MODES,
    RING_HEADER,
    SANITIZED,
    compile_harness,
    plant,
    run_harness,
    sanitizing_compiler,
    taken,
    tool,
)

COUNT = 300_000
SANITIZED_COUNT = 20_000
RACE_EXIT = 66
PLAIN_PAYLOAD = {
    "store_relaxed(word, value);\n}\nstatic inline uint64_t load_payload_word": (
        "*(uint64_t *)word = value;\n}\nstatic inline uint64_t load_payload_word"
    ),
    "return load_relaxed(word);\n}\n\n/* ---": "return *(const uint64_t *)word;\n}\n\n/* ---",
}
"""Payload words as bare memory: where consumers gate, the sanitizer then sees every access that nothing orders."""
RELAXED_PUBLISH = {
    "store_release(slot, sequence + 1)": "store_relaxed(slot, sequence + 1)",
    "store_release(ring->published, end)": "store_relaxed(ring->published, end)",
}
RELAXED_RELEASE = {"store_release(ring->released, end)": "store_relaxed(ring->released, end)"}
RELAXED_MINIMUM = {"load_acquire(consumer + ring->released_word)": "load_relaxed(consumer + ring->released_word)"}
RELAXED_READ = {
    "load_acquire(slot) != sequence + 1": "load_relaxed(slot) != sequence + 1",
    "load_acquire(ring->published)": "load_relaxed(ring->published)",
}
RELAXED_ROW = {"store_release(row, version | in_use)": "store_relaxed(row, version | in_use)"}


@pytest.fixture(scope="session")
def gcc() -> str:
    return tool("gcc", "gcc")


@pytest.fixture(scope="session")
def sanitizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sanitizing_compiler(tmp_path_factory.mktemp("tsan"))


@pytest.fixture(scope="session")
def native(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_harness(gcc, RING_HEADER.parent, tmp_path_factory.mktemp("native") / "harness", "-O2")


@pytest.mark.parametrize("mode", MODES)
def test_no_record_is_torn_lost_or_doubled_between_threads(native: Path, mode: str) -> None:
    count = taken(run_harness([native], mode, COUNT))
    assert count > 0
    if mode == "gating":
        assert count == COUNT


@pytest.mark.parametrize(
    ("mode", "changes"),
    [(mode, {}) for mode in MODES] + [(mode, PLAIN_PAYLOAD) for mode in ("gating", "joining")],
    ids=[*MODES, "gating-bare-payload", "joining-bare-payload"],
)
def test_the_sanitizer_finds_no_race(sanitizer: str, tmp_path: Path, mode: str, changes: dict[str, str]) -> None:
    program = compile_harness(sanitizer, plant(tmp_path, changes), tmp_path / "harness", *SANITIZED)
    assert taken(run_harness([program], mode, SANITIZED_COUNT)) > 0


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("gating", RELAXED_PUBLISH),
        ("lossy", RELAXED_PUBLISH),
        ("gating", RELAXED_READ),
        ("lossy", RELAXED_READ),
        ("gating", RELAXED_RELEASE | PLAIN_PAYLOAD),
        ("gating", RELAXED_MINIMUM | PLAIN_PAYLOAD),
        ("table", RELAXED_ROW),
    ],
    ids=["publish-gating", "publish-lossy", "read-gating", "read-lossy", "release", "minimum", "row"],
)
def test_the_sanitizer_reports_a_planted_relaxed_access(
    sanitizer: str, tmp_path: Path, mode: str, changes: dict[str, str]
) -> None:
    program = compile_harness(sanitizer, plant(tmp_path, changes), tmp_path / "harness", *SANITIZED)
    done = run_harness([program], mode, SANITIZED_COUNT)
    assert done.returncode == RACE_EXIT
    assert "data race" in done.stderr
