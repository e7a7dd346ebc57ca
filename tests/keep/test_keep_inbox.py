"""The keeper's end of the routers' rings, where routers come and go."""

from __future__ import annotations

import shutil
from typing import Any

from ringbuffer.generation import Generation
from router.caches.outbox import OP_TOUCH, Outbox
from router.keep.inbox import Inbox
from tests.support.waiting import shared_memory_directory


def test_a_generation_that_is_deleted_under_its_reader_is_left_and_the_others_are_read() -> None:
    taken: list[tuple[int, bytes]] = []
    with shared_memory_directory() as run_dir:
        gone, stays = (Generation.create(run_dir / name) for name in ("a", "b"))
        rings = [Outbox(each.path, 16) for each in (gone, stays)]
        for each in (gone, stays):
            each.activate()
        log: Any = None
        inbox = Inbox(run_dir, log)
        inbox.poll(lambda op, record: taken.append((op, record)))
        assert len(inbox.generations) == 2
        shutil.rmtree(gone.path)  # as when two others were started since the keeper looked
        rings[1].send(OP_TOUCH, b"key")
        for _ in range(2):
            inbox.poll(lambda op, record: taken.append((op, record)))
        assert taken == [(OP_TOUCH, b"key")]
        assert inbox.generations == [str(stays.path)]
        inbox.close()
        for ring in rings:
            ring.close()
        for each in (gone, stays):
            each.close()
