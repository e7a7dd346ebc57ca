"""Levers: what rules change of a request, and that they change nothing else."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import pytest

from router.config import FeatureConfig, LeverRules
from router.levers import NOT_ASKED, Limits, apply, limits_of
from router.messages import edit_body, lever_fields
from router.telemetry.records import Lever

NONE = Limits(None, None, None, None, None)
CAP = NONE._replace(max_output_tokens=512)


def edits(limits: Limits, fields: dict[str, Any], limit_field: str = "max_tokens") -> dict[str, float]:
    levered = apply(limits, fields, limit_field)
    return {} if levered is None else levered.edits


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 4096}, {"max_tokens": 512}),
        ({"max_tokens": 512}, {}),
        ({"max_tokens": 0}, {}),
        ({"max_tokens": 512.5}, {"max_tokens": 512}),
        ({"max_completion_tokens": 4096}, {"max_completion_tokens": 512}),
        ({"max_completion_tokens": 100, "max_tokens": 4096}, {"max_tokens": 512}),
        ({"max_tokens": 100, "n_predict": -1}, {"n_predict": 512}),
        ({"max_tokens": -1}, {"max_tokens": 512}),
        ({"max_tokens": "4096"}, {"max_tokens": 512}),
        ({"max_tokens": True}, {"max_tokens": 512}),
        ({"max_tokens": None}, {"max_tokens": 512}),
        ({"max_tokens": None, "max_completion_tokens": 7}, {}),
        ({}, {"max_tokens": 512}),
    ],
)
def test_a_cap_holds_whatever_the_request_says(fields: dict[str, Any], expected: dict[str, int]) -> None:
    assert edits(CAP, fields) == expected


def test_the_number_is_added_by_the_name_of_the_api() -> None:
    assert edits(CAP, {}, "max_output_tokens") == {"max_output_tokens": 512}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"max_tokens": 256}),
        ({"max_tokens": None}, {"max_tokens": 256}),
        ({"max_tokens": 4096}, {}),
        ({"n_predict": -1}, {}),
    ],
)
def test_a_default_is_for_those_who_say_nothing(fields: dict[str, Any], expected: dict[str, int]) -> None:
    assert edits(NONE._replace(default_max_output_tokens=256), fields) == expected


def test_a_default_above_the_cap_of_another_section_is_the_cap() -> None:
    assert edits(CAP._replace(default_max_output_tokens=1000), {}) == {"max_tokens": 512}


@pytest.mark.parametrize(
    ("limits", "given", "expected"),
    [
        (NONE._replace(temperature_max=1.0), 1.8, 1.0),
        (NONE._replace(temperature_max=1.0), 1.0, None),
        (NONE._replace(temperature_min=0.5), 0, 0.5),
        (NONE._replace(temperature_min=0.5, temperature_max=0.7), 0.6, None),
        (NONE._replace(temperature_max=1.0), None, None),
        (NONE._replace(temperature_max=1.0), "hot", None),
        (NONE._replace(default_temperature=0.3), None, 0.3),
        (NONE._replace(default_temperature=0.3), 0, None),
        (NONE._replace(default_temperature=0.3, temperature_min=0.4), None, 0.4),
    ],
)
def test_temperatures_are_bounded(limits: Limits, given: Any, expected: float | None) -> None:
    changed = {} if expected is None else {"temperature": expected}
    assert edits(limits, {"temperature": given}) == changed
    if given is None:
        assert edits(limits, {}) == changed


def test_what_was_changed_is_told() -> None:
    limits = CAP._replace(temperature_max=1.0)
    levered = apply(limits, {"max_tokens": 4096, "temperature": 1.75}, "max_tokens")
    assert levered is not None
    assert levered.notes == ("max_tokens=512 (asked 4096)", "temperature=1 (asked 1.75)")
    assert levered.flags == Lever.MAX_TOKENS | Lever.TEMPERATURE
    assert (levered.asked_max_tokens, levered.asked_temperature) == (4096, 1.75)
    assert (levered.max_tokens, levered.temperature) == (512, 1.0)
    unsaid = apply(CAP, {}, "max_tokens")
    assert unsaid is not None
    assert unsaid.notes == ("max_tokens=512 (not asked)",)
    assert (unsaid.asked_max_tokens, unsaid.asked_temperature) == (0, NOT_ASKED)
    assert apply(CAP, {"max_tokens": 5}, "max_tokens") is None


def test_each_rule_of_a_feature_goes_before_the_same_of_the_model() -> None:
    feature = FeatureConfig(max_output_tokens=8192, default_temperature=0.0)
    model = LeverRules(max_output_tokens=512, temperature_max=1.0, default_temperature=0.7)
    assert limits_of(feature, model) == Limits(8192, None, None, 1.0, 0.0)
    assert limits_of(None, model) == Limits(512, None, None, 1.0, 0.7)
    assert not limits_of(FeatureConfig(model="other"), LeverRules()).have_rules


def draw_value(random: Random, depth: int = 0) -> Any:
    kinds = [None, True, random.randrange(-9, 10**12), random.random(), 'te"xt\\ \u20ac\n' * random.randrange(4)]
    if depth < 3:
        kinds += [[draw_value(random, depth + 1) for _ in range(random.randrange(4))]] * 2
        kinds += [{f"k{i}": draw_value(random, depth + 1) for i in range(random.randrange(4))}] * 2
    return random.choice(kinds)


NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "temperature")


@pytest.mark.parametrize("seed", range(200))
def test_nothing_else_of_a_body_changes(seed: int) -> None:
    random = Random(seed)
    items = [("model", "m"), ("messages", draw_value(random)), ("metadata", {"max_tokens": 9})]
    items += [(f"own{i}", draw_value(random)) for i in range(random.randrange(6))]
    items += [(name, random.choice([None, -1, 0, 7, 600, 1.5, "9"])) for name in NAMES if random.random() < 0.4]
    random.shuffle(items)
    body = json.dumps(dict(items), ensure_ascii=random.random() < 0.5, indent=random.choice([None, 2])).encode()
    limits = Limits(
        random.choice([None, 512]), random.choice([None, 256]), random.choice([None, 0.5]), random.choice([None, 1.0]),
        random.choice([None, 0.75]),
    )  # fmt: skip
    fields = lever_fields(body)
    assert fields == {name: value for name, value in items if name in NAMES}
    levered = apply(limits, fields, "max_tokens")
    if levered is None:
        return
    add = {name: json.dumps(value).encode() for name, value in levered.edits.items() if name not in fields}
    replace = {name: json.dumps(value).encode() for name, value in levered.edits.items() if name in fields}
    edited = edit_body(body, add, replace)
    raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
    before, after = raw.decode(body), raw.decode(edited)
    assert after.keys() == before.keys() | levered.edits.keys()
    for name, value in after.items():
        if name in levered.edits:
            assert json.loads(bytes(value)) == levered.edits[name]
        else:
            assert bytes(value) == bytes(before[name]), "byte for byte as it came"
    assert apply(limits, lever_fields(edited), "max_tokens") is None, "what was changed once is within the rules"


def test_an_escaped_or_repeated_name_is_no_way_around_a_cap() -> None:
    for body in (b'{"max\\u005ftokens": 4096, "model": "m"}', b'{"max_tokens": 1, "model": "m", "max_tokens": 4096}'):
        fields = lever_fields(body)
        levered = apply(CAP, fields, "max_tokens")
        assert levered is not None
        edited = edit_body(body, {}, dict.fromkeys(levered.edits, b"512"))
        assert json.loads(edited) == {"model": "m", "max_tokens": 512}
        assert edited.count(b"tokens") == 1
