"""Rings, tables and counters in shared memory: one writer each, readers that can never disturb it.

The map, each importing only from those below it::

    cli          python -m ringbuffer stats: printing and exit codes
    stats        pure: two samples → rows
    sample       one look at a segment or a generation, read-only
    broadcast    lossy ring: a writer that never waits, readers that count what they missed
    gating       ring that refuses when full: nothing is overwritten before every consumer released it
    table        rows rewritten in place, rows only appended
    counters     labelled words with a catalogue
    distinct     each distinct error once, with count, first and last
    generation   one directory per life of a writer; who is alive, hung, dead, restarted
    doorbell     eventfds that wake consumers in other processes
    readers      the position of a lossy reader
    writer       what the writers share
    segment      create, attach, check and lock one mapped file
    words        chooses the backend: _words (C11 atomics, the orderings in _ring.h) or _plain (x86-64 only)
    layout       every byte, drawn and named
    process      pid, start ticks, boot id
    errors       RingError and what it can be

Every ordering between two processes. Each letter stands at both of its ends in the sources:

====== ========================================= ========================================= =============================
letter first this …                              … is seen before that                     order
====== ========================================= ========================================= =============================
SYNC A record and sequence word are stored       ``published`` counts it                   release / acquire
SYNC B slot or row is marked as being written    its payload changes                       release fence / acquire fence
SYNC C payload is stored                         its sequence word, or count, names it     release / acquire
SYNC D consumer has read the slots               ``released`` passes them                  release / acquire
SYNC E producer: ``published``, then looks for   consumer: its row, then looks at          full fence at both ends
       consumers                                 ``published``
SYNC F consumer row is filled in                 its state is active                       release / acquire
SYNC G producer: ``published``, then rings       consumer: clears, then ``published``      the eventfd's lock
SYNC M header is complete                        ``magic`` is stored                       release / acquire
====== ========================================= ========================================= =============================

On x86-64 all but SYNC E cost nothing. Elsewhere the C backend is required.
"""

from ringbuffer.broadcast import BroadcastReader, BroadcastWriter
from ringbuffer.counters import CounterSpec, CountersReader, CountersWriter
from ringbuffer.distinct import DistinctError, DistinctErrorsReader, DistinctErrorsWriter
from ringbuffer.doorbell import Doorbell, DoorbellServer
from ringbuffer.errors import (
    AccessDenied,
    ConsumersFull,
    Corrupt,
    ForeignFile,
    Missing,
    NoSpace,
    NotReady,
    RingError,
    Truncated,
    VersionMismatch,
    WriterAlive,
    WrongEndianness,
    WrongKind,
)
from ringbuffer.gating import GatingConsumer, GatingProducer
from ringbuffer.generation import Generation, find_current, find_generations, writer_state
from ringbuffer.layout import Kind
from ringbuffer.readers import ReaderPosition
from ringbuffer.segment import Header
from ringbuffer.table import AppendReader, AppendWriter, TableReader, TableWriter
from ringbuffer.words import BACKEND, core

Words = core.Words

__all__ = [
    "BACKEND",
    "AccessDenied",
    "AppendReader",
    "AppendWriter",
    "BroadcastReader",
    "BroadcastWriter",
    "ConsumersFull",
    "Corrupt",
    "CounterSpec",
    "CountersReader",
    "CountersWriter",
    "DistinctError",
    "DistinctErrorsReader",
    "DistinctErrorsWriter",
    "Doorbell",
    "DoorbellServer",
    "ForeignFile",
    "GatingConsumer",
    "GatingProducer",
    "Generation",
    "Header",
    "Kind",
    "Missing",
    "NoSpace",
    "NotReady",
    "ReaderPosition",
    "RingError",
    "TableReader",
    "TableWriter",
    "Truncated",
    "VersionMismatch",
    "Words",
    "WriterAlive",
    "WrongEndianness",
    "WrongKind",
    "find_current",
    "find_generations",
    "writer_state",
]
