"""Whether a store found on disk can be trusted: ``python -m router.keep.check DIRECTORY STORE_BYTES``.

It is looked through in a process of its own, because a damaged file can end whoever maps it. Exit code 0: it is whole;
anything else, also a signal: it is not, and the last line on standard output says why.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import lmdb

from router.caches.reader import DATA_NAME
from router.keep.store import Store, StoreError

PROBLEMS_SHOWN: Final = 5
CHECK_S_MAX: Final = 600.0
"""A terabyte takes longer; then it is not trusted, and that is said."""


def problem_of(path: Path, store_bytes: int) -> str:
    """Look through a store in a process of its own; return what is wrong with it, empty if nothing is."""
    if not (path / DATA_NAME).exists():
        return ""
    command = [sys.executable, "-P", "-m", "router.keep.check", str(path), str(store_bytes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S_MAX, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"it could not be looked through in {CHECK_S_MAX:g} s"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"it is damaged: looking through it ended in {signal.Signals(-done.returncode).name}"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1] if lines else f"looking through it ended with exit code {done.returncode}"


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
        return 1
    found = 0
    for problem in store.problems():
        found += 1
        if found <= PROBLEMS_SHOWN:
            sys.stdout.write(f"{problem}\n")
    if found > 1:
        sys.stdout.write(f"{found} things are wrong with it\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
