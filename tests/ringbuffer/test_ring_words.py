from __future__ import annotations

import importlib
import inspect
import platform
import re
from pathlib import Path

import pytest

import ringbuffer
from ringbuffer import RingError, _plain, layout, words

PACKAGE = Path(ringbuffer.__file__).parent
MISUSE = (OverflowError, ValueError, TypeError)


def test_a_stored_word_is_loaded_as_it_was(backend: str) -> None:
    live = words.core.Words(bytearray(32))
    live.store_release(1, 2**64 - 1)
    live.store_relaxed(3, 7)
    live.fence()
    assert [live.load_acquire(i) for i in range(4)] == [0, 2**64 - 1, 0, 7]
    assert [live.load_relaxed(i) for i in range(4)] == [0, 2**64 - 1, 0, 7]


def test_a_word_is_little_endian_in_the_file(backend: str) -> None:
    buffer = bytearray(16)
    words.core.Words(buffer).store_release(1, 0x0102)
    assert buffer == bytes(8) + b"\x02\x01" + bytes(6)


@pytest.mark.parametrize("index", [-1, 4, 2**63])
def test_no_word_outside_the_buffer_is_reached(backend: str, index: int) -> None:
    live = words.core.Words(bytearray(39))
    with pytest.raises((IndexError, OverflowError)):
        live.load_acquire(index)
    with pytest.raises((IndexError, OverflowError)):
        live.store_release(index, 0)


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "1", None])
def test_only_unsigned_words_are_stored(backend: str, value: int) -> None:
    live = words.core.Words(bytearray(8))
    with pytest.raises(MISUSE):
        live.store_release(0, value)
    assert live.load_acquire(0) == 0


def test_a_read_only_buffer_is_never_written(backend: str) -> None:
    live = words.core.Words(bytes(8))
    assert live.load_acquire(0) == 0
    with pytest.raises(TypeError):
        live.store_release(0, 1)
    for name in ("LossyWriter", "RowWriter", "GatingWriter", "GatingReader"):
        arguments = {"LossyWriter": 5, "RowWriter": 4, "GatingWriter": 10, "GatingReader": 8}[name]
        geometry = (bytes(4096), 8, 2, 8, 0, 1, 2, 0, 32, 16)[:arguments]
        with pytest.raises(BufferError):
            getattr(words.core, name)(*geometry)


@pytest.mark.parametrize(
    "geometry", [(8, 1024, 8, 0), (2**62, 2, 8, 0), (0, 2**61, 8, 0), (8, 3, 8, 0), (8, 2, 1, 0), (8, 2, 8, 999)]
)
def test_a_geometry_beyond_the_buffer_is_refused(backend: str, geometry: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fit|power|at least"):
        words.core.LossyWriter(bytearray(4096), *geometry)


def test_both_backends_export_the_same_classes_with_the_same_methods() -> None:
    compiled = pytest.importorskip("ringbuffer._words")
    for name in words.PUBLIC_NAMES:
        public = [{n for n in dir(getattr(m, name)) if not n.startswith("_")} for m in (compiled, _plain)]
        assert public[0] - {"next", "position", "lost"} == public[1], name
        for method in public[1]:
            assert inspect.getdoc(getattr(getattr(compiled, name), method)), f"{name}.{method} says what it does"


def test_the_backend_can_be_forced_and_a_wrong_one_is_named() -> None:
    machine = platform.machine()
    assert words.load_backend("plain", "x86_64").BACKEND == "plain"
    with pytest.raises(RingError, match="'rust'"):
        words.load_backend("rust", machine)


def test_a_big_endian_machine_is_refused() -> None:
    with pytest.raises(RingError, match="big-endian"):
        words.load_backend("", "s390x", "big")


def test_the_plain_backend_refuses_other_processors() -> None:
    with pytest.raises(RingError, match="aarch64"):
        words.load_backend("plain", "aarch64")


def test_without_the_extension_the_plain_backend_serves_and_c_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_extension(name: str) -> object:
        if name.endswith("_words"):
            raise ImportError("not built")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without_extension)
    assert words.load_backend("", "x86_64").BACKEND == "plain"
    with pytest.raises(RingError, match="not built"):
        words.load_backend("c", "x86_64")
    with pytest.raises(RingError, match="C compiler"):
        words.load_backend("", "aarch64")


def test_words_written_by_different_processes_never_share_a_line() -> None:
    lines = {offset // layout.LINE_BYTES for offset in (layout.PUBLISHED_OFFSET, layout.HEARTBEAT_OFFSET)}
    assert len(lines) == 2
    assert layout.consumer_offset(1) - layout.consumer_offset(0) == 2 * layout.LINE_BYTES
    assert layout.header_size(layout.Kind.GATING, 64) >= layout.consumer_offset(64)


def test_every_ordering_of_the_table_stands_at_both_ends_in_both_backends() -> None:
    table = set(re.findall(r"^SYNC (\w) ", ringbuffer.__doc__ or "", re.MULTILINE))
    sources = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "layout.py")]
    python = "".join(map(Path.read_text, sources))
    compiled = "".join(path.read_text() for path in PACKAGE.glob("_*.[ch]"))
    assert table == set("ABCDEFGM")
    for letter in table:
        assert python.count(f"SYNC {letter}") >= 2, letter
    # F and M have their other end in Python, E in GatingConsumer; G is a system call at both.
    assert set(re.findall(r"SYNC (\w)", compiled)) == table - {"G", "M"}


def test_the_map_of_the_package_names_every_module() -> None:
    named = set(re.findall(r"^    (\w+)  ", ringbuffer.__doc__ or "", re.MULTILINE))
    assert named == {path.stem for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}


def test_modules_import_only_from_below_in_the_map() -> None:
    order = re.findall(r"^    (\w+)  ", ringbuffer.__doc__ or "", re.MULTILINE)
    for place, name in enumerate(order):
        source = (PACKAGE / f"{name}.py").read_text()
        imported = set(re.findall(r"^from ringbuffer\.(\w+) import", source, re.MULTILINE))
        for names in re.findall(r"^from ringbuffer import (.+)$", source, re.MULTILINE):
            imported |= {each.strip() for each in names.split(",")}
        above = {each for each in imported if each in order[:place]}
        assert not above, f"{name} imports {above}"


def test_the_row_bits_of_both_backends_are_the_same() -> None:
    source = (PACKAGE / "_ring.h").read_text()
    for name in ("ROW_WRITING", "ROW_IN_USE", "ROW_VERSION"):
        assert re.search(rf"#define {name} {getattr(layout, name)}u", source)
