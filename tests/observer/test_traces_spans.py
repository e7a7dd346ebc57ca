"""The spans of a request: whose child each is, that their times are the stages', what they say and never say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import ErrorKind
from router.observer.rows import Origin, RequestRow, RowDecision, RowStall, row_of
from router.observer.traces import conventions as names
from router.observer.traces.spans import (
    CLIENT,
    INTERNAL,
    SERVER,
    Naming,
    Span,
    is_sampled,
    network_share,
    server_span_id,
    spans_of,
    user_hash,
)
from router.stamps import STAGES
from router.telemetry import records as rec
from router.telemetry import trace_ids
from tests.observer.test_observer_rows import ORIGIN, T0, FewNames, at
from tests.support.request_rows import row as plain_row
from tests.unit.done_records import MS, payload, stamps

NAMING = Naming(user_id="hash", user_key=b"k" * 32, providers={"gpu-1": "vllm"})
CALLER = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "trace_flags": 1}


def row(**given: Any) -> RequestRow:
    defaults = {
        "stamps": stamps(T0),
        "host": 2,
        "model": 1,
        "outcome": rec.Outcome.OK,
        "endpoint": rec.Endpoint.CHAT,
        "flags": rec.DoneFlag.STREAM,
        "attempt_count": 1,
    }
    return row_of(rec.decode_done(payload(**{**defaults, **given})), ORIGIN, 5)


def changed(one: RequestRow, **values: Any) -> RequestRow:
    return msgspec.structs.replace(one, **values)


def by_name(spans: list[Span]) -> dict[str, Span]:
    return {f"{span.kind} {span.name}": span for span in spans}


def spans(one: RequestRow, naming: Naming = NAMING) -> dict[str, Span]:
    return by_name(spans_of(one, naming))


class TestTree:
    def test_a_request_is_a_part_of_its_callers_span_and_has_parts_itself(self) -> None:
        one = changed(row(), **CALLER)
        whole, *parts = spans_of(one, NAMING)
        assert (whole.trace_id, whole.parent_id, whole.has_remote_parent) == ("ab" * 16, "cd" * 8, True)
        assert (whole.kind, whole.name) == (SERVER, "chat chat")
        assert {span.trace_id for span in parts} == {"ab" * 16}
        assert {span.parent_id for span in parts} == {whole.span_id} == {server_span_id(one)}
        assert [f"{span.kind} {span.name}" for span in parts] == [
            *(f"{INTERNAL} {name}" for name in ("receive", "queue", "route")),
            f"{CLIENT} chat chat",
            f"{INTERNAL} respond",
        ]
        assert len({span.span_id for span in (whole, *parts)}) == 6

    def test_without_a_caller_it_is_the_root_of_a_trace_of_its_own(self) -> None:
        whole = spans_of(row(), NAMING)[0]
        assert (whole.parent_id, whole.has_remote_parent) == ("", False)
        assert whole.trace_id == trace_ids.trace_id(trace_ids.life_of("main", 77), row().request_seq).hex()

    @pytest.mark.parametrize(
        ("trace_id", "span_id"), [(b"", b"\1" * 8), (b"\1" * 16, b"")], ids=["no trace", "no span"]
    )
    def test_half_a_traceparent_is_none(self, trace_id: bytes, span_id: bytes) -> None:
        record = rec.decode_done(payload(stamps=stamps(T0), host=1, model=1)) | {
            "trace_id": trace_id.hex().ljust(32, "0"),
            "span_id": span_id.hex().ljust(16, "0"),
            "trace_flags": 1,
        }
        one = row_of(record, ORIGIN, 5)
        assert (one.span_id, one.trace_flags, len(one.trace_id)) == ("", 0, 32)
        assert one.trace_id.strip("0")

    def test_the_same_row_makes_the_same_spans_also_after_a_journey_through_the_journal(self) -> None:
        one = changed(row(), tool_ns=5, tool_after=f"{'ef' * 16}-{'12' * 8}", stalls=(RowStall(7, 5),))
        again = msgspec.json.decode(msgspec.json.encode(one), type=RequestRow)
        assert spans_of(again, NAMING) == spans_of(one, NAMING)

    def test_what_never_came_to_a_host_has_no_span_there(self) -> None:
        times = at(recv=0, body=1, pub=2, deq=3, done=90)
        found = spans(row(stamps=times, outcome=rec.Outcome.REJECTED, error=ErrorKind.OVERLOADED, host=0, status=429))
        assert list(found) == ["server chat chat", "internal receive"]
        assert found["server chat chat"].error == "overloaded"
        assert found["server chat chat"].attributes[names.ERROR_TYPE] == "overloaded"

    def test_each_attempt_is_a_call_of_a_host(self) -> None:
        failed = (1, ErrorKind.CONNECT_FAILED, 0, T0 + 1 * MS, 0, 0, 0, T0 + 2 * MS)
        one = row(failed_attempts=[failed], attempt_count=2)
        first, second = [span for span in spans_of(one, NAMING) if span.kind == CLIENT]
        assert (first.attributes[names.SERVER_ADDRESS], first.error) == ("gpu-0", "connect_failed")
        assert (second.attributes[names.SERVER_ADDRESS], second.error) == ("gpu-1", None)
        assert (first.attributes[names.PROVIDER], second.attributes[names.PROVIDER]) == ("unknown", "vllm")
        life = trace_ids.life_of("main", 77)
        for span, attempt in zip((first, second), one.attempts, strict=True):
            own = trace_ids.attempt_span_id(life, one.request_seq, attempt.start_mono_ns)
            assert span.span_id == own.hex(), "the id that the host was told"


class TestTimes:
    @settings(max_examples=100)
    @given(st.lists(st.one_of(st.just(0), st.integers(T0, T0 + 10**10)), min_size=15, max_size=15))
    def test_spans_are_made_of_whole_stages_whatever_happened(self, times: list[int]) -> None:
        times[0] = T0
        times[-1] = max(times)
        one = row(stamps=tuple(times))
        found = spans(one)
        known = {name: ns or 0 for name, ns in one.stages_ns().items()}
        begin_ns = one.start_wall_ns

        def until(stage: str) -> int:
            return begin_ns + sum(known[name] for name in STAGES[: STAGES.index(stage) + 1])

        receive = found["internal receive"]
        assert (receive.start_wall_ns, receive.end_wall_ns) == (begin_ns, until("handoff"))
        if "internal queue" in found:
            assert (found["internal queue"].start_wall_ns, found["internal queue"].end_wall_ns) == (
                until("handoff"),
                until("queue"),
            )
        if "internal respond" in found:
            respond = found["internal respond"]
            assert respond.start_wall_ns == until("host_first_token")
            assert respond.end_wall_ns == begin_ns + (one.e2e_ns or 0)
            assert respond.end_wall_ns - respond.start_wall_ns == known["decode"] + known["tail"]
        for span in found.values():
            assert begin_ns <= span.start_wall_ns <= span.end_wall_ns

    def test_an_attempt_begins_with_its_decision_and_tells_what_came_when(self) -> None:
        one = row()
        attempt = spans(one)["client chat chat"]
        begin_ns = one.start_wall_ns - one.recv_mono_ns
        assert attempt.start_wall_ns == begin_ns + one.attempts[0].start_mono_ns
        moments = [(event.name, event.wall_ns - begin_ns) for event in attempt.events]
        last = one.attempts[0]
        assert moments == [
            ("connected", last.conn_mono_ns),
            ("sent", last.sent_mono_ns),
            ("first_byte", last.first_byte_mono_ns),
            ("first_token", last.first_token_mono_ns),
        ]

    def test_tokens_are_told_of_where_they_matter(self) -> None:
        one = changed(row(), stalls=(RowStall(2 * MS, 1 * MS),))
        respond = spans(one)["internal respond"]
        tok1_ns = respond.start_wall_ns
        assert [(event.name, event.wall_ns - tok1_ns) for event in respond.events] == [
            ("first_token", 0),
            ("stall", 2 * MS),
            ("last_token", one.decode_ns),
        ]
        assert respond.events[1].attributes == {"ringrouter.gap_ms": 1.0}

    def test_stages_stand_in_milliseconds_and_sum_to_the_first_token(self) -> None:
        one = row()
        attributes = spans(one)["server chat chat"].attributes
        total_ms = sum(float(attributes[f"ringrouter.stage.{name}_ms"]) for name in STAGES[:11])  # type: ignore[arg-type]
        assert total_ms == pytest.approx(attributes["ringrouter.ttft_ms"])
        assert attributes["ringrouter.ttft_ms"] == pytest.approx((one.ttft_ns or 0) / 1e6)


class TestTools:
    def tools(self, one: RequestRow) -> Span:
        return spans(changed(one, tool_ns=50 * MS, tool_after=f"{'ef' * 16}-{'12' * 8}"))["internal execute_tool"]

    def test_the_time_of_the_clients_tools_is_a_span_that_says_it_is_inferred(self) -> None:
        one = row()
        span = self.tools(one)
        assert span.attributes == {names.OPERATION: "execute_tool", names.INFERRED: True}
        assert (span.start_wall_ns, span.end_wall_ns) == (one.start_wall_ns - 50 * MS, one.start_wall_ns)
        assert [(link.trace_id, link.span_id) for link in span.links] == [("ef" * 16, "12" * 8)]

    def test_it_is_beside_the_request_in_its_callers_trace_and_else_a_part_of_it(self) -> None:
        assert self.tools(changed(row(), **CALLER)).parent_id == "cd" * 8
        assert self.tools(row()).parent_id == server_span_id(row())


class TestAttributes:
    def test_they_are_the_conventions(self) -> None:
        one = changed(
            row(n_in=11, n_out=5, n_cached=3, max_tokens=64, temperature=0.7),
            tags={"session_id": "s-1", "request_id": "r-1", "feature_name": "search", "prompt_version": "v8",
                  "network_type": "wifi", "tier": "gold", "experiment": "e", "variant": "b"},
        )  # fmt: skip
        attributes = spans(one)["server chat chat"].attributes
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "vllm",
            "gen_ai.request.model": "chat",
            "gen_ai.response.model": "chat",
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": 64,
            "gen_ai.request.temperature": 0.7,
            "gen_ai.usage.input_tokens": 11,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 3,
            "gen_ai.conversation.id": "s-1",
            "session.id": "s-1",
            "network.connection.type": "wifi",
            "ringrouter.request.id": "r-1",
            "ringrouter.feature": "search",
            "ringrouter.prompt.version": "v8",
            "ringrouter.tag.tier": "gold",
            "ringrouter.variant": "b",
        }
        assert {name: attributes.get(name) for name in expected} == expected

    def test_an_experiment_is_the_evaluation_of_a_flag(self) -> None:
        one = changed(row(), tags={"experiment": "e", "variant": "b"})
        (event,) = [e for e in spans(one)["server chat chat"].events if e.name == "feature_flag.evaluation"]
        assert event.attributes == {"feature_flag.key": "e", "feature_flag.result.variant": "b"}

    @pytest.mark.parametrize(
        ("endpoint", "name"),
        [
            ("chat", "chat m"),
            ("completion", "text_completion m"),
            ("embeddings", "embeddings m"),
            ("rerank", "rerank m"),
        ],
    )
    def test_the_name_is_operation_and_model(self, endpoint: str, name: str) -> None:
        one = plain_row(endpoint=endpoint, trace_id="ab" * 16)
        assert spans_of(one, NAMING)[0].name == name

    def test_what_was_decided_stands_there_and_what_was_not_does_not(self) -> None:
        decided = RowDecision(
            deadline_ns=2 * MS, predicted_ttft_ns=None, prefix_tokens=0, asked_max_tokens=500, asked_temperature=None,
            asked_model="big", key="team", workload="batch", tool_count=3, tool_bytes=900, cache="miss", cache_hits=0,
            cache_misses=1, saved_ns=0,
        )  # fmt: skip
        whole = spans(changed(row(), decision=decided))["server chat chat"]
        own = {
            name: value for name, value in whole.attributes.items() if name.startswith(("ringrouter.asked", "ringr"))
        }
        assert own["ringrouter.deadline_ms"] == 2.0
        assert own["ringrouter.asked.max_tokens"] == 500
        assert (whole.attributes[names.REQUEST_MODEL], whole.attributes[names.RESPONSE_MODEL]) == ("big", "chat")
        assert not {"ringrouter.predicted_ttft_ms", "ringrouter.prefix_tokens", "ringrouter.cache.hits"} & set(own)
        assert [event.name for event in whole.events] == ["tools.spliced", "cache.miss"]

    def test_the_record_gives_it(self) -> None:
        record = rec.decode_done(payload(stamps=stamps(T0), host=1, model=1)) | {
            "tool_count": 2, "tool_bytes": 10, "cache": 1, "saved_us": 7, "workload": 1, "levers": 1,
            "asked_max_tokens": 9, "deadline_ns": T0 + 5,
        }  # fmt: skip

        class Names(FewNames):
            def text(self, _kind: int, value_id: int) -> str:
                return str(value_id or "")

        decision = row_of(record, Origin("main", 77, Names(), lambda t_ns: t_ns), 5).decision  # type: ignore[arg-type]
        assert decision is not None
        assert (decision.tool_count, decision.cache, decision.saved_ns, decision.workload) == (
            2,
            "hit",
            7000,
            "realtime",
        )
        assert (decision.asked_max_tokens, decision.asked_temperature, decision.deadline_ns) == (9, None, 5)


class TestUsers:
    def of(self, **naming: Any) -> dict[str, Any]:
        attributes = spans(changed(row(), tags={"user_id": "ann@example.com"}), Naming(**naming))["server chat chat"]
        return {name: value for name, value in attributes.attributes.items() if "user" in name}

    def test_by_default_only_a_keyed_hash_leaves(self) -> None:
        hashed = user_hash("ann@example.com", b"k" * 32)
        assert self.of(user_id="hash", user_key=b"k" * 32) == {"user.id": hashed, "user.hash": hashed}
        assert len(hashed) == 32
        assert user_hash("ann@example.com", b"j" * 32) != hashed

    def test_it_may_be_plain_or_left_out(self) -> None:
        assert self.of(user_id="plain") == {"user.id": "ann@example.com"}
        assert self.of(user_id="off") == {}


class TestNetwork:
    def test_the_share_is_upload_and_round_trip_of_what_the_client_sees(self) -> None:
        one = changed(row(), ttft_ns=80 * MS, upload_ns=10 * MS, rtt_us=20_000, min_rtt_us=15_000, total_retrans=2)
        assert network_share(one) == 0.3
        attributes = spans(one)["server chat chat"].attributes
        assert attributes["ringrouter.client.network_share"] == 0.3
        assert (attributes["ringrouter.client.rtt_ms"], attributes["ringrouter.client.retransmits"]) == (20.0, 2)

    @pytest.mark.parametrize("naming", [NAMING, Naming(has_proxies=True)])
    def test_nothing_is_said_of_it_where_it_is_not_known_or_a_proxys(self, naming: Naming) -> None:
        one = changed(row(), rtt_us=20_000 if naming.has_proxies else None)
        assert not [name for name in spans(one, naming)["server chat chat"].attributes if "client" in name]


class TestSampling:
    def test_the_caller_decides(self) -> None:
        for flags in (0, 1):
            assert is_sampled(changed(row(), **(CALLER | {"trace_flags": flags})), 0.5) is bool(flags)

    def test_without_one_the_ratio_does(self) -> None:
        assert is_sampled(row(), 1.0)
        assert not is_sampled(row(), 0.0)


def test_no_span_holds_what_a_host_said() -> None:
    """A host's error may quote the prompt."""
    one = changed(
        row(outcome=rec.Outcome.HOST_ERROR, error=ErrorKind.HOST_STATUS, message="canary prompt"), message="canary"
    )
    assert "canary" not in msgspec.json.encode(spans_of(one, NAMING)).decode()
