"""The waterfall: every stage, one axis, no line wider than the terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from done_records import MS, payload, stamps
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ErrorKind
from router.stamps import STAGES, STAMPS
from router.telemetry import records as rec
from router.telemetry import waterfall
from router.telemetry.reader import resolve


class NoNames:
    def host(self, host_id: int) -> str:
        return f"host-{host_id}" if host_id else ""

    def model(self, model_id: int) -> str:
        return f"model-{model_id}"

    def tags(self, tag_ids: Any) -> dict[str, str]:
        return {}


def done(**given: Any) -> dict[str, Any]:
    defaults = {
        "stamps": stamps(1000),
        "outcome": rec.Outcome.OK,
        "endpoint": rec.Endpoint.CHAT,
        "flags": rec.DoneFlag.STREAM,
        "host": 1,
        "model": 1,
        "n_in": 34,
        "n_out": 21,
        "n_first": 1,
        "early_tokens": 20,
        "visible_tokens": 21,
    }
    return resolve(rec.decode_done(payload(**{**defaults, **given})), NoNames())  # type: ignore[arg-type]


def row(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"  {label} "))


def test_every_stage_stands_in_order_with_its_duration() -> None:
    text = waterfall.render(done())
    labels = [stage.replace("_", " ") for stage in STAGES]
    found = [line[2:20].strip() for line in text.splitlines() if line[2:20].strip() in labels]
    assert found == labels
    assert "1.00 ms" in row(text, "ingress")
    assert "200 ms" in row(text, "decode")


def test_the_facts_below_are_those_of_the_record() -> None:
    text = waterfall.render(done())
    assert "101 ms" in row(text, "TTFT")
    assert "10.0 ms" in row(text, "TPOT")
    assert "100 tokens/s" in row(text, "TPOT")
    assert "301 ms" in row(text, "E2E")
    assert "21 tokens" in row(text, "first 2 s")
    assert "6.00 ms" in row(text, "router overhead")
    assert "34 tokens" in row(text, "prompt")
    assert "21 tokens" in row(text, "answer")


def test_bars_follow_each_other_on_the_axis() -> None:
    text = waterfall.render(done())
    first, decode = row(text, "host first byte"), row(text, "decode")
    assert first.rstrip("┊ ").endswith("▓")
    assert len(first.rstrip("┊ ")) == decode.index("▓") == row(text, "egress").index("▏")


def test_the_whole_width_is_the_end_to_end_latency() -> None:
    assert len(row(waterfall.render(done(), width=80), "tail")) == 80
    assert len(row(waterfall.render(done(), width=120), "tail")) == 120


def test_a_stage_too_short_for_a_cell_is_still_visible() -> None:
    assert "▏" in row(waterfall.render(done(stamps=stamps(1000, last_ms=100_000))), "send")


def test_a_stage_that_took_no_time_has_no_bar_and_one_that_never_came_no_time() -> None:
    cut = stamps(1000)[:9] + (0,) * 5 + (1000 + 800 * MS,)
    text = waterfall.render(
        done(stamps=cut, outcome=rec.Outcome.TIMEOUT, error=ErrorKind.FIRST_TOKEN_TIMEOUT, message="no token in time")
    )
    assert row(text, "upload").endswith("1.00 ms  ▏")
    assert row(text, "decode").endswith("–")
    assert "792 ms" in row(text, "until it ended")
    assert "timeout: first_token_timeout" in text.splitlines()[0]
    assert text.endswith("\n  no token in time")
    assert "first token with the client" not in text
    assert row(text, "TTFT").split()[1] == "–"


def test_failed_attempts_are_listed() -> None:
    text = waterfall.render(done(failed_attempts=[(2, ErrorKind.CONNECT_FAILED, 0, 0, 0, 0, 0, 0)]))
    assert "a try at host-2 failed: connect_failed" in text


def test_an_estimate_says_so() -> None:
    flags = rec.DoneFlag.STREAM | rec.DoneFlag.N_OUT_ESTIMATED
    assert "reported no usage" in row(waterfall.render(done(flags=flags)), "answer")


def test_a_folded_answer_owes_the_hosts_decoding_to_nobody_but_the_host() -> None:
    at = list(stamps(1000))
    at[STAMPS.index("out1")] = at[STAMPS.index("outN")]
    folded = done(stamps=tuple(at), flags=rec.DoneFlag.FOLDED)
    assert folded["ttft_ns"] == folded["e2e_ns"]
    assert folded["router_overhead_ns"] == 6 * MS, "the egress stage of a folded answer spans the decoding"


def test_colour_is_the_same_text_with_escapes() -> None:
    plain, coloured = waterfall.render(done()), waterfall.render(done(), colour=True)
    assert "\x1b[" not in plain
    assert re.sub(r"\x1b\[\d*m", "", coloured).split() == plain.split()


ANY_STAMPS = st.lists(st.one_of(st.just(0), st.integers(1, 10**13)), min_size=15, max_size=15)


@given(ANY_STAMPS, st.integers(1, 200), st.sampled_from(list(rec.Outcome)))
def test_no_line_is_wider_than_the_terminal_whatever_the_stamps(
    at: list[int], width: int, outcome: rec.Outcome
) -> None:
    text = waterfall.render(done(stamps=tuple(at), outcome=outcome, message="x y " * 30, n_cached=9), width=width)
    assert max(len(line) for line in text.splitlines()) <= max(width, 80)
    assert text == "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("name", STAMPS)
def test_a_request_that_ended_anywhere_can_be_drawn(name: str) -> None:
    upto = STAMPS.index(name)
    at = [t if index <= upto else 0 for index, t in enumerate(stamps(1000))]
    at[-1] = at[-1] or 10**9
    assert waterfall.render(done(stamps=tuple(at), outcome=rec.Outcome.CLIENT_GONE))


def test_what_a_cache_and_the_tools_did_stands_below_the_bars_only_where_they_took_part() -> None:
    assert not {"cache", "tools"} & {line[2:17].strip() for line in waterfall.render(done()).splitlines()}
    text = waterfall.render(
        done(cache=rec.CacheUse.HIT, cache_hits=1, saved_us=250_000, tool_count=50, tool_bytes=20_000)
    )
    assert row(text, "cache").split(maxsplit=1)[1].split() == ["hit", "250", "ms", "sooner", "than", "a", "host"]
    assert "filled in by the router: 20,000 bytes" in row(text, "tools")
    assert "3 of 5 found" in row(
        waterfall.render(done(cache=rec.CacheUse.PARTIAL, cache_hits=3, cache_misses=2)), "cache"
    )
