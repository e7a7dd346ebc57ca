"""Draws the router's configuration: half of them keep to the defaults, the others use what there is."""

from __future__ import annotations

from random import Random
from typing import Final

POLICIES: Final = (
    "least_outstanding", "round_robin", "weighted", "p2c_ewma", "least_predicted_ttft", "prefix_affinity",
)  # fmt: skip
FEATURE: Final = "chat"
"""A feature with rules of its own, where the configuration is not plain."""
CLASSES: Final = ("realtime", "interactive", "batch")
Section = dict[str, object]


def alias(model: str) -> str:
    """Return the other name of a model, where the configuration is not plain."""
    return f"{model}-latest"


def config_text(random: Random, models: list[str], *, plain: bool) -> str:
    """Return the TOML of everything but hosts, rings and listeners."""
    sections = _general(random)
    for index, name in enumerate(models):
        own: Section = {"fold": random.choice(["auto", "auto", "always", "never"])}
        sections[f"models.{name}"] = own
        if not plain:
            own["aliases"] = [alias(name)]
            if index == 0 and len(models) > 1 and random.random() < 0.6:
                own["fallback"] = models[1:]
            sections.update(_of_model(random, f"models.{name}", sections["limits"]["waiting"]))
    if not plain:
        sections.update(_standing(random))
        sections[f"features.{FEATURE}"] = _feature(random, models)
    return "".join(_text(name, section) for name, section in sections.items())


def _text(name: str, section: Section) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in section.items())


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return str(value)


def _general(random: Random) -> dict[str, Section]:
    times: Section = {
        "head_s": random.choice([0.5, 2]),
        "queue_s": random.choice([0.3, 1, 3]),
        "connect_s": random.choice([0.1, 0.5, 1]),
        "first_token_s": random.choice([0.3, 1, 3]),
        "idle_s": random.choice([0.2, 1, 2]),
        "client_stall_s": random.choice([0.3, 1, 2]),
        "total_s": random.choice([1.5, 4, 8]),
        "heartbeat_after_s": random.choice([0, 0, 0.15, 0.5]),
        "drain_s": random.choice([0, 0.3, 2]),
    }
    buffer = random.choice([4096, 16_384, 262_144])
    limits: Section = {
        "in_flight": random.choice([8, 64, 64]),
        "waiting": random.choice([0, 2, 16, 64]),
        "connections": random.choice([5, 200, 200, 200]),
        "client_buffer_bytes": buffer,
        "client_resume_bytes": random.choice([0, buffer // 4]),
        "attempts": random.choice([1, 2, 3, 4]),
        "retry_share": random.choice([0.2, 0]),
        "retries_per_s": random.choice([10, 10, 0.1]),
        "held_bytes": random.choice([1024, 65_536]),
        "pipelined_bytes": random.choice([1024, 262_144]),
        "answer_bytes": random.choice([2048, 1 << 20]),
    }
    health: Section = {
        "interval_s": random.choice([0.2, 0.5, 2]),
        "timeout_s": random.choice([0.2, 1]),
        "fail_after": random.randint(1, 3),
    }
    return {"timeouts": times, "limits": limits, "health": health}


def _standing(random: Random) -> dict[str, Section]:
    """Return what bars hosts, with numbers so small that it happens."""
    return {
        "health.breaker": {
            "failures": random.choice([0, 1, 3]),
            "share": random.choice([0, 0.3]),
            "requests_min": random.choice([1, 5]),
            "window_s": random.choice([1, 10]),
            "open_s": random.choice([0.1, 0.5]),
            "open_s_max": random.choice([0.5, 2]),
            "trial_requests": random.choice([1, 2]),
        },
        "health.outliers": {
            "interval_s": random.choice([0, 0.2, 1]),
            "hosts_min": 2,
            "requests_min": random.choice([1, 3]),
            "failed_share": 0.2,
            "ttft_factor": 1.5,
            "share_max": random.choice([0.34, 1.0]),
            "eject_s": random.choice([0.2, 1]),
            "eject_s_max": 2,
        },
    }


def _of_model(random: Random, prefix: str, waiting_max: object) -> dict[str, Section]:
    routing: Section = {
        "policy": random.choice(POLICIES),
        "sticky": random.choice(["", "", "session_id"]),
        "order": random.choice(["none", "none", "priority", "cost"]),
        "samples_min": 3,
        "explore": random.choice([0, 0.2]),
        "block_bytes": 16,
        "sessions_max": random.choice([1, 100]),
        "cache_tokens": 1024,
    }
    sections = {
        f"{prefix}.routing": routing,
        f"{prefix}.admission": {
            "default_class": random.choice(CLASSES),
            "on_deadline": random.choice(["refuse", "refuse", "serve"]),
            "fair_share": random.random() < 0.5,
        },
    }
    for name in CLASSES:
        rules: Section = {}
        if random.random() < 0.2:
            rules["deadline_ms"] = random.choice([50, 300, 1500])
        if random.random() < 0.2:
            rules["waiting"] = min(random.choice([0, 1, 5]), waiting_max)  # type: ignore[type-var]
        if random.random() < 0.3:
            rules["starve_s"] = random.choice([0.05, 0.5])
        sections[f"{prefix}.admission.classes.{name}"] = rules
    if random.random() < 0.3:
        sections[f"{prefix}.levers"] = {"max_output_tokens": random.choice([2, 50])}
    return sections


def _feature(random: Random, models: list[str]) -> Section:
    rules: Section = {"max_output_tokens": random.choice([3, 20])}
    if random.random() < 0.5:
        rules["deadline_ms"] = random.choice([50, 500])
    if random.random() < 0.5:
        rules["default_class"] = random.choice(CLASSES)
    if random.random() < 0.3:
        rules["model"] = random.choice(models)
    return rules
