"""Checks a document against the Trace Event Format, as far as viewers depend on it.

The format is Google's "Trace Event Format": the JSON object form, and of the event types those that a dump writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]

_EVERY = {"name": str, "ph": str, "ts": (int, float), "pid": int, "tid": int}
_MORE: dict[str, dict[str, Any]] = {
    "X": {"cat": str, "dur": (int, float), "args": dict},
    "i": {"cat": str, "s": str, "args": dict},
    "b": {"cat": str, "id": str, "args": dict},
    "e": {"cat": str, "id": str, "args": dict},
    "M": {"args": dict},
}
_METADATA = {"process_name", "thread_name"}
_SLACK_US = 1e-3
"""Times are microseconds with three decimals: sums of two differ in the last bits."""


def check_document(document: Any) -> list[Event]:
    """Check a whole document and return its events."""
    assert isinstance(document, dict), "the JSON object form"
    assert isinstance(document["traceEvents"], list)
    assert document.get("displayTimeUnit", "ms") in {"ms", "ns"}
    assert isinstance(document.get("otherData", {}), dict)
    events: list[Event] = document["traceEvents"]
    check_events(events)
    return events


def check_events(events: Sequence[Event]) -> None:
    """Check every event by itself, then that slices nest, async events pair and rows have names."""
    for event in events:
        _check_fields(event)
    _check_nesting([event for event in events if event["ph"] == "X"])
    _check_pairs([event for event in events if event["ph"] in "be"])
    _check_names(events)


def _check_fields(event: Event) -> None:
    assert event.get("ph") in _MORE, f"an event type that no viewer is asked for: {event}"
    for field, kinds in (_EVERY | _MORE[event["ph"]]).items():
        assert isinstance(event.get(field), kinds), f"{field} is missing or of the wrong type: {event}"
        assert not isinstance(event[field], bool), event
    assert event["ts"] >= 0, event
    assert event.get("dur", 0) >= 0, event
    if event["ph"] == "i":
        assert event["s"] in {"g", "p", "t"}, event
    if event["ph"] == "M":
        assert event["name"] in _METADATA, event
        assert isinstance(event["args"]["name"], str), event


def _check_nesting(slices: Sequence[Event]) -> None:
    """Check that two slices of one row never overlap unless one contains the other."""
    by_row: defaultdict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in slices:
        by_row[event["pid"], event["tid"]].append(event)
    for row in by_row.values():
        open_ends: list[float] = []
        for event in sorted(row, key=lambda each: (each["ts"], -each["dur"])):
            while open_ends and open_ends[-1] <= event["ts"] + _SLACK_US:
                open_ends.pop()
            end = event["ts"] + event["dur"]
            assert not open_ends or end <= open_ends[-1] + _SLACK_US, f"overlaps what it is not part of: {event}"
            open_ends.append(end)


def _check_pairs(events: Sequence[Event]) -> None:
    """Check that async events of one category and id begin, then end, each with the name it began with."""
    open_names: defaultdict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        stack = open_names[event["cat"], event["id"]]
        if event["ph"] == "b":
            stack.append(event)
        else:
            assert stack, f"ends and never began: {event}"
            begun = stack.pop()
            assert (begun["name"], begun["pid"]) == (event["name"], event["pid"])
            assert begun["ts"] <= event["ts"]
    assert not any(open_names.values()), "an async event never ends"


def _check_names(events: Sequence[Event]) -> None:
    """Check that every row that is drawn on has a name, once."""
    names: defaultdict[tuple[str, int, int], int] = defaultdict(int)
    for event in events:
        if event["ph"] == "M":
            names[event["name"], event["pid"], event["tid"]] += 1
    assert set(names.values()) <= {1}
    for event in events:
        if event["ph"] in "Xi" and event.get("s") != "g":
            assert names["process_name", event["pid"], 0], event
            assert names["thread_name", event["pid"], event["tid"]], event
