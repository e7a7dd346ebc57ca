"""The row of a request: the stages sum, the definitions are those of docs/metrics.md, and other tools' are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ErrorKind
from router.observer.rows import NO_ICL, STAGE_FIELDS, IclSummary, Origin, RequestRow, RowCost, row_of
from router.routing import PolicyId, Reason
from router.stamps import STAGES, STAMPS
from router.telemetry import records as rec
from router.telemetry.host_report import SOURCE_TIMINGS
from tests.unit.done_records import MS, payload, stamps

T0 = 10**12


class FewNames:
    """Two hosts, one model, one tag."""

    def host(self, host_id: int) -> str:
        return {0: "", 1: "gpu-0", 2: "gpu-1"}[host_id]

    def model(self, model_id: int) -> str:
        return {0: "", 1: "chat"}[model_id]

    def tags(self, tag_ids: Sequence[int]) -> dict[str, str]:
        return {"feature_name": "search"} if tag_ids[0] else {}


ORIGIN = Origin("main", 77, FewNames(), lambda t_ns: t_ns + 10**18)  # type: ignore[arg-type]


def row(icl: IclSummary = NO_ICL, **given: Any) -> RequestRow:
    defaults = {
        "stamps": stamps(T0),
        "host": 1,
        "model": 1,
        "outcome": rec.Outcome.OK,
        "endpoint": rec.Endpoint.CHAT,
        "flags": rec.DoneFlag.STREAM,
        "attempt_count": 1,
    }
    return row_of(rec.decode_done(payload(**{**defaults, **given})), ORIGIN, 5, icl)


def at(**given: int) -> tuple[int, ...]:
    """Stamps by name, in ns after T0; what is not given did not happen."""
    return tuple(T0 + given[name] if name in given else 0 for name in STAMPS)


class TestDurations:
    @given(st.lists(st.one_of(st.just(0), st.integers(T0, T0 + 10**10)), min_size=15, max_size=15))
    def test_the_stages_sum_whatever_happened_and_in_whatever_order(self, times: list[int]) -> None:
        times[0] = T0
        one = row(stamps=tuple(times))
        known = {name: ns or 0 for name, ns in one.stages_ns().items()}
        first_ns = sum(known[name] for name in STAGES[:11])
        if one.ttft_ns is not None:
            assert first_ns == one.ttft_ns
            if one.e2e_ns is not None:
                assert one.e2e_ns == one.ttft_ns - known["egress"] + known["decode"] + known["tail"]
        for stage_ns in known.values():
            assert stage_ns >= 0

    def test_a_stage_that_did_not_happen_is_none(self) -> None:
        one = row(
            stamps=at(recv=0, body=1, pub=2, deq=3, done=90), outcome=rec.Outcome.REJECTED, host=0, attempt_count=0
        )
        assert (one.handoff_ns, one.queue_ns, one.host_first_byte_ns, one.decode_ns) == (1, None, None, None)
        assert (one.ttft_ns, one.e2e_ns, one.tpot_ns, one.early_tps, one.duration_ns) == (None, None, None, None, 90)
        assert one.attempts == ()

    def test_every_stage_has_its_field(self) -> None:
        assert tuple(name for name, _ in STAGE_FIELDS) == STAGES
        assert {field for _, field in STAGE_FIELDS} <= {field.name for field in msgspec.structs.fields(RequestRow)}

    def test_calendar_times_come_from_the_rings_anchor(self) -> None:
        one = row(stamps=at(recv=0, done=7))
        assert (one.start_wall_ns, one.end_wall_ns) == (T0 + 10**18, T0 + 10**18 + 7)

    def test_what_the_router_held_back_was_with_the_client_together_with_the_first_content(self) -> None:
        times = stamps(T0, first_ms=100)
        out1_ns = times[STAMPS.index("out1")] - T0
        one = row(stamps=times, ttfc_ns=T0 + 40 * MS, ttfo_ns=T0 + 100 * MS)
        assert (one.ttfc_ns, one.ttfo_ns, one.ttft_ns) == (out1_ns, out1_ns, out1_ns)
        assert one.host_ttfc_ns == T0 + 40 * MS - times[STAMPS.index("sent")]

    def test_content_is_a_chunk_also_where_no_other_was_told(self) -> None:
        one = row()
        assert (one.ttfc_ns, one.host_ttfc_ns) == (one.ttft_ns, one.host_ttft_ns)

    def test_an_answer_after_reasoning_has_its_own_time(self) -> None:
        one = row(ttfc_ns=T0 + 40 * MS, ttfo_ns=T0 + 250 * MS)
        assert one.ttfo_ns == 250 * MS

    def test_a_folded_answer_comes_all_at_once(self) -> None:
        times = at(recv=0, body=0, pub=0, deq=0, admitted=0, routed1=0, routed=0, conn=0, sent=10, hfb=20, tok1=30,
                   out1=99, tokN=90, outN=99, done=99)  # fmt: skip
        one = row(stamps=times, flags=rec.DoneFlag.FOLDED, ttfc_ns=T0 + 25, ttfo_ns=T0 + 50)
        assert (one.ttft_ns, one.ttfc_ns, one.ttfo_ns, one.e2e_ns) == (99, 99, 99, 99)
        assert one.host_ttft_ns == 20
        assert one.router_overhead_ns == 99 - 60 - 20, "decoding is the host's, though the egress stage spans it"


class TestCounts:
    def test_without_usage_counts_are_estimates_or_unknown_never_zero(self) -> None:
        one = row(flags=rec.DoneFlag.STREAM | rec.DoneFlag.N_OUT_ESTIMATED, n_out=9, n_content=9)
        assert (one.n_out, one.n_out_estimated) == (9, True)
        assert (one.n_in, one.n_cached, one.n_reasoning) == (None, None, None)

    def test_with_usage_they_are_the_hosts(self) -> None:
        one = row(n_in=11, n_out=9, n_cached=3, n_reasoning=2)
        assert (one.n_in, one.n_out, one.n_out_estimated, one.n_cached, one.n_reasoning) == (11, 9, False, 3, 2)

    def test_what_the_host_and_the_kernel_did_not_say_is_none(self) -> None:
        one = row()
        assert (one.host_prompt_ms, one.host_timing_source, one.host_cache_n, one.rtt_us) == (None, "", None, None)

    def test_what_they_said_is_there(self) -> None:
        said = {"prompt_ms": 2.5, "predicted_ms": 8.0, "prompt_n": 4, "cache_n": 0, "timing_source": SOURCE_TIMINGS}
        one = row(**said, rtt_us=30, snd_cwnd=10, tcp_valid=1)
        assert (one.host_prompt_ms, one.host_predicted_ms, one.host_cache_n) == (2.5, 8.0, 0)
        assert (one.host_timing_source, one.rtt_us, one.retrans) == ("timings", 30, 0)

    def test_tags_hold_the_free_texts_too(self) -> None:
        one = row(tag_ids={0: 1}, user_id="u-1", request_id="r-1")
        assert one.tags == {"feature_name": "search", "user_id": "u-1", "request_id": "r-1"}
        assert (one.request_id, one.key) == ("r-1", ("main", 77, 0))

    def test_words_are_words_also_those_of_a_newer_router(self) -> None:
        one = row(policy=PolicyId.LEAST_OUTSTANDING, candidates=[(1, Reason.CHOSEN, 0.25), (2, 99, 0.5)], outcome=77)
        assert (one.policy, one.outcome, one.error) == ("least_outstanding", "#77", "")
        assert [(each.host, each.reason) for each in one.candidates] == [("gpu-0", "chosen"), ("gpu-1", "#99")]

    def test_a_cost_makes_another_row(self) -> None:
        cost = RowCost(0.1, 0.0, None, None, "EUR", "tokens", "")
        one = row()
        assert (one.cost, one.with_cost(cost).cost) == (None, cost)

    def test_a_row_survives_the_journey_through_json(self) -> None:
        one = row(candidates=[(1, Reason.CHOSEN, 0.25)], user_id="u").with_cost(
            RowCost(None, None, 5, 0, "", "", "gap")
        )
        assert msgspec.json.decode(msgspec.json.encode(one), type=RequestRow) == one


FAILED = (2, ErrorKind.CONNECT_FAILED, 0, T0 + 1, 0, 0, 0, T0 + 9)


class TestAttempts:
    def test_a_good_one_ends_with_the_hosts_last_event(self) -> None:
        times = stamps(T0, last_ms=300)
        (only,) = row(NO_ICL._replace(host_end_mono_ns=T0 + 301 * MS), stamps=times).attempts
        assert (only.outcome, only.host, only.may_drain) == ("ok", "gpu-0", False)
        assert (only.start_mono_ns, only.end_mono_ns) == (times[STAMPS.index("routed")], T0 + 301 * MS)
        (only,) = row(stamps=times).attempts
        assert only.end_mono_ns == T0 + 300 * MS, "without its events, with the last token"

    def test_failed_ones_come_first(self) -> None:
        one = row(failed_attempts=[FAILED], attempt_count=2)
        assert [(each.host, each.outcome, each.error) for each in one.attempts] == [
            ("gpu-1", "failed", "connect_failed"),
            ("gpu-0", "ok", ""),
        ]
        assert one.attempts[0].sent_mono_ns is None

    def test_the_one_that_failed_for_good_is_not_there_twice(self) -> None:
        times = at(recv=0, routed1=1, routed=1, done=9)
        one = row(stamps=times, failed_attempts=[FAILED], host=2, outcome=rec.Outcome.HOST_ERROR)
        assert [each.outcome for each in one.attempts] == ["failed"]

    def test_a_time_out_leaves_the_host_at_work(self) -> None:
        late = (1, ErrorKind.FIRST_TOKEN_TIMEOUT, 0, T0 + 1, T0 + 2, T0 + 3, 0, T0 + 9)
        one = row(stamps=at(recv=0, routed=1, done=9), failed_attempts=[late], outcome=rec.Outcome.TIMEOUT)
        assert [each.may_drain for each in one.attempts] == [True]

    def test_a_cancelled_one_ends_when_the_client_was_seen_to_have_left(self) -> None:
        times = at(recv=0, routed=10, conn=11, sent=12, hfb=20, tok1=30, tokN=40, done=60)
        one = row(stamps=times, outcome=rec.Outcome.CLIENT_GONE, left_ns=T0 + 55, cancel_latency_ns=3, tokens_saved=100)
        (only,) = one.attempts
        assert (only.outcome, only.end_mono_ns, only.may_drain) == ("cancelled", T0 + 55, True)
        assert (one.left_ns, one.cancel_latency_ns, one.tokens_saved) == (55, 3, 100)

    def test_a_client_that_left_when_all_was_generated_cancelled_nothing(self) -> None:
        times = at(recv=0, routed=10, conn=11, sent=12, hfb=20, tok1=30, tokN=40, done=9000)
        one = row(stamps=times, outcome=rec.Outcome.CLIENT_STALLED, left_ns=T0 + 9000)
        (only,) = one.attempts
        assert (only.outcome, only.end_mono_ns, only.may_drain) == ("ok", T0 + 40, False)
        assert one.tokens_saved is None


# ---------------------------------------------------------------- other tools, restated from their sources
class Chunk(NamedTuple):
    """One chunk as a client reads it: ``kind`` is role, reasoning, text, finish or usage."""

    t_ns: int
    kind: str


CONTENT = {"text", "reasoning"}


def vllm_bench(chunks: list[Chunk], start_ns: int, n_out: int) -> dict[str, Any]:
    """``endpoint_request_func.py``: the first chunk with choices counts, and every gap between two of them."""
    times = [chunk.t_ns for chunk in chunks if chunk.kind != "usage"]
    ttft_ns, latency_ns = times[0] - start_ns, times[-1] - start_ns
    itl_ns = [b - a for a, b in pairwise(times)]
    return {"ttft": ttft_ns, "tpot": (latency_ns - ttft_ns) / (n_out - 1), "itl": itl_ns}


def aiperf(chunks: list[Chunk], start_ns: int, n_out: int) -> dict[str, Any]:
    """AIPerf: only responses with content count; reasoning is content, but not output."""
    content = [chunk for chunk in chunks if chunk.kind in CONTENT]
    times = [chunk.t_ns for chunk in content]
    return {
        "ttft": times[0] - start_ns,
        "ttfo": next(chunk.t_ns for chunk in content if chunk.kind == "text") - start_ns,
        "itl": (times[-1] - times[0]) / (n_out - 1),
        "icl": [b - a for a, b in pairwise(times)],
    }


def guidellm(chunks: list[Chunk], start_ns: int, n_out: int) -> dict[str, Any]:
    """GuideLLM: its TPOT includes the first token, its ITL does not."""
    times = [chunk.t_ns for chunk in chunks if chunk.kind in CONTENT]
    return {"tpot": (times[-1] - start_ns) / n_out, "itl": (times[-1] - times[0]) / (n_out - 1)}


def otel_server(chunks: list[Chunk], start_ns: int, n_out: int) -> dict[str, Any]:
    """``gen_ai.server.*``: the duration runs to the last byte, here to the last content."""
    times = [chunk.t_ns for chunk in chunks if chunk.kind in CONTENT]
    ttft_ns, duration_ns = times[0] - start_ns, times[-1] - start_ns
    return {"ttft": ttft_ns, "tpot": (duration_ns - ttft_ns) / (n_out - 1), "duration": duration_ns}


def mlperf(chunks: list[Chunk], n_out: int) -> float:
    """MLPerf inference: the average interval between all the tokens."""
    times = [chunk.t_ns for chunk in chunks if chunk.kind in CONTENT]
    return (times[-1] - times[0]) / (n_out - 1)


def row_of_chunks(chunks: list[Chunk], n_out: int) -> RequestRow:
    """The row of a request whose client read these chunks, through a router that takes no time."""
    content = [chunk for chunk in chunks if chunk.kind in CONTENT]
    first, last = content[0].t_ns, content[-1].t_ns
    times = dict.fromkeys(STAMPS, T0) | {"hfb": chunks[0].t_ns, "tok1": first, "out1": first}
    times |= {"tokN": last, "outN": last, "done": chunks[-1].t_ns}
    text_ns = next(chunk.t_ns for chunk in content if chunk.kind == "text")
    return row(
        stamps=tuple(times.values()),
        ttfc_ns=chunks[0].t_ns,
        ttfo_ns=text_ns,
        n_out=n_out,
        n_first=1,
        n_content=len(content),
    )


@st.composite
def answers(draw: st.DrawFn, *, role: bool) -> tuple[list[Chunk], int]:
    """Answers whose every chunk is one token, with reasoning in front now and then."""
    reasoning_count, text_count = draw(st.integers(0, 4)), draw(st.integers(2, 30))
    kinds = ["role"] * role + ["reasoning"] * reasoning_count + ["text"] * text_count + ["finish"] * role + ["usage"]
    t_ns, chunks = T0, []
    for kind in kinds:
        t_ns += draw(st.integers(1, 10**9))
        chunks.append(Chunk(t_ns, kind))
    return chunks, reasoning_count + text_count


class TestOtherTools:
    @given(answers(role=True))
    def test_equal_where_the_definitions_are(self, answer: tuple[list[Chunk], int]) -> None:
        chunks, n_out = answer
        one = row_of_chunks(chunks, n_out)
        theirs = aiperf(chunks, T0, n_out)
        assert (one.ttft_ns, one.ttfo_ns) == (theirs["ttft"], theirs["ttfo"])
        assert one.tpot_ns == pytest.approx(theirs["itl"])
        assert one.tpot_ns == pytest.approx(guidellm(chunks, T0, n_out)["itl"])
        assert one.tpot_ns == pytest.approx(mlperf(chunks, n_out))
        assert one.tpot_ns == pytest.approx(otel_server(chunks, T0, n_out)["tpot"])
        assert (one.ttft_ns, one.e2e_ns) == tuple(otel_server(chunks, T0, n_out)[key] for key in ("ttft", "duration"))
        assert one.host_ttfc_ns == vllm_bench(chunks, T0, n_out)["ttft"], "a role-only chunk counts for vLLM"

    @given(answers(role=True))
    def test_different_where_they_are_not(self, answer: tuple[list[Chunk], int]) -> None:
        chunks, n_out = answer
        one = row_of_chunks(chunks, n_out)
        assert one.ttft_ns is not None
        assert one.tpot_ns is not None
        assert one.ttft_ns > vllm_bench(chunks, T0, n_out)["ttft"]
        assert one.tpot_ns < vllm_bench(chunks, T0, n_out)["tpot"], "it counts from the role-only to the finish chunk"
        assert guidellm(chunks, T0, n_out)["tpot"] * n_out == pytest.approx(one.ttft_ns + one.tpot_ns * (n_out - 1))

    @given(answers(role=False))
    def test_vllm_agrees_where_every_chunk_has_content(self, answer: tuple[list[Chunk], int]) -> None:
        chunks, n_out = answer
        one = row_of_chunks(chunks, n_out)
        theirs = vllm_bench(chunks, T0, n_out)
        assert one.ttft_ns == theirs["ttft"]
        assert one.tpot_ns == pytest.approx(theirs["tpot"])
        assert aiperf(chunks, T0, n_out)["icl"] == theirs["itl"]
