"""Tables of vectors on disk: what is nearest, and which tables are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.keep.tables import CURRENT, FORMAT, Manifest, Table, TableError, table_names, write_table


def build(directory: Path, vectors: Any, version: str = "v1", name: str = "t") -> Path:
    rows = np.array(vectors, dtype=np.float32)
    manifest = Manifest(FORMAT, name, version, "m", "", rows.shape[1], len(rows), 1)
    return write_table(directory, manifest, rows, [{"id": n, "metadata": {"n": n}} for n in range(len(rows))])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 1 << 30))
def test_the_nearest_are_those_of_a_full_sort(
    tmp_path_factory: pytest.TempPathFactory, n: int, k: int, seed: int
) -> None:
    dice = np.random.default_rng(seed)
    # Few different values, so that many rows are equally near.
    rows = dice.integers(-1, 2, (n, 3)).astype(np.float32) + np.float32(0.5)
    table = Table(build(tmp_path_factory.mktemp("t"), rows))
    query = dice.standard_normal(3).astype(np.float32)
    found = table.nearest(query, k)
    scores = table.vectors @ (query / np.linalg.norm(query))
    wanted = sorted(range(n), key=lambda row: (-scores[row], row))[:k]
    assert [row for row, _ in found] == wanted
    assert all(abs(score - scores[row]) < 1e-6 for row, score in found)


def test_items_come_back_and_versions_are_replaced_as_a_whole(tmp_path: Path) -> None:
    for version in ("v1", "v2", "v3"):
        path = build(tmp_path, [[1.0, 0.0], [0.0, 2.0]], version)
    assert list(table_names(tmp_path)) == [("t", "v3")]
    assert msgspec.json.decode(Table(path).item(1)) == {"id": 1, "metadata": {"n": 1}}
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [CURRENT, "v2", "v3"], "one version before is kept"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("vectors.f32", b"1234", "has 4 bytes, expected 16"),
        ("vectors.f32", bytes(16), "not of length 1"),
        ("items.jsonl", b"{}", "is not what items.idx says"),
        ("manifest.json", b"{", "manifest.json"),
        ("manifest.json", b'{"format":"x"}', "manifest.json"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = build(tmp_path, [[1.0, 0.0], [0.0, 2.0]])
    (path / name).write_bytes(data)
    with pytest.raises(TableError, match=said):
        Table(path)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_vector_without_a_direction_is_named_and_leaves_the_table_as_it_was(tmp_path: Path, bad: list[float]) -> None:
    build(tmp_path, [[1.0, 0.0]])
    with pytest.raises(TableError, match="the vector of item 1 has no direction"):
        build(tmp_path, [[1.0, 0.0], bad], "v2")
    assert list(table_names(tmp_path)) == [("t", "v1")]
