"""How hosts are, in shared memory: written, read back, cut, and gone when they are gone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from router.telemetry.host_rows import MODELS_FILE, ROW_COUNT, HostModels, HostRow, HostRows, read_hosts, read_models


def row(host_id: int = 1, **changes: object) -> HostRow:
    example = HostRow(
        host_id=host_id, name=f"gpu-{host_id}", bar=0, is_removed=False, running=3, slots=4, slot_count=8, t_ns=5,
        text="healthy",
    )  # fmt: skip
    return msgspec.structs.replace(example, **changes)


def test_rows_come_back_as_they_were_written(directory: Path) -> None:
    writer = HostRows(directory)
    rows = [row(2, bar=6, is_removed=True, text="breaker open"), row(1)]
    writer.write(rows)
    assert read_hosts(directory) == [rows[1], rows[0]], "by name"
    writer.write([row(1, running=0)])
    assert read_hosts(directory) == [row(1, running=0)], "who is gone is shown no more"
    writer.table.close()


def test_models_come_back_as_they_were_written_and_are_written_when_they_change(directory: Path) -> None:
    writer = HostRows(directory)
    assert read_models(directory) == HostModels(), "a router that wrote none"
    (directory / MODELS_FILE).with_suffix(".tmp").mkdir()
    writer.keep_models(HostModels({"gpu-1": ["m"]}))
    assert read_models(directory) == HostModels(), "it cannot be written"
    (directory / MODELS_FILE).with_suffix(".tmp").rmdir()
    models = HostModels({"gpu-1": ["m"], "gpu-2": []}, ["m", "n"])
    writer.keep_models(models)
    assert read_models(directory) == models
    written_ns = (directory / MODELS_FILE).stat().st_mtime_ns
    writer.keep_models(msgspec.structs.replace(models))
    assert (directory / MODELS_FILE).stat().st_mtime_ns == written_ns, "the same: not written again"
    (directory / MODELS_FILE).write_bytes(b'{"hosts": 1}')
    assert read_models(directory) == HostModels()
    writer.table.close()


def test_texts_are_cut_between_characters(directory: Path) -> None:
    writer = HostRows(directory)
    writer.write([row(name="é" * 60, text="ü" * 200)])
    (read,) = read_hosts(directory)
    assert (read.name, read.text) == ("é" * 32, "ü" * 80)
    writer.table.close()


def test_more_hosts_than_rows_are_left_out_and_places_are_used_again(directory: Path) -> None:
    writer = HostRows(directory)
    writer.write([row(i) for i in range(1, ROW_COUNT + 20)])
    assert len(read_hosts(directory)) == ROW_COUNT
    writer.write([row(i) for i in range(10_000, 10_000 + ROW_COUNT)])
    assert {each.host_id for each in read_hosts(directory)} == set(range(10_000, 10_000 + ROW_COUNT))
    writer.table.close()


def test_a_router_that_wrote_none_has_none(directory: Path) -> None:
    assert read_hosts(directory) == []
