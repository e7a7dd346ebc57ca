"""The catalogue of the router's counters: id, name, unit and what a person should read."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ringbuffer import CounterSpec


class Counter(IntEnum):
    """Ids of the counters; they never change meaning."""

    CONNECTIONS_OPEN = 0
    CONNECTIONS_ACCEPTED = 1
    CONNECTIONS_REFUSED = 2
    REQUESTS = 3
    REQUESTS_OK = 4
    REQUESTS_FAILED = 5
    REQUESTS_REFUSED = 6
    REQUESTS_BAD = 7
    CLIENTS_GONE = 8
    CLIENTS_STALLED = 9
    IN_FLIGHT = 10
    WAITING = 11
    ATTEMPTS_FAILED = 12
    RETRIES_STALE = 13
    CONNECTS = 14
    TOKEN_EVENTS = 15
    BYTES_TO_CLIENTS = 16
    CYCLE_NS_MAX = 17
    CYCLES_LONG = 18
    TAGS_CUT = 19
    HOSTS_HEALTHY = 20
    TIMEOUTS = 21
    HEARTBEATS = 22
    ZEROMQ_MESSAGES = 23
    ZEROMQ_BAD = 24
    ZEROMQ_DROPPED = 25
    LOG_DROPPED = 26
    SLOTS_LOST = 27


def _spec(counter: Counter, unit: str, label: str) -> CounterSpec:
    return CounterSpec(int(counter), counter.name.lower(), unit, label)


CATALOGUE: Final = [
    _spec(Counter.CONNECTIONS_OPEN, "connections", "client connections open now"),
    _spec(Counter.CONNECTIONS_ACCEPTED, "connections", "client connections accepted"),
    _spec(Counter.CONNECTIONS_REFUSED, "connections", "client connections refused, over limits.connections"),
    _spec(Counter.REQUESTS, "requests", "requests published into the request ring"),
    _spec(Counter.REQUESTS_OK, "requests", "requests answered"),
    _spec(Counter.REQUESTS_FAILED, "requests", "requests that ended in an error of a host or a time-out"),
    _spec(Counter.REQUESTS_REFUSED, "requests", "requests refused: no room or no healthy host"),
    _spec(Counter.REQUESTS_BAD, "requests", "requests that could not be understood"),
    _spec(Counter.CLIENTS_GONE, "requests", "requests whose client left before the end"),
    _spec(Counter.CLIENTS_STALLED, "requests", "requests whose client stopped reading"),
    _spec(Counter.IN_FLIGHT, "requests", "requests waiting or running at the last heartbeat"),
    _spec(Counter.WAITING, "requests", "requests in the waiting rooms at the last heartbeat"),
    _spec(Counter.ATTEMPTS_FAILED, "attempts", "attempts at a host that failed"),
    _spec(Counter.RETRIES_STALE, "attempts", "requests sent again because a kept connection had just closed"),
    _spec(Counter.CONNECTS, "connections", "connections opened to hosts"),
    _spec(Counter.TOKEN_EVENTS, "events", "events of host streams, of requests that have ended"),
    _spec(Counter.BYTES_TO_CLIENTS, "bytes", "bytes of answers written to clients, of requests that have ended"),
    _spec(Counter.CYCLE_NS_MAX, "ns", "longest time the loop kept its timer waiting"),
    _spec(Counter.CYCLES_LONG, "cycles", "times it did so for longer than loop.cycle_threshold_ms"),
    _spec(Counter.TAGS_CUT, "values", "tag values cut to 64 bytes or folded into __other__"),
    _spec(Counter.HOSTS_HEALTHY, "hosts", "hosts that can serve now"),
    _spec(Counter.TIMEOUTS, "requests", "requests ended by a time-out of the router"),
    _spec(Counter.HEARTBEATS, "comments", "comments sent to keep silent streams alive"),
    _spec(Counter.ZEROMQ_MESSAGES, "messages", "messages of ZeroMQ clients read"),
    _spec(Counter.ZEROMQ_BAD, "messages", "messages of ZeroMQ clients answered with an error"),
    _spec(Counter.ZEROMQ_DROPPED, "messages", "ZeroMQ messages dropped: of a request that is over, to a full client"),
    _spec(Counter.LOG_DROPPED, "messages", "log messages dropped because nobody took them"),
    _spec(Counter.SLOTS_LOST, "attempts", "routings taken back: another router had the host's last slot"),
]

assert [spec.id for spec in CATALOGUE] == [int(c) for c in Counter]
