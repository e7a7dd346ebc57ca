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
    RETRIES = 26
    RETRIES_REFUSED = 27
    FALLBACKS = 28
    BREAKERS_OPENED = 29
    HOSTS_EJECTED = 30
    CONFIG_RELOADS = 31
    CONFIG_RELOAD_ERRORS = 32
    REFUSED_FULL = 33
    REFUSED_DEADLINE = 34
    DEADLINES_EXCEEDED = 35
    WAITING_REALTIME = 36
    WAITING_INTERACTIVE = 37
    WAITING_BATCH = 38
    LEVERS_APPLIED = 39
    TOOLS = 40
    TOOLS_BYTES = 41
    TOOL_SOURCES_STALE = 42
    TOOLS_AGE_S_MAX = 43
    TOOLS_FILLED_IN = 44
    TOOLS_REFUSED = 45
    TOOLS_SELECTED = 46
    TOOLS_NOT_SELECTED = 47
    RESPONSES = 48
    RESPONSES_BYTES = 49
    RESPONSES_AGE_S_MAX = 50
    RESPONSES_HITS = 51
    RESPONSES_MISSES = 52
    RESPONSES_EVICTED = 53
    RESPONSES_EXPIRED = 54
    RESPONSES_SAVED_MS = 55
    WARM_SENT = 56
    WARM_FAILED = 57
    CACHE_HITS = 58
    CACHE_MISSES = 59
    CACHE_CALLS = 60
    CACHE_SAVED_US = 61
    CACHE_MEMORY_BYTES = 62
    CACHE_MEMORY_EVICTED = 63
    CACHE_SKIPPED = 64
    CACHE_DAMAGED = 65
    CACHE_STORE_ENTRIES = 66
    CACHE_STORE_BYTES = 67
    CACHE_STORE_EVICTED = 68
    CACHE_STORE_AGE_S_MAX = 69
    KEEPER_UP = 70
    NEAREST = 71
    LOG_DROPPED = 72
    SLOTS_LOST = 73
    KEYS_REFUSED = 74
    KEYS_FORBIDDEN = 75
    KEYS_LIMITED = 76
    CURVE_REFUSED = 77
    PEERS_REFUSED = 78


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
    _spec(Counter.RETRIES, "attempts", "attempts made because the one before had failed"),
    _spec(Counter.RETRIES_REFUSED, "attempts", "attempts not made because the model's retry budget was used up"),
    _spec(Counter.FALLBACKS, "requests", "times a request went on to another model of its fallback chain"),
    _spec(Counter.BREAKERS_OPENED, "times", "times a host's circuit breaker opened"),
    _spec(Counter.HOSTS_EJECTED, "times", "times a host was left out for being far worse than its peers"),
    _spec(Counter.CONFIG_RELOADS, "reloads", "configurations taken over while running (SIGHUP)"),
    _spec(Counter.CONFIG_RELOAD_ERRORS, "reloads", "configurations that were refused; the one before stayed"),
    _spec(Counter.REFUSED_FULL, "requests", "requests refused: limits.in_flight or a waiting room was full"),
    _spec(
        Counter.REFUSED_DEADLINE, "requests", "requests refused at once: no first token to be expected by the deadline"
    ),
    _spec(Counter.DEADLINES_EXCEEDED, "requests", "requests ended: the deadline passed before a host was free"),
    _spec(Counter.WAITING_REALTIME, "requests", "realtime requests in the waiting rooms at the last heartbeat"),
    _spec(Counter.WAITING_INTERACTIVE, "requests", "interactive requests in the waiting rooms at the last heartbeat"),
    _spec(Counter.WAITING_BATCH, "requests", "batch requests in the waiting rooms at the last heartbeat"),
    _spec(Counter.LEVERS_APPLIED, "requests", "requests of which a rule changed model, output tokens or temperature"),
    _spec(Counter.TOOLS, "tools", "tools that requests can name"),
    _spec(Counter.TOOLS_BYTES, "bytes", "their schemas"),
    _spec(Counter.TOOL_SOURCES_STALE, "sources", "sources of tools that fail now: their last good tools stand"),
    _spec(Counter.TOOLS_AGE_S_MAX, "s", "age of the oldest source's tools"),
    _spec(Counter.TOOLS_FILLED_IN, "tools", "tools filled into requests"),
    _spec(Counter.TOOLS_REFUSED, "requests", "requests refused for tools that are not known"),
    _spec(Counter.TOOLS_SELECTED, "requests", "requests that got the tools nearest to their question"),
    _spec(
        Counter.TOOLS_NOT_SELECTED,
        "requests",
        "requests with all tools they named: the nearest were not known in time",
    ),
    _spec(Counter.RESPONSES, "answers", "answers that are kept"),
    _spec(Counter.RESPONSES_BYTES, "bytes", "memory of kept answers"),
    _spec(Counter.RESPONSES_AGE_S_MAX, "s", "age of the kept answer that was used longest ago"),
    _spec(Counter.RESPONSES_HITS, "requests", "requests answered by a kept answer"),
    _spec(Counter.RESPONSES_MISSES, "requests", "requests that asked for a kept answer and went to a host"),
    _spec(Counter.RESPONSES_EVICTED, "answers", "kept answers that made room for others"),
    _spec(Counter.RESPONSES_EXPIRED, "answers", "kept answers that became too old"),
    _spec(Counter.RESPONSES_SAVED_MS, "ms", "by how much sooner kept answers were there than their hosts' answers"),
    _spec(Counter.WARM_SENT, "requests", "system prompts sent ahead to hosts"),
    _spec(Counter.WARM_FAILED, "requests", "of them, those that a host did not take"),
    _spec(Counter.CACHE_HITS, "texts", "texts of requests for embeddings that were known"),
    _spec(
        Counter.CACHE_MISSES, "texts", "texts that were not: a host was asked, or a call that asks already was joined"
    ),
    _spec(Counter.CACHE_CALLS, "requests", "calls of hosts that were made for them"),
    _spec(Counter.CACHE_SAVED_US, "us", "by how much sooner answers without a host were there than the host had been"),
    _spec(Counter.CACHE_MEMORY_BYTES, "bytes", "memory of the newest vectors"),
    _spec(Counter.CACHE_MEMORY_EVICTED, "vectors", "vectors that left memory for newer ones"),
    _spec(Counter.CACHE_SKIPPED, "records", "vectors that the ring to the keeper had no room for"),
    _spec(Counter.CACHE_DAMAGED, "vectors", "vectors of the store that were not whole, and so not used"),
    _spec(Counter.CACHE_STORE_ENTRIES, "vectors", "vectors in the store, as the keeper last said"),
    _spec(Counter.CACHE_STORE_BYTES, "bytes", "their room on disk"),
    _spec(Counter.CACHE_STORE_EVICTED, "vectors", "vectors that left it for newer ones, since the keeper's start"),
    _spec(Counter.CACHE_STORE_AGE_S_MAX, "s", "how long ago the vector was used that would leave next, about"),
    _spec(Counter.KEEPER_UP, "keepers", "1 while the keeper is connected and at work"),
    _spec(Counter.NEAREST, "requests", "questions for what is nearest"),
    _spec(Counter.LOG_DROPPED, "messages", "log messages dropped because nobody took them"),
    _spec(Counter.SLOTS_LOST, "attempts", "routings taken back: another router had the host's last slot"),
    _spec(Counter.KEYS_REFUSED, "requests", "requests without a key, or with one that is not known"),
    _spec(Counter.KEYS_FORBIDDEN, "requests", "requests that their key does not allow"),
    _spec(Counter.KEYS_LIMITED, "requests", "requests refused because a limit of their key was reached"),
    _spec(Counter.CURVE_REFUSED, "connections", "ZeroMQ clients refused in the handshake, most for a wrong CURVE key"),
    _spec(Counter.PEERS_REFUSED, "connections", "clients of unix sockets refused for their user (listen.unix_users)"),
]

assert [spec.id for spec in CATALOGUE] == [int(c) for c in Counter]
