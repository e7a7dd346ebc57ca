"""docs/alerts.md says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from router import config
from router.observer.alerts import bodies
from router.observer.alerts.courier import Courier
from router.observer.alerts.model import Cause
from tests.support.alerts import alert, finding

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "alerts.md").read_text(encoding="utf-8")


def test_every_alert_is_explained() -> None:
    names = {bodies.labels_of(alert(finding(cause=cause)))["alertname"] for cause in Cause}
    assert names == set(re.findall(r"`(Ringrouter\w+)`", TEXT))


def test_every_example_is_a_configuration() -> None:
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    sinks = [sink for each in examples for sink in config.parse(f"version = 1\n{each}").observer.alerts.sinks]
    assert {sink.kind for sink in sinks} == {"alertmanager", "webhook", "log"}


def test_every_number_of_the_sinks_is_explained(tmp_path: Path) -> None:
    document = (DOCS / "metrics.md").read_text(encoding="utf-8")
    courier = Courier(config.parse("version = 1").observer.alerts, tmp_path, "", None)
    readings = list(courier.readings())
    assert readings
    for each in readings:
        assert each.name in document


def test_every_section_that_is_linked_is_there() -> None:
    titles = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
