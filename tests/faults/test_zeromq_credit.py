"""Flow control: a stream has no more events under way than its client has allowed, and loses none by waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.stamps import STAMPS
from tests.faults.client import TIMEOUT_S
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, check_on_time, host_entry
from tests.faults.test_back_pressure import wait_paused
from tests.faults.zeromq_client import CREDIT_FIRST, CREDIT_MAX, Answer, ZeromqClient
from tests.support import scripted_host as sh
from tests.support.scripted_host import Gate, ScriptedHost, chunk

MIB = 1 << 20
STALL_S = 0.2
PATIENT_S = 0.6
"""Of the model whose client must grant in time again and again, which a busy machine lets it do late."""
TOKEN = sh.token("x")
LARGE = sh.token("x" * 16_384)
LARGE_COUNT = 1000
"""Together many times what may be held."""
END = b"".join(map(chunk, (sh.FINISH, sh.DONE))) + sh.LAST_CHUNK
BUFFERED_BYTES_MAX = 3 * MIB
"""Of a stream that is held: limits.client_buffer_bytes, and what the kernel's buffers and one read hold."""


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[ScriptedHost]:
    """On a unix socket: the kernel holds little between it and the router."""
    with ScriptedHost("alpha", directory, models=("m", "hasty", "patient")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    limits = "".join(
        f"[models.{name}.timeouts]\nclient_stall_s = {limit_s}\n"
        for name, limit_s in (("hasty", STALL_S), ("patient", PATIENT_S))
    )
    toml = QUIET + SHORT_TICK + limits + host_entry(host, slots=64)
    with Stage(directory, [host], toml) as stage:
        yield stage


def tokens(count: int) -> bytes:
    """Return so many tokens in one write."""
    return chunk(TOKEN) * count


def stream(count: int) -> list[sh.Step]:
    """Return the script of a stream of so many tokens and a finish event."""
    return [sh.stream_head(), tokens(count), END]


def endless(stage: Stage, host: ScriptedHost, *steps: sh.Step) -> Gate:
    """Script a stream that does not end before its gate is opened."""
    gate = stage.gate()
    host.script(sh.stream_head(), *steps, gate, END)
    return gate


def check_still(client: ZeromqClient, *answers: Answer) -> None:
    """Check that nothing more comes of these: what the router would have sent comes before its pong."""
    before = [len(answer.events) for answer in answers]
    client.ping()
    assert [len(answer.events) for answer in answers] == before, "no event without credit"


def wait_events_of_host(stage: Stage, count: int) -> None:
    """Wait until the router has had so many events of the one request that runs."""
    (row,) = stage.in_flight()

    def enough() -> bool:
        records = stage.token_records(row["request_seq"])
        return sum("host_event" in each["flags"] for each in records) >= count

    stage.wait(enough, f"{count} events of the host")


# ------------------------------------------------------------------ one stream
@pytest.mark.parametrize("credit", [None, 1, 7, CREDIT_MAX])
def test_a_stream_stops_where_its_credit_ends(stage: Stage, host: ScriptedHost, credit: int | None) -> None:
    first = credit or CREDIT_FIRST
    host.script(*stream(first + 100))
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": credit} if credit else None)
    client.wait_events(answer, first)
    wait_events_of_host(stage, first + 100)
    check_still(client, answer)
    assert len(answer.events) == first, "exactly as many as allowed"
    client.grant(("1", 30))
    client.wait_events(answer, first + 30)
    check_still(client, answer)
    assert len(answer.events) == first + 30
    assert answer.message_sizes[-1] == 30, "what was held goes out as one message"
    client.grant(("1", 71))
    client.finish(answer)
    assert answer.data == TOKEN * (first + 100) + sh.FINISH
    assert answer.message_sizes[-1] == 71
    assert answer.done["usage"] is None
    stage.finished(1)


def test_tokens_that_come_one_by_one_are_held_too(stage: Stage, host: ScriptedHost) -> None:
    """The path of a single token is another one than that of a batch."""
    gate = stage.gate()
    host.script(sh.stream_head(), *[chunk(TOKEN)] * 20, gate, *[chunk(TOKEN)] * 20, END)
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": 5})
    client.wait_events(answer, 5)
    wait_events_of_host(stage, 20)
    check_still(client, answer)
    client.grant(("1", 1))
    client.grant(("1", 1))
    client.wait_events(answer, 7)
    check_still(client, answer)
    client.grant(("1", 23))
    client.wait_events(answer, 20)
    gate.open()
    client.wait_events(answer, 30)
    check_still(client, answer)
    assert len(answer.events) == 30
    client.grant(("1", 100))
    client.finish(answer)
    assert answer.data == TOKEN * 40 + sh.FINISH
    assert (stage.finished(1)[0]["outcome"], stage.finished(1)[0]["n_content"]) == ("ok", 40)


def test_credit_that_is_given_ahead_adds_up(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(gate, *stream(100))
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": 1})
    gate.wait_reached()
    client.grant(("1", 10), ("1", 20))
    client.grant(("1", 5))
    client.ping()
    gate.open()
    client.wait_events(answer, 36)
    check_still(client, answer)
    client.grant(("1", CREDIT_MAX))
    client.finish(answer)
    stage.finished(1)


def test_a_client_that_grants_what_it_reads_is_never_held(stage: Stage, host: ScriptedHost) -> None:
    host.script(sh.stream_head(), *[tokens(100)] * 60, END)
    client = stage.zeromq_client()
    client.granting = True
    answer = client.finish(client.chat())
    assert answer.data == TOKEN * 6000 + sh.FINISH
    stage.finished(1)


def test_a_client_that_grants_at_half_is_never_held(stage: Stage, host: ScriptedHost) -> None:
    host.script(sh.stream_head(), *[tokens(100)] * 30, END)
    client = stage.zeromq_client()
    answer = client.chat()
    granted = 0
    while not answer.end:
        client.read()
        if len(answer.events) - granted >= CREDIT_FIRST // 2:
            client.grant(("1", len(answer.events) - granted))
            granted = len(answer.events)
    assert answer.data == TOKEN * 3000 + sh.FINISH
    stage.finished(1)


def test_an_end_waits_behind_what_is_held(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(sh.stream_head(), tokens(1), gate, tokens(9), END)
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": 2})
    client.wait_events(answer, 1)
    gate.open()
    client.wait_events(answer, 2)
    host.wait(lambda: host.exchanges[-1].over, "the host has given its answer")
    check_still(client, answer)
    assert answer.end is None
    client.grant(("1", 8))
    client.wait_events(answer, 10)
    check_still(client, answer)
    assert answer.end is None, "done comes behind the last event, not before"
    client.grant(("1", 1))
    client.finish(answer)
    assert answer.done["events"] == 11
    (record,) = stage.finished(1)
    said = dict(zip(STAMPS, answer.done["stamps"], strict=True))
    assert said["outN"] > said["tokN"], "the last token went out when there was credit"
    assert 0 <= record["stamps"]["outN"] - said["outN"] < stage.allowed_ns(20 * MS)


def test_an_error_waits_behind_what_is_held(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(sh.stream_head(), tokens(10), gate, sh.End.CLOSE)
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": 2})
    client.wait_events(answer, 2)
    gate.open()
    host.wait(lambda: host.exchanges[-1].over or not host.running_count, "the host has closed")
    check_still(client, answer)
    client.grant(("1", 100))
    client.finish(answer)
    assert answer.data == TOKEN * 10
    assert answer.error["code"] == "host_closed"
    assert stage.last_finished()["outcome"] == "host_error"


def test_what_is_no_event_needs_no_credit(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    gate = endless(stage, host, tokens(5))
    held = client.chat("held", keys={"credit": 1})
    client.wait_events(held, 1)
    whole = client.finish(client.chat("whole", stream=False, keys={"credit": 1}))
    assert whole.done["status"] == 200
    client.ping()
    client.read_until(lambda: client.alive_ns, "alive, though there is no credit")
    gate.open()
    client.grant(("held", 100))
    client.finish()
    stage.finished(2)


# ------------------------------------------------------------------ several streams
def test_one_message_grants_to_several_streams(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    answers = []
    for name in ("a", "b", "c"):
        host.script(*stream(50))
        answers.append(client.chat(name, keys={"credit": 10}))
    for answer in answers:
        client.wait_events(answer, 10)
    check_still(client, *answers)
    client.grant(("a", 5), ("b", 40), ("a", 1))
    client.wait_events(answers[0], 16)
    client.wait_events(answers[1], 50)
    check_still(client, *answers)
    assert [len(answer.events) for answer in answers] == [16, 50, 10], "each stream has its own credit"
    client.grant(*((name, 100) for name in "abc"))
    client.finish()
    assert all(answer.data == TOKEN * 50 + sh.FINISH for answer in answers)
    stage.finished(3)


def many_streams(stage: Stage, host: ScriptedHost, client: ZeromqClient, count: int, size: int) -> list[Gate]:
    gates = []
    for index in range(count):
        gates.append(endless(stage, host, tokens(size)))
        client.chat(f"s{index}")
    for gate in gates:
        gate.wait_reached()
    return gates


def event_count(client: ZeromqClient) -> int:
    return sum(len(answer.events) for answer in client.answers.values())


def test_all_streams_of_a_client_share_4096_events(stage: Stage, host: ScriptedHost) -> None:
    client, other = stage.zeromq_client(), stage.zeromq_client()
    gates = many_streams(stage, host, client, 20, CREDIT_FIRST)
    client.read_until(lambda: event_count(client) >= CREDIT_MAX, "4,096 events")
    check_still(client, *client.answers.values())
    assert event_count(client) == CREDIT_MAX
    assert other.finish(other.chat()).done["events"] == 5, "what one client has under way is no other's affair"
    client.grant(("s0", 100), ("s1", 50))
    client.read_until(lambda: event_count(client) >= CREDIT_MAX + 150, "150 events more")
    check_still(client, *client.answers.values())
    assert event_count(client) == CREDIT_MAX + 150, "what is granted back to one stream any other may use"
    for gate in gates:
        gate.open()
    grants_left = {name: len(answer.events) for name, answer in client.answers.items()}
    client.grant(*((name, min(count, 256)) for name, count in grants_left.items()))
    client.granting = True
    client.finish()
    assert all(answer.data == TOKEN * CREDIT_FIRST + sh.FINISH for answer in client.answers.values())
    stage.finished(21)


def test_a_single_token_waits_for_its_share_too(stage: Stage, host: ScriptedHost) -> None:
    """The path of a single token is another one than that of a batch."""
    client = stage.zeromq_client()
    gate = stage.gate()
    host.script(sh.stream_head(), *[chunk(TOKEN)] * 5, gate, *[chunk(TOKEN)] * 5, END)
    single = client.chat("single")
    client.wait_events(single, 5)
    gates = many_streams(stage, host, client, 16, CREDIT_FIRST)
    client.read_until(lambda: event_count(client) >= CREDIT_MAX, "4,096 events")
    gate.open()
    check_still(client, *client.answers.values())
    assert event_count(client) == CREDIT_MAX
    for each in gates:
        each.open()
    client.granting = True
    client.grant(("single", 5), *((f"s{index}", 10) for index in range(16)))
    client.finish()
    assert single.data == TOKEN * 10 + sh.FINISH
    stage.finished(17)


def test_streams_shorter_than_their_credit_need_no_grants(stage: Stage, host: ScriptedHost) -> None:
    """As many at once as together stay below 4,096; what one had under way is free again when it has ended."""
    client = stage.zeromq_client()
    for _ in range(3):
        gate = stage.gate()
        for index in range(20):
            host.script(sh.stream_head(), tokens(200), gate, END)
            client.chat(f"s{index}")
        host.wait(lambda: host.running_count == 20, "all streams run at once")
        client.read_until(lambda: event_count(client) == 4000, "all but the last events")
        gate.open()
        client.finish()
        assert all(answer.data == TOKEN * 200 + sh.FINISH for answer in client.answers.values())
    stage.finished(60)


def test_a_stream_that_ends_lets_the_others_go_on(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    gates = many_streams(stage, host, client, 17, CREDIT_FIRST)
    client.read_until(lambda: event_count(client) >= CREDIT_MAX, "4,096 events")
    check_still(client)
    full = [name for name, answer in client.answers.items() if len(answer.events) == CREDIT_FIRST]
    client.say("cancel", id=full[0])
    client.read_until(lambda: event_count(client) == 17 * CREDIT_FIRST, "the events that the cancelled one kept back")
    for gate in gates:
        if not host.exchanges[-1].over:
            gate.open()
    client.granting = True
    client.grant(*((name, 1) for name in client.answers))
    client.finish()
    stage.finished(17)


# ------------------------------------------------------------------ grants that make no sense
def test_grants_for_nothing_are_dropped_and_counted(stage: Stage, host: ScriptedHost) -> None:
    owner, thief = stage.zeromq_client(), stage.zeromq_client()
    owner.finish(owner.chat("over"))
    gate = endless(stage, host, tokens(300))
    answer = owner.chat("mine")
    owner.wait_events(answer, CREDIT_FIRST)
    before = stage.counter("zeromq_dropped")
    thief.grant(("mine", 100), ("unknown", 1), ("", 5))
    owner.grant(("over", 10))
    thief.ping()
    check_still(owner, answer)
    assert stage.counter("zeromq_dropped") == before + 4
    assert not thief.others, "a grant that comes too late is no error"
    gate.open()
    owner.grant(("mine", 1), ("unknown", 1), ("mine", 100))
    owner.finish(answer)
    assert answer.data == TOKEN * 300 + sh.FINISH
    stage.finished(2)


@pytest.mark.parametrize("count", [0, -1, -(2**63), CREDIT_MAX + 1, 2**63, 2**64 - 1])
def test_a_grant_out_of_range_is_refused_and_the_stream_goes_on(stage: Stage, host: ScriptedHost, count: int) -> None:
    gate = endless(stage, host, tokens(300))
    client = stage.zeromq_client()
    answer = client.chat()
    client.wait_events(answer, CREDIT_FIRST)
    before = stage.counter("zeromq_bad")
    client.say("credit", id="other", grants=[("1", count), ("1", 4)])
    refused = client.next_other()
    assert refused.id == "", "not to be taken for the end of the stream"
    assert (refused.error["code"], refused.error["param"], refused.facts["status"]) == ("bad_credit", "grants", 400)
    client.wait_events(answer, CREDIT_FIRST + 4)
    check_still(client, answer)
    assert stage.counter("zeromq_bad") == before + 1
    gate.open()
    client.grant(("1", 100))
    client.finish(answer)
    assert answer.data == TOKEN * 300 + sh.FINISH
    stage.finished(1)


def test_credit_never_exceeds_4096(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(gate, *stream(CREDIT_MAX + 10))
    client = stage.zeromq_client()
    answer = client.chat()
    client.grant(("1", CREDIT_MAX - CREDIT_FIRST))
    client.grant(("1", 1))
    assert client.next_other().error["code"] == "bad_credit"
    gate.wait_reached()
    gate.open()
    client.wait_events(answer, CREDIT_MAX)
    check_still(client, answer)
    assert len(answer.events) == CREDIT_MAX
    client.grant(("1", CREDIT_MAX))
    client.finish(answer)
    stage.finished(1)


@pytest.mark.parametrize(
    "grants", [5, "1", [["1"]], [["1", "5"]], [["1", 1.5]], [[1, 1]], [["1", None]], [["1", 1, 1]]]
)
def test_grants_of_another_shape_are_refused(stage: Stage, host: ScriptedHost, grants: Any) -> None:
    client = stage.zeromq_client()
    gate = endless(stage, host, tokens(5))
    answer = client.chat(keys={"credit": 1})
    client.wait_events(answer, 1)
    client.say("credit", grants=grants)
    refused = client.next_other()
    assert (refused.id, refused.error["code"]) == ("", "bad_message")
    check_still(client, answer)
    gate.open()
    client.grant(("1", 10))
    client.finish(answer)
    stage.finished(1)


# ------------------------------------------------------------------ too much, too long
def flood(stage: Stage, host: ScriptedHost, client: ZeromqClient) -> Answer:
    host.script(sh.stream_head(), *[chunk(LARGE)] * LARGE_COUNT, END)
    answer = client.chat("flood", keys={"credit": 1})
    client.wait_events(answer, 1)
    return answer


def test_a_held_stream_pauses_its_host_and_loses_nothing(stage: Stage, host: ScriptedHost) -> None:
    before = stage.memory_bytes()
    client, other = stage.zeromq_client(), stage.zeromq_client()
    answer = flood(stage, host, client)
    exchange = host.exchanges[-1]
    sent = wait_paused(exchange)
    assert sent < BUFFERED_BYTES_MAX, "the host is paused"
    assert stage.memory_bytes() - before < BUFFERED_BYTES_MAX
    assert other.finish(other.chat()).done["events"] == 5, "others go on"
    read = 1
    for _ in range(2):
        client.grant(("flood", 100))
        read += 100
        client.wait_events(answer, read)
        again = wait_paused(exchange)
        assert again > sent, "a paused host is read again when there is credit"
        sent = again
    client.granting = True
    client.grant(("flood", 2000))
    client.finish(answer)
    assert [each.data for each in answer.events] == [LARGE] * LARGE_COUNT + [sh.FINISH]
    (_, record) = stage.finished(2)
    kinds = {each["kind"] for each in stage.token_records(record["request_seq"])}
    assert {"blocked", "drained"} <= kinds


def test_without_credit_for_too_long_the_request_ends(stage: Stage, host: ScriptedHost) -> None:
    def stall() -> tuple[int, int, int]:
        endless(stage, host, tokens(300))
        client = stage.zeromq_client()
        answer = client.chat("1", "hasty")
        client.finish(answer)
        assert len(answer.events) == CREDIT_FIRST
        assert answer.error["code"] == "client_stalled"
        assert answer.end is not None
        assert answer.end.facts == {"status": 499, "retry_after_s": 0, "events": CREDIT_FIRST}
        gone_ns = host.exchanges[-1].wait_gone()
        record = stage.last_finished()
        assert (record["outcome"], record["error"]) == ("client_stalled", "client_stalled")
        (blocked,) = [e["t_ns"] for e in stage.token_records(record["request_seq"]) if e["kind"] == "blocked"]
        assert gone_ns >= record["left_ns"] > 0, "the host is cancelled"
        check_still(client, answer)
        return blocked, record["left_ns"], answer.end.came_ns

    check_on_time(stall, STALL_S)


def test_a_client_that_grants_now_and_then_is_not_stalled(stage: Stage, host: ScriptedHost) -> None:
    host.script(*stream(25))
    client = stage.zeromq_client()
    answer = client.chat("1", "patient", keys={"credit": 5})
    while not answer.end:
        count = len(answer.events)
        client.wait_events(answer, min(count + 5, 26))
        client.pause(PATIENT_S / 4)
        client.grant(("1", 5))
    assert answer.done["events"] == 26
    (record,) = stage.finished(1)
    assert record["e2e_ns"] > PATIENT_S * 1e9


def test_an_end_that_nobody_grants_credit_for_stalls_too(stage: Stage, host: ScriptedHost) -> None:
    host.script(*stream(10))
    client = stage.zeromq_client()
    answer = client.finish(client.chat("1", "hasty", keys={"credit": 2}))
    assert answer.error["code"] == "client_stalled"
    assert len(answer.events) == 2
    assert stage.last_finished()["outcome"] == "client_stalled"


def test_a_held_stream_can_be_cancelled(stage: Stage, host: ScriptedHost) -> None:
    endless(stage, host, tokens(10))
    client = stage.zeromq_client()
    answer = client.chat(keys={"credit": 2})
    client.wait_events(answer, 2)
    client.say("cancel", id="1")
    client.finish(answer, timeout_s=TIMEOUT_S)
    assert (answer.error["code"], len(answer.events)) == ("cancelled", 2)
    host.exchanges[-1].wait_gone()
    client.grant(("1", 100))
    check_still(client, answer)
    assert stage.last_finished()["outcome"] == "client_gone"
