"""A router between scripted hosts and bare clients, with its records: what every test here stands on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringbuffer import CountersReader, find_current
from router.stamps import STAMPS
from router.telemetry.reader import DoneReader, InflightReader, TokenReader
from tests.faults.client import Client
from tests.faults.zeromq_client import ZeromqClient
from tests.support.machine_delays import MachineDelays
from tests.support.processes import RouterProcess, host_toml
from tests.support.scripted_host import Gate, ScriptedHost
from tests.support.waiting import wait_until

QUIET = "[health]\ninterval_s = 3600\nfail_after = 1000\nbreaker = { failures = 0, share = 0 }\n"
"""No probes after the first and no verdict on hosts: they fail on purpose here."""
SHORT_TICK = "[models.of-no-host.timeouts]\ntotal_s = 0.1\n"
"""The shortest time-out sets how often the router looks, and so how soon the records of short requests are there."""
LATE_NS_MAX = 50_000_000
"""A time-out comes at most this late."""
MS = 1_000_000
_TTFT_STAGE_COUNT = 11
_STEADY_COUNT = 10


def host_entry(host: ScriptedHost, **keys: Any) -> str:
    """Return the ``[[hosts]]`` table of a host, of kind openai and with 4 slots unless ``keys`` say otherwise."""
    facts = {"health_path": "/health", **keys.pop("facts", {})}
    models = keys.pop("models", list(host.models))
    text = host_toml(host.name, host.url, **{"kind": "openai", "slots": 4, **keys})
    if isinstance(models, dict):
        text += "models = {" + ", ".join(f'"{ours}" = "{theirs}"' for ours, theirs in models.items()) + "}\n"
    else:
        text += f"models = {models}\n"
    lines = (
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n" for key, value in facts.items()
    )
    return text + "[hosts.facts]\n" + "".join(lines)


def check_on_time(measure: Callable[[], tuple[int, int, int]], limit_s: float, late_ns_max: int = LATE_NS_MAX) -> None:
    """Check that a time-out is never early and at most 50 ms late, beside what the machine itself was late by.

    ``measure`` provokes it and returns when its time began, when the router let it fire (0 = not recorded) and when
    the client or the host saw it. What is late is measured again, twice at most: the machine may have been busy. What
    is early is a fault at once.
    """
    delays = MachineDelays()
    limit_ns = round(limit_s * 1000) * MS
    late_ns: list[int] = []
    for _ in range(3):
        delays.restart()
        began_ns, fired_ns, seen_ns = measure()
        assert (fired_ns or seen_ns) - began_ns >= limit_ns, "a time-out never comes early"
        late_ns.append(seen_ns - began_ns - limit_ns)
        if late_ns[-1] <= delays.allowed_ns(late_ns_max):
            return
    raise AssertionError(f"later than {late_ns_max / MS:g} ms: {[ns / MS for ns in late_ns]}")


class Stage:
    """A context manager around one router. After each test :meth:`settle` checks that nothing of it is left."""

    def __init__(self, directory: Path, hosts: Sequence[ScriptedHost], toml: str, models: Sequence[str] = ()) -> None:
        self.hosts = list(hosts)
        self.models = models or sorted({name for host in hosts for name in host.models})
        self.router = RouterProcess(directory, toml)
        self._clients: list[Client] = []
        self._zeromq_clients: list[ZeromqClient] = []
        self._gates: list[Gate] = []
        self.unrecorded_count = 0
        """Requests of the test whose record it has made impossible."""
        self._done: list[dict[str, Any]] = []
        self._tokens: list[dict[str, Any]] = []
        self._delays = MachineDelays()

    def __enter__(self) -> Self:
        self.router.start()
        directory = find_current(self.router.instance_dir)
        self._done_reader = DoneReader(directory, "oldest")
        self._token_reader = TokenReader(directory, "oldest")
        self._inflight = InflightReader(directory)
        self._counters = CountersReader.attach(directory / "counters")
        wait_until(lambda: not self.connections_open(), "no client connection")
        self._connected_count = self._accepted_count()
        self._descriptor_count = self._steady_descriptor_count()
        self._delays.restart()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in (self._done_reader, self._token_reader, self._inflight, self._counters):
            reader.close()
        self.router.__exit__(error, value, trace)

    # ------------------------------------------------------------ for tests
    def client(self, **keys: Any) -> Client:
        """Return a new connection to the router, closed after the test."""
        client = Client(self.router.port, **keys)
        self._connected_count += 1
        self._clients.append(client)
        return client

    @property
    def zeromq_endpoint(self) -> str:
        """Where the router's ZeroMQ socket is."""
        return f"ipc://{self.router.instance_dir}/zmq.sock"

    def zeromq_client(self, **keys: Any) -> ZeromqClient:
        """Return a new ZeroMQ socket at the router, closed after the test."""
        client = ZeromqClient(self.zeromq_endpoint, **keys)
        self._zeromq_clients.append(client)
        return client

    def gate(self) -> Gate:
        """Return a new gate."""
        gate = Gate()
        self._gates.append(gate)
        return gate

    def finished(self, count: int) -> list[dict[str, Any]]:
        """Return the done records of this test as soon as there are ``count``, in the order of their ends."""

        def enough() -> bool:
            self._done += self._done_reader.poll()
            return len(self._done) >= count

        wait_until(enough, f"{count} done records, not {len(self._done)}")
        assert len(self._done) == count, "every request has exactly one done record"
        return self._done

    def last_finished(self) -> dict[str, Any]:
        """Return the done record of the request that is now, or has just been, answered last."""
        return self.finished(len(self._done) + 1)[-1]

    def token_records(self, request_seq: int | None = None) -> list[dict[str, Any]]:
        """Return the token records of this test, those of one request only if it is given."""
        while more := self._token_reader.poll():
            self._tokens += more
        return [record for record in self._tokens if request_seq in {None, record["request_seq"]}]

    def host_events(self, record: dict[str, Any]) -> list[str]:
        """Return the kinds of the host's events that were recorded for a finished request."""
        records = self.token_records(record["request_seq"])
        return [each["kind"] for each in records if "host_event" in each["flags"]]

    def counter(self, name: str) -> int:
        """Return the value of a counter."""
        return {spec.name: value for spec, value in self._counters.read()}[name]

    def wait_counter(self, name: str, value: int) -> None:
        """Wait until a counter has come to a value."""
        wait_until(lambda: self.counter(name) >= value, f"{name} is {value}")

    @staticmethod
    def wait(is_so: Callable[[], object], what: str) -> None:
        """Wait until something is so."""
        wait_until(is_so, what)

    def in_flight(self, phase: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the in-flight table, those in one phase only if it is given."""
        return [row for row in self._inflight.read() if phase in {None, row["phase"]}]

    def wait_phase(self, phase: str, count: int = 1) -> None:
        """Wait until so many requests are in a phase."""
        wait_until(lambda: len(self.in_flight(phase)) == count, f"{count} requests in phase {phase}")

    def allowed_ns(self, limit_ns: int) -> int:
        """Return a bound with room for what the machine has kept processes waiting during this test."""
        return self._delays.allowed_ns(limit_ns)

    def connections_open(self) -> int:
        """Return how many client connections the router has."""
        return self.counter("connections_open")

    def _wait_all_gone(self) -> None:
        """Wait until the router has seen every connection of a client come and go."""
        wait_until(lambda: self._accepted_count() == self._connected_count, "every connection was accepted")
        wait_until(lambda: not self.connections_open(), "no client connection")

    def forget_refused(self, count: int) -> None:
        """Leave refused connections out of account that were not made by :meth:`client`."""
        self._connected_count += count

    def _accepted_count(self) -> int:
        return self.counter("connections_accepted") + self.counter("connections_refused")

    def memory_bytes(self) -> int:
        """Return the router's anonymous memory."""
        status = Path(f"/proc/{self.router.pid}/status").read_text(encoding="ascii")
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    # ------------------------------------------------------------ after each test
    def settle(self) -> None:
        """End what the test has left, then check that the router is where it started, and the test's records."""
        try:
            self._settle()
        finally:
            self._done, self._tokens = [], []
        self._check_slots()
        self._delays.restart()

    def _settle(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        for zeromq_client in self._zeromq_clients:
            zeromq_client.close()
        self._zeromq_clients.clear()
        self._gates.clear()
        self._wait_all_gone()
        wait_until(lambda: not self.in_flight(), "no request in flight")
        wait_until(
            lambda: self._own_descriptor_count() == self._descriptor_count,
            "descriptors: as many as at the start",
        )
        while more := self._done_reader.poll():
            self._done += more
        assert self._done_reader.lost_count == 0
        self.token_records()
        for record in self._done:
            check_stages(record)
            check_events(record, self.token_records(record["request_seq"]))
        requests_done = Counter(record["request_seq"] for record in self._done)
        assert set(requests_done.values()) <= {1}
        unrecorded = {record["request_seq"] for record in self._tokens} - set(requests_done)
        assert len(unrecorded) == self.unrecorded_count, "every request has its record"
        self.unrecorded_count = 0

    def _steady_descriptor_count(self) -> int:
        """Return the router's own descriptors as soon as the first probes are over and spares are connected."""
        counts: list[int] = []

        def steady() -> bool:
            counts.append(self._own_descriptor_count())
            return len(counts) >= _STEADY_COUNT and len(set(counts[-_STEADY_COUNT:])) == 1

        wait_until(steady, "the number of descriptors is steady")
        return counts[-1]

    def _own_descriptor_count(self) -> int:
        """Return how many descriptors the router has, its connections to hosts left out."""
        return len(list(Path(f"/proc/{self.router.pid}/fd").iterdir())) - sum(host.open_count for host in self.hosts)

    def _check_slots(self) -> None:
        """Check by one more request of each model that its hosts have no slot in use: routing notes their load."""
        for host in self.hosts:
            host.wait(lambda host=host: not host.running_count, "no request runs")
            assert not host.script_count, f"{host.name} has a script left"
        wait_until(self._all_slots_free, "no slot in use")

    def _all_slots_free(self) -> bool:
        client = self.client()
        for model in self.models:
            client.chat(model=model, stream=False)
            answer = client.answer()
            assert answer.status == 200, answer.body
        client.close()
        wait_until(lambda: not self.in_flight(), "no request in flight")
        records = self._done_reader.poll()
        self.token_records()
        self._tokens = []
        return all(candidate["score"] == 0 for record in records for candidate in record["candidates"])


def check_stages(record: dict[str, Any]) -> None:
    """Check that the stages of a request sum exactly to what they are stages of, and that no stamp runs backwards."""
    stamps, stages = record["stamps"], record["stages_ns"]
    assert all(duration >= 0 for duration in stages.values()), stages
    if stamps["out1"]:
        assert sum(list(stages.values())[:_TTFT_STAGE_COUNT]) == record["ttft_ns"] == stamps["out1"] - stamps["recv"]
    if stamps["outN"]:
        assert record["ttft_ns"] - stages["egress"] + stages["decode"] + stages["tail"] == record["e2e_ns"]
        # A client that left or stalled has not taken the last token: the stamp takes its predecessor's value.
        assert record["e2e_ns"] == max(stamps["outN"], stamps["tokN"]) - stamps["recv"]
    happened = [stamps[name] for name in STAMPS if name not in {"tokN", "out1"} and stamps[name]]
    assert happened == sorted(happened), f"a stamp runs backwards: {stamps}"
    assert stamps["done"] >= max(stamps.values())


def check_events(record: dict[str, Any], tokens: list[dict[str, Any]]) -> None:
    """Check that a request has one record for its beginning, one for its end, and one for each event of its hosts."""
    kinds = Counter(token["kind"] for token in tokens)
    assert kinds["open"] == 1
    assert kinds["done"] == 1
    assert tokens[-1]["kind"] == "done"
    indices = [token["event_index"] for token in tokens if "host_event" in token["flags"]]
    assert indices == list(range(record["n_events"])), "every event of the host has exactly one record, in order"
    # That a client is blocked is known while an event is written, which is recorded afterwards with its own time.
    times = [token["t_ns"] for token in tokens if token["kind"] not in {"blocked", "drained"}]
    assert times == sorted(times), "records are in the order of their times"
