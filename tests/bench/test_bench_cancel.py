"""The measurement of how soon a host learns that a client has left."""

from __future__ import annotations

import json

import pytest

from bench import cancel


def test_it_measures_both_phases(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Far under the limit of ten seconds, whatever else the machine does: the router tells its host at once."""
    monkeypatch.setattr("sys.argv", ["cancel", "--count", "20", "--json", "--limit-ms", "10000"])
    assert cancel.main() == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert [(each["phase"], each["request_count"]) for each in phases] == [("prefill", 20), ("decode", 20)]
    assert all(0 < each["p50"] <= each["p99"] <= each["most"] for each in phases)


def test_more_than_the_limit_is_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cancel", "--count", "1", "--limit-ms", "0"])
    assert cancel.main() == 1
    assert "p99, ms" in capsys.readouterr().out
