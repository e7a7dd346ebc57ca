"""The models of tests/ringbuffer over thousands of long runs, on both backends."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ringbuffer import words
from tests.ringbuffer import test_ring_models as models

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
MANY = settings(models.SETTINGS, max_examples=1000, stateful_step_count=100)


@pytest.mark.parametrize("backend", ["_words", "_plain"])
@pytest.mark.parametrize(
    "model", [models.LossyModel, models.GatingModel, models.TableModel, models.DistinctErrorsModel]
)
def test_the_model_holds(monkeypatch: pytest.MonkeyPatch, model: type[RuleBasedStateMachine], backend: str) -> None:
    module = pytest.importorskip(f"ringbuffer.{backend}", reason="the C extension was not built: no compiler")
    monkeypatch.setattr(words, "core", module)
    run_state_machine_as_test(model, settings=MANY)
