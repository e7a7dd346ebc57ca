"""Read a router's token and done rings as they grow, the way a watcher does, and keep nothing.

    python bench/peers_reader.py RUN_DIR

What is measured of ringrouter is measured with this attached. It takes raw records 20 times a second: decoding them
would cost the load generator's core more than the load does, and the router would notice no difference.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ringbuffer import BroadcastReader, Missing, NotReady, find_current

PAUSE_S = 0.05
START_LIMIT_S = 30.0
RECORDS_PER_POLL = 4096


def attach(instance: Path) -> list[BroadcastReader]:
    """Attach to both rings of a router, waiting until it has created them; raises ``RingError`` if it does not."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            directory = find_current(instance)
            return [
                BroadcastReader.attach(directory / f"{ring}.ring", "latest", directory / "readers" / f"bench-{ring}")
                for ring in ("tokens", "done")
            ]
        except (Missing, NotReady):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(PAUSE_S)


def main() -> None:
    """Read until this process is ended."""
    readers = attach(Path(sys.argv[1]) / "main")
    while True:
        for reader in readers:
            while len(reader.poll(RECORDS_PER_POLL)) == RECORDS_PER_POLL:
                pass
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
