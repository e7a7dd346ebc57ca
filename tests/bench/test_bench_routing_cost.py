"""The program that says what a routing decision costs: a row for each policy, and its page filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import routing_cost


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_cost, "_BATCHES", 3)
    monkeypatch.setattr(routing_cost, "_BATCH", 5)
    monkeypatch.setattr(routing_cost, "LIMITS_US", {"prefix_affinity": 1e6})


@pytest.mark.usefixtures("quick")
def test_each_policy_has_a_row_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured decision-cost -->\n<!-- end -->\nafter\n", encoding="utf-8")
    assert routing_cost.main(["--hosts", "3", "--prompt-bytes", "2048", "--into", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == [
        *routing_cost.POLICIES
    ]
    assert "3 hosts of 16 slots, prompts of 2,048 bytes" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_limit_that_is_not_kept_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(routing_cost, "LIMITS_US", {"prefix_affinity": 0.001})
    assert routing_cost.main(["--hosts", "2", "--prompt-bytes", "1024"]) == 1
    assert "prefix_affinity: " in capsys.readouterr().err
