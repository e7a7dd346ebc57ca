"""The position of a lossy reader: one small file per reader, written by that reader.

The ring itself stays read-only for its readers, so what ``stats`` shows about them has to come from a file of theirs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from ringbuffer import layout, segment
from ringbuffer.errors import named
from ringbuffer.layout import Kind, word_index
from ringbuffer.segment import Segment

READERS_DIRECTORY: Final = "readers"
POSITION_SCHEMA: Final = (1, 0)


class ReaderPosition:
    """A reader's position, lost records and heartbeat, for others to see."""

    def __init__(self, own: Segment) -> None:
        self.segment = own
        self.path = own.path
        self._words = own.words

    @classmethod
    def create(cls, directory: Path, name: str, ring_name: str = "") -> ReaderPosition:
        """Create ``directory/readers/name`` for a reader of the ring ``ring_name``; ``directory`` is the generation.

        Errors as :func:`ringbuffer.segment.create`.
        """
        readers = directory / READERS_DIRECTORY
        try:
            readers.mkdir(exist_ok=True)
        except OSError as error:
            raise named(error, f"{readers} cannot be made") from error
        return cls.at(readers / name, ring_name)

    @classmethod
    def at(cls, path: Path | str, ring_name: str) -> ReaderPosition:
        """Create the position file at ``path``; errors as :func:`ringbuffer.segment.create`."""
        path = Path(path)
        return cls(
            segment.create(
                path,
                Kind.READER_POSITION,
                slot_count=1,
                slot_size=layout.NAME_BYTES,
                record_schema=POSITION_SCHEMA,
                name=path.name,
                payload=layout.pack_text(ring_name, layout.NAME_BYTES, "ring name"),
            )
        )

    def store(self, sequence: int, lost: int = 0) -> None:
        """Store the next sequence to read and the number of records lost so far; beats as well."""
        self._words.store_relaxed(word_index(layout.FULL_COUNT_OFFSET), lost)
        self._words.store_relaxed(word_index(layout.HEARTBEAT_OFFSET), time.monotonic_ns())
        self._words.store_release(word_index(layout.PUBLISHED_OFFSET), sequence)

    def close(self) -> None:
        """Remove the file: a reader that left in order has no lag. A forked child leaves its parent's alone."""
        if self.segment.is_owner:
            self.path.unlink(missing_ok=True)
        self.segment.close()
