"""Whether a store found on disk can be trusted: ``python -m router.keep.check DIRECTORY STORE_BYTES``.

It is looked through in a process of its own, because a damaged file can end whoever maps it. Exit code 0: it is whole;
3, or the signal of a crash: it is not, and the last line on standard output says why. Anything else says nothing of the
store: it is not touched then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import lmdb

import router
from router.caches.reader import DATA_NAME
from router.keep.store import Store, StoreError

PROBLEMS_SHOWN: Final = 5
CHECK_S_MAX: Final = 600.0
EXIT_BAD: Final = 3
_CRASHES: Final = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class UncheckedError(Exception):
    """Whether a store is good could not be found out; the message says why."""


def problem_of(path: Path, store_bytes: int) -> str:
    """Look through a store in a process of its own; return what is wrong with it, empty if nothing is.

    Raises :class:`UncheckedError` when that cannot be found out.
    """
    if not (path / DATA_NAME).exists():
        return ""
    command = [sys.executable, "-P", "-m", "router.keep.check", str(path), str(store_bytes)]
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours
            command, capture_output=True, text=True, timeout=CHECK_S_MAX, check=False, env=_environment()
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise UncheckedError(f"{path} could not be looked through: {error}") from None
    if done.returncode == 0:
        return ""
    if -done.returncode in _CRASHES:
        return f"it is damaged: looking through it ended in {signal.Signals(-done.returncode).name}"
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
    if done.returncode == EXIT_BAD:
        return done.stdout.strip().splitlines()[-1]
    raise UncheckedError(f"{path} could not be looked through: {lines[-1]}")


def _environment() -> dict[str, str]:
    """Return an environment in which this very package is found, wherever it is."""
    return {**os.environ, "PYTHONPATH": str(Path(router.__file__).parent.parent)}


def set_aside(path: Path, when: str) -> Path:
    """Move a store out of the way; return where it is now."""
    aside = path.with_name(f"{path.name}.set-aside-{when}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.set-aside-{when}-{number}")
    return path.rename(aside)


def main(arguments: list[str]) -> int:
    """Look through the store named by the arguments."""
    path, store_bytes = Path(arguments[0]), int(arguments[1])
    try:
        store = Store(path, store_bytes)
    except (StoreError, lmdb.Error, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return EXIT_BAD
    found = 0
    try:
        for problem in store.problems():
            found += 1
            if found <= PROBLEMS_SHOWN:
                sys.stdout.write(f"{problem}\n")
    except lmdb.Error as error:
        sys.stdout.write(f"{error}\n")
        return EXIT_BAD
    if found > 1:
        sys.stdout.write(f"{found} things are wrong with it\n")
    return EXIT_BAD if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
