"""Spinning: a reader that waits for records without giving up its core."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from ringbuffer import BroadcastReader, BroadcastWriter, GatingConsumer, GatingProducer

LONG_NS = 60_000_000_000
SHORT_NS = 2_000_000


def test_a_spin_ends_at_once_when_records_are_there(broadcast: BroadcastWriter, producer: GatingProducer) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")
    reader = BroadcastReader.attach(broadcast.segment.path)
    for n in range(3):
        broadcast.publish(n, 0, 0, 0, 0, 0, 0)
        producer.try_publish(n, 0, 0, 0, 0, 0, 0)
    assert reader.spin(LONG_NS) == 3
    assert reader.spin(0) == 3, "no time is enough for a look"
    assert consumer.spin(LONG_NS) == 3
    consumer.release(2)
    assert consumer.spin(0) == 1, "what was released is not waited for again"
    consumer.close()


def test_a_spin_ends_when_its_time_has_passed(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    began_ns = time.monotonic_ns()
    assert reader.spin(SHORT_NS) == 0
    assert SHORT_NS <= time.monotonic_ns() - began_ns < 2_000_000_000
    assert reader.spin(0) == 0


def test_a_poll_can_spin_first_and_take_what_came(broadcast: BroadcastWriter, producer: GatingProducer) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")
    reader = BroadcastReader.attach(broadcast.segment.path)
    room = bytearray(64)
    for poll_into in (reader.poll_into, consumer.poll_into):
        began_ns = time.monotonic_ns()
        assert poll_into(room, SHORT_NS) == 0
        assert time.monotonic_ns() - began_ns >= SHORT_NS
        with pytest.raises(TypeError):
            poll_into(room, SHORT_NS, 1)
    broadcast.publish(7, 0, 0, 0, 0, 0, 0)
    producer.try_publish(7, 0, 0, 0, 0, 0, 0)
    for poll_into in (reader.poll_into, consumer.poll_into):
        assert poll_into(room, LONG_NS) == 1
        assert room[8] == 7
    consumer.close()


def test_a_spin_sees_what_another_thread_publishes(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    is_spinning = threading.Event()

    def publish() -> None:
        is_spinning.wait(10)
        broadcast.publish(1, 2, 3, 4, 5, 6, 7)

    thread = threading.Thread(target=publish)
    thread.start()
    is_spinning.set()
    assert reader.spin(LONG_NS) == 1, "other threads run during a spin"
    thread.join()
    assert [sequence for sequence, _ in reader.poll(8)] == [0]


@pytest.mark.parametrize(
    "wait", [lambda reader: reader.spin(LONG_NS), lambda reader: reader.poll_into(bytearray(64), LONG_NS)]
)
def test_a_signal_handler_can_end_a_spin(broadcast: BroadcastWriter, wait: Callable[[BroadcastReader], int]) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)

    def interrupt(*_: object) -> None:
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(InterruptedError):  # noqa: PT012 - the signal may come before the wait has begun
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            wait(reader)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_only_a_number_of_nanoseconds_is_a_limit(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    with pytest.raises(TypeError):
        reader.spin("1")
