"""``ringrouter explain``: what was decided about a request, in words, wherever its record is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import done_records
import pytest
from fake_router import FakeRouter

from router import cli
from router.cli import explain, explain_words
from router.errors import ErrorKind
from router.routing import PolicyId, Reason
from router.stamps import STAMPS
from router.telemetry import records as rec

MS = 1_000_000
START_NS = time.monotonic_ns() - 10**9
ROUTED_NS = done_records.stamps(START_NS)[STAMPS.index("routed")]


@pytest.fixture
def fake(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    fake.add_name(rec.NAME_HOST, 2, "gpu-1")
    fake.add_name(rec.NAME_MODEL, 2, "big")
    yield fake
    fake.die()


def explained(run_dir: Path, request_id: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(["explain", request_id, "--run-dir", str(run_dir)]) == 0
    return capsys.readouterr().out.splitlines()


def finish_affine(fake: FakeRouter) -> None:
    """A request that went to gpu-1 for its prompt; one other ran there, two at gpu-0, one had ended."""
    for number, host in enumerate((1, 1, 2)):
        fake.finish(f"other-{number}", request_seq=number, host=host, stamps=done_records.stamps(START_NS - 2 * MS))
    fake.finish("ended", request_seq=3, host=2, stamps=done_records.stamps(START_NS - 10**9))
    fake.finish(
        "r-1",
        request_seq=4,
        host=2,
        policy=PolicyId.PREFIX_AFFINITY,
        n_in=1520,
        prefix_tokens=1480,
        candidates=[(2, Reason.CHOSEN, 1480 / 1520), (1, Reason.ABOVE_BOUND, 1.6)],
        stamps=done_records.stamps(START_NS),
    )


def test_each_candidate_is_told_with_its_score_and_its_load(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_affine(fake)
    lines = explained(run_dir, "r-1", capsys)
    assert lines[0].startswith("request r-1 of chat at main, 20")
    assert "outcome    ok after 302 ms, first token after 101 ms" in lines
    at = lines.index("policy     prefix_affinity")
    assert lines[at + 1 : at + 3] == [
        "  gpu-1  chosen: it was thought to hold 1,480 of 1,520 prompt tokens; 1 other request ran there",
        "  gpu-0  it was above the load bound: 1.60 times the mean load; 2 other requests ran there",
    ]


def test_json_has_the_record_and_the_words(run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    finish_affine(fake)
    assert cli.main(["explain", "r-1", "--json", "--run-dir", str(run_dir)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["instance"], told["older_count"]) == ("ringrouter.explain/1", "main", 0)
    assert [(c["host"], c["reason"], c["running"]) for c in told["request"]["candidates"]] == [
        ("gpu-1", "chosen", 1),
        ("gpu-0", "above_bound", 2),
    ]


def test_deadline_class_levers_and_attempts_are_told(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = (1, ErrorKind.HOST_STATUS, 503, ROUTED_NS - 30 * MS, 1, 1, 1, ROUTED_NS - 10 * MS)
    fake.finish(
        "r-1",
        policy=PolicyId.LEAST_OUTSTANDING,
        candidates=[(2, Reason.CHOSEN, 0.25), (1, Reason.TRIED, 0.5)],
        host=2,
        attempt_count=2,
        failed_attempts=[failed],
        stamps=done_records.stamps(START_NS, queue_ms=40),
        waiting_ahead=3,
        workload=2,
        deadline_ns=START_NS + 400 * MS,
        predicted_ttft_us=120_000,
        levers=rec.Lever.MAX_TOKENS | rec.Lever.TEMPERATURE | rec.Lever.MODEL,
        max_tokens=512,
        asked_max_tokens=4096,
        temperature=0.5,
        asked_temperature=1.5,
        asked_model=2,
    )
    lines = explained(run_dir, "r-1", capsys)
    assert lines[0].startswith("request r-1 of chat (asked for big) at main")
    assert "waited     41.0 ms in the waiting room, 3 requests before it when it came, class interactive" in lines
    assert (
        "deadline   first token due 400 ms after it came, met with 300 ms to spare; "
        "the first token was foretold after 120 ms"
    ) in lines
    assert "levers     max_tokens 512 (asked 4,096), temperature 0.5 (asked 1.5), model chat" in lines
    assert "  gpu-1  chosen: 25% of its slots busy; 0 other requests ran there" in lines
    assert "  gpu-0  it had failed this request already; 0 other requests ran there" in lines
    assert "attempt 1  gpu-0: host_status 503 after 20.0 ms, the answer had begun" in lines
    assert "attempt 2  gpu-1: ok after 302 ms, first token after 101 ms" in lines


def test_a_missed_deadline_and_one_without_a_first_token(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.finish("late", stamps=done_records.stamps(START_NS), deadline_ns=START_NS + 60 * MS)
    assert "deadline   first token due 60.0 ms after it came, missed by 40.0 ms" in explained(run_dir, "late", capsys)
    stamps = list(done_records.stamps(START_NS))
    stamps[4:14] = [0] * 10
    fake.finish("never", stamps=tuple(stamps), deadline_ns=START_NS + 60 * MS, outcome=rec.Outcome.REJECTED)
    lines = explained(run_dir, "never", capsys)
    assert "deadline   first token due 60.0 ms after it came, there was none" in lines
    assert any(line.startswith("waited     it was never admitted") for line in lines)
    assert "policy     it was not routed" in lines


def test_a_request_in_flight_is_found(run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = (*done_records.stamps(START_NS)[:9], *[0] * 6)
    given: dict[str, Any] = {"request_id": "r-9", "host": 2, "model": 1, "phase": rec.Phase.PREFILL, "request_seq": 7}
    fake.inflight.write(0, done_records.payload(stamps=stamps, policy=PolicyId.P2C_EWMA, **given))
    lines = explained(run_dir, "r-9", capsys)
    assert "outcome    in flight: prefill" in lines
    assert "policy     p2c_ewma: its candidates are recorded when it ends" in lines


def test_the_newest_of_several_is_told_and_the_others_are_counted(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    for seq in range(3):
        fake.finish("again", request_seq=seq, n_in=seq)
    assert explained(run_dir, "again", capsys)[-1].startswith("older      2 more with this id")
    assert cli.main(["explain", "again", "--json", "--run-dir", str(run_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["request_seq"] == 2


def test_what_is_kept_is_told_when_nothing_is_found(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        fake.finish(f"r-{number}")
    assert cli.main(["explain", "r-1", "--run-dir", str(run_dir)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "ringrouter: no record of request 'r-1': overwritten, or never here"
    assert error[1].startswith("  main: 64 finished requests are kept, ")
    assert error[1].endswith("36 were overwritten")


def test_every_instance_is_looked_at_and_the_router_before_a_restart(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, other = FakeRouter(run_dir / "main"), FakeRouter(run_dir / "second")
    before.finish("early")
    other.finish("there")
    before.die()
    again = FakeRouter(run_dir / "main")
    assert explained(run_dir, "there", capsys)[0].startswith("request there of chat at second, ")
    assert explained(run_dir, "early", capsys)[0].startswith("request early of chat at main before its restart, ")
    assert cli.main(["explain", "there", "--run-dir", str(run_dir), "--instance", "main"]) == 1
    again.die()
    other.die()


def test_without_a_router_it_says_so(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "r-1", "--run-dir", str(run_dir)]) == 1
    assert "no router to look at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "reason", "score", "more", "expected"),
    [
        ("p2c_ewma", "slower", 0.3, {}, "a longer time to the first token was expected: time to the first token times"),
        ("least_predicted_ttft", "chosen", 0.25, {"predicted_ttft_us": 9}, "chosen: first token expected after 250 ms"),
        ("least_predicted_ttft", "chosen", 0.25, {}, "chosen: 25% of its slots busy"),
        ("prefix_affinity", "fewer_held", 0.5, {}, "it would have had more to read first: it was thought to hold 50%"),
        ("weighted", "not_its_turn", 3, {}, "it was not its turn: credit 3"),
        ("round_robin", "later_in_order", 2.5, {}, "a host before it in the order could take it: it ranks 2.5"),
        ("round_robin", "#99", 1.0, {}, "#99"),
    ],
)
def test_scores_have_their_units(policy: str, reason: str, score: float, more: dict[str, int], expected: str) -> None:
    record = {"policy": policy, "n_in": 0, "predicted_ttft_us": 0} | more
    assert explain_words.candidate_words({"reason": reason, "score": score}, record).startswith(expected)


def test_every_reason_has_words() -> None:
    assert {reason.name.lower() for reason in Reason} == set(explain_words._REASONS)


# ---------------------------------------------------------------- just ended
def in_flight(fake: FakeRouter, request_id: str) -> None:
    stamps = dict.fromkeys(STAMPS, 0) | {"recv": START_NS, "body": START_NS, "pub": START_NS, "deq": START_NS}
    row = done_records.payload(request_id=request_id, request_seq=9, model=1, stamps=tuple(stamps.values()))
    fake.inflight.write(0, row)


def test_a_request_whose_record_is_about_to_be_written_is_told_as_ended(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight(fake, "r-9")
    looks = []

    def end(_: float) -> None:
        looks.append(1)
        if len(looks) == 2:
            fake.finish("r-9", request_seq=9)
            fake.inflight.clear(0)

    monkeypatch.setattr(explain.time, "sleep", end)
    assert "outcome    ok after 302 ms, first token after 101 ms" in explained(run_dir, "r-9", capsys)
    assert len(looks) == 2


def test_one_that_runs_on_is_told_as_it_is(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight(fake, "r-9")
    monkeypatch.setattr(explain, "_WRITTEN_S", 0.02)
    monkeypatch.setattr(explain, "_LOOK_EVERY_S", 0.01)
    lines = explained(run_dir, "r-9", capsys)
    assert not [line for line in lines if line.startswith("outcome    ok")]
    assert "its candidates are recorded when it ends" in "\n".join(lines)
