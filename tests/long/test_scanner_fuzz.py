"""Minutes of damaged streams: the scanner raises only what it promises, and its counts always agree with its events."""

from __future__ import annotations

import random
import time

import pytest

from router.hosts.scanner import StreamError, StreamScanner
from router.http1 import ProtocolError, declared_length, parse_response_head, response_decoder
from tests.captures import capture, stream_names
from tests.support.stream_damage import damage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
SECONDS = 60


def test_damaged_streams() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    until = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
        source = capture(rng.choice(stream_names()))
        data = damage(source.framed, rng)
        raw = rng.random() < 0.5
        head = parse_response_head(source.head)
        scanner = StreamScanner(
            response_decoder(head, declared_length(head)),
            raw=raw,
            drop_usage=rng.random() < 0.5,
            event_bytes_max=65536,
        )
        try:
            while data and not scanner.ended:
                size = rng.choice((1, 7, 100, 1000, 65536))
                scanner.feed(data[:size])
                data = data[size:]
            scanner.finish()
        except (StreamError, ProtocolError):
            continue
        assert scanner.content_count <= len(scanner.events), f"seed {seed}, round {rounds}"
    assert rounds > 1000
