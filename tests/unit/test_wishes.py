"""What a head says of class, deadline and feature."""

from __future__ import annotations

import pytest

from router.admission import BATCH, INTERACTIVE, REALTIME
from router.ingress.wishes import Wishes, read_wishes, with_metadata

TAG = b"x-ringrouter-tag-"


def test_a_head_that_says_nothing() -> None:
    assert read_wishes({b"host": b"x", b"content-type": b"application/json"}, has_features=True) is None
    assert read_wishes({TAG + b"channel": b"web", b"baggage": b"channel=web"}, has_features=True) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({b"x-ringrouter-class": b"realtime"}, Wishes(request_class=REALTIME, says_more=True)),
        ({b"x-ringrouter-class": b" Batch "}, Wishes(request_class=BATCH, says_more=True)),
        ({b"x-ringrouter-deadline-ms": b"250"}, Wishes(deadline_ms=250.0, says_more=True)),
        ({b"x-ringrouter-deadline-ms": b"1.5"}, Wishes(deadline_ms=1.5, says_more=True)),
        ({TAG + b"feature-name": b"chat"}, Wishes(feature="chat")),
        (
            {b"baggage": b"feature_name=chat,workload_class=batch"},
            Wishes(feature="chat", tagged_class=BATCH, says_more=True),
        ),
        ({TAG + b"workload-class": b"interactive"}, Wishes(tagged_class=INTERACTIVE, says_more=True)),
        ({TAG + b"workload-class": b"nightly", TAG + b"feature-name": b"f"}, Wishes(feature="f")),
        (
            {TAG + b"realtime": b"true", TAG + b"workload-class": b"batch"},
            Wishes(tagged_class=REALTIME, says_more=True),
        ),
        ({TAG + b"realtime": b"0", TAG + b"workload-class": b"batch"}, Wishes(tagged_class=BATCH, says_more=True)),
    ],
)
def test_what_a_head_says(headers: dict[bytes, bytes], expected: Wishes) -> None:
    assert read_wishes(headers, has_features=True) == expected


def test_a_feature_is_nothing_while_none_is_configured() -> None:
    headers = {TAG + b"feature-name": b"chat"}
    assert read_wishes(headers, has_features=False) is None
    assert read_wishes(headers | {TAG + b"realtime": b"1"}, has_features=False) is not None


@pytest.mark.parametrize("value", [b"", b"0", b"-5", b"soon", b"nan", b"inf", b"1e3", b"0x10", b"86400001", b"9" * 400])
def test_a_deadline_that_cannot_be_meant_is_named(value: bytes) -> None:
    wishes = read_wishes({b"x-ringrouter-deadline-ms": value}, has_features=False)
    assert wishes is not None
    assert wishes.fault is not None
    text, field = wishes.fault
    assert field == "x-ringrouter-deadline-ms"
    assert text.startswith("x-ringrouter-deadline-ms is '")
    assert text.endswith("expected milliseconds, a number from 1 to 86400000")
    assert len(text) < 200


def test_a_class_that_is_none_is_named() -> None:
    wishes = read_wishes({b"x-ringrouter-class": b"urgent"}, has_features=False)
    assert wishes is not None
    expected = "x-ringrouter-class is 'urgent': expected realtime, interactive or batch"
    assert wishes.fault == (expected, "x-ringrouter-class")


def test_tags_of_the_body_go_between_headers_and_baggage() -> None:
    headers = {b"baggage": b"feature_name=weak,workload_class=batch"}
    assert with_metadata(read_wishes(headers, has_features=True), headers, {"feature_name": "body"}) == Wishes(
        feature="body", tagged_class=BATCH, says_more=True
    )
    headers = {TAG + b"feature-name": b"head", b"x-ringrouter-deadline-ms": b"9"}
    assert with_metadata(
        read_wishes(headers, has_features=True), headers, {"feature_name": "body", "realtime": "1"}
    ) == Wishes(deadline_ms=9.0, feature="head", tagged_class=REALTIME, says_more=True)
    assert with_metadata(None, {}, {"channel": "web"}) is None
    assert with_metadata(None, {}, {"workload_class": 5}) == Wishes()
