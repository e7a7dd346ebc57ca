"""Checks of the machine: clock, descriptors, shared memory, directories, the native parts."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import ringbuffer
from router import native
from router.config import Config, is_tmpfs, rings_dir, run_dir
from router.doctor.findings import Finding, error, ok, warning
from router.telemetry import records as rec

CLOCK_SOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_FAST_CLOCKS: Final = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"})
"""Those that are read without a system call (vdso)."""
OTHER_DESCRIPTORS: Final = 256
"""Rings, listeners, probes, logs, and spare connections to hosts."""
GENERATIONS_KEPT: Final = 2
"""The current one and the one before; a third while an upgrade drains."""
_SLACK_BYTES: Final = 1 << 20
"""Headers, counters, distinct errors."""


def clock() -> Iterator[Finding]:
    """Is the clock read without a system call? Every token has its time."""
    try:
        name = CLOCK_SOURCE.read_text(encoding="ascii").strip()
    except OSError:
        yield warning("clock", "the kernel does not say which clock it uses", f"look at {CLOCK_SOURCE}")
        return
    if name in _FAST_CLOCKS:
        yield ok("clock", f"{name}, read without a system call")
    else:
        yield warning(
            "clock",
            f"{name}: each reading is a system call, 10 to 50 times as slow",
            f"boot with clocksource=tsc where the processor's is stable (it is not now: {CLOCK_SOURCE.parent})",
        )


def descriptors(config: Config) -> Iterator[Finding]:
    """Are there descriptors for every client and every request's host?"""
    wanted = config.limits.connections + config.limits.in_flight + OTHER_DESCRIPTORS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        yield ok("descriptors", f"{wanted:,} are needed, this shell may have {'any' if hard < 0 else f'{hard:,}'}")
    else:
        yield warning(
            "descriptors",
            f"limits.connections = {config.limits.connections:,} and limits.in_flight need {wanted:,}, this shell may "
            f"have {hard:,}: a router started here would take fewer clients",
            f"LimitNOFILE={wanted} in the unit (it has 65536), or `ulimit -Hn {wanted}`, or a lower limits.connections",
        )


def shared_memory(config: Config) -> Iterator[Finding]:
    """Is there a tmpfs for the rings, with room for them, that this user may write?"""
    path, wanted_path = rings_dir(config), run_dir(config)
    if path != wanted_path:
        yield warning(
            "shared memory",
            f"{wanted_path} is not on a tmpfs: the rings go to {path}",
            "set listen.run_dir to one below /run",
        )
    there = _nearest(path)
    if not is_tmpfs(there):
        yield error("shared memory", f"{there} is not on a tmpfs", "mount one at /dev/shm, or set listen.run_dir")
        return
    stat = os.statvfs(there)
    free, needed = stat.f_bavail * stat.f_frsize, GENERATIONS_KEPT * ring_bytes(config)
    if free < needed:
        yield error(
            "shared memory",
            f"{there} has {free >> 20:,} MiB free, the rings of two generations take {needed >> 20:,} MiB",
            "a larger tmpfs (`mount -o remount,size=`), or smaller [rings] in the configuration",
        )
    else:
        yield ok("shared memory", f"{there}: {free >> 20:,} MiB free, {needed >> 20:,} MiB are needed")
    if not os.access(there, os.W_OK):
        yield error(
            "permissions",
            f"{there} cannot be written by uid {os.getuid()}",
            "run this as the service's user (sudo -u ringrouter ringrouter doctor), or as root",
        )


def ring_bytes(config: Config) -> int:
    """Return about how much shared memory one generation reserves."""
    rings = config.rings
    return (
        rings.requests * 64
        + rings.tokens * rec.TOKENS_SLOT_BYTES
        + rings.done * rec.DONE_SLOT_BYTES
        + config.limits.in_flight * rec.DONE_SLOT_BYTES
        + rings.names * rec.NAME_ROW_BYTES
        + _SLACK_BYTES
    )


def native_parts(config: Config) -> Iterator[Finding]:
    """Were the C extensions built?"""
    todo = "install a C compiler and the package anew"
    if ringbuffer.BACKEND == "c":
        yield ok("native parts", "rings in C")
    elif config.loop.slots_shared:
        yield error("native parts", "loop.slots_shared needs the C extension of the rings, which was not built", todo)
    else:
        yield warning("native parts", "the rings run without their C extension: slower, x86-64 only", todo)
    if native.BACKEND != "c":
        yield warning("native parts", "streams are scanned without the C extension: more time for each request", todo)


def _nearest(path: Path) -> Path:
    """Return a directory, or the nearest one above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())
