"""The time-outs that are in force: those of a model, and the longest and the shortest of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from router.config import Config
    from router.config.serving import Timeouts


def model_timeouts(config: Config, model_name: str) -> Timeouts:
    """Return the time-outs of a model: its own where given, the general ones elsewhere."""
    model = config.models.get(model_name)
    if model is None:
        return config.timeouts
    own = {f: v for f in model.timeouts.__struct_fields__ if (v := getattr(model.timeouts, f)) is not None}
    return msgspec.structs.replace(config.timeouts, **own)


def connect_s_max(config: Config) -> float:
    """Return the longest time that any request gives a connect."""
    return max(times.connect_s for times in _all(config))


def timeout_s_min(config: Config) -> float:
    """Return the shortest of all time-outs of requests: what the tick must never sleep past."""
    named: list[float] = [
        getattr(each, key) for each in _all(config) for key in each.__struct_fields__ if key != "drain_s"
    ]
    return min(value for value in named if value > 0)


def _all(config: Config) -> list[Timeouts]:
    return [config.timeouts, *(model_timeouts(config, name) for name in config.models)]
