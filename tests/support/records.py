"""The done record of one request, found by the id that its client gave it."""

from __future__ import annotations

from typing import Any

from ringbuffer import find_current
from router.telemetry.reader import DoneReader
from tests.support.processes import RouterProcess
from tests.support.waiting import wait_until


def done_record(router: RouterProcess, request_id: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """Return the one record of a request as soon as it has ended; fail if it does not."""
    found: list[dict[str, Any]] = []
    with DoneReader(find_current(router.instance_dir), "oldest") as reader:

        def ended() -> bool:
            found.extend(record for record in reader.poll() if record["request_id"] == request_id)
            return bool(found)

        wait_until(ended, f"the done record of {request_id}", timeout_s)
    assert len(found) == 1, f"{request_id} has exactly one done record"
    return found[0]
