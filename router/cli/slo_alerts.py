"""``ringrouter slo alerts`` and ``ringrouter slo test-alert``: what fires, and whether anybody would hear of it.

Exit codes: 0 ok, 1 when no observer answers, or a sink did not take the test alert; 2 usage, or no such sink.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from typing import Final
from urllib.parse import quote

import msgspec

from router.cli import EXIT_FAILED, EXIT_OK, fail, fail_to_ask
from router.cli.location import observer_address
from router.errors import ConfigError
from router.observer import client
from router.observer.client import ObserverError

TEST_TIMEOUT_S: Final = 125.0
"""Longer than any sink may take (``observer.alerts.sinks.timeout_s``)."""
_PAGE_SCHEMA: Final = "ringrouter.alerts/1"


def show(args: argparse.Namespace) -> int:
    """Print the alerts."""
    path = "/alerts.json" + (f"?fingerprint={quote(args.fingerprint)}" if args.fingerprint else "")
    try:
        body = client.get(observer_address(args), path)
    except (ConfigError, ObserverError) as error:
        return fail_to_ask(error)
    if args.json:
        sys.stdout.write(body.decode() + "\n")
        return EXIT_OK
    return _print_page(body, args.fingerprint, with_recent=args.recent or bool(args.fingerprint))


def _print_page(body: bytes, only: str, *, with_recent: bool) -> int:
    try:
        from router.observer.alerts import bodies, text  # noqa: PLC0415 - other commands start without
        from router.observer.alerts.desk import AlertsPage  # noqa: PLC0415 - what it needs is an extra
    except ModuleNotFoundError as error:
        return fail(f"slo alerts needs {error.name}: pip install 'ringrouter[observer]'; --json does not")
    try:
        page = msgspec.json.decode(body, type=AlertsPage)
    except msgspec.DecodeError as error:
        fail(f"the observer's answer is not of schema {_PAGE_SCHEMA}: {error}")
        return EXIT_FAILED
    shown = [*page.active, *(page.recent if with_recent else ())]
    if only and not shown:
        print(f"no alert of now, nor of the last hundred that ended, has the fingerprint {only}")
    elif not only and not page.active:
        print("no alert fires" if page.evaluated_wall_ns is not None else "nothing was evaluated yet")
    for alert in shown:
        labels = bodies.labels_of(alert)
        ends = "" if alert.ends_wall_ns is None else f" until {_time(alert.ends_wall_ns)}"
        head = f"{labels.pop('severity')} {labels.pop('alertname')} since {_time(alert.starts_wall_ns)}{ends}"
        print(f"{head}  {alert.fingerprint}")
        print(f"  {text.sentence(alert)}")
        for line in text.lines(alert):
            print(f"    {line}")
    if page.problem:
        print(f"problem: {page.problem}")
    for sink in page.sinks:
        state = "ok" if not sink.error else "has a problem"
        if sink.failing_since_wall_ns is not None:
            state = f"fails since {_time(sink.failing_since_wall_ns)}"
        waiting = f", {sink.waiting_count:,} wait" if sink.waiting_count else ""
        refused = f", {sink.refused_count:,} refused" if sink.refused_count else ""
        dropped = f", {sink.dropped_count:,} dropped" if sink.dropped_count else ""
        said = f": {sink.error}" if sink.error else ""
        print(f"sink {sink.name} ({sink.kind}, {sink.target}) {state}{said}{waiting}{refused}{dropped}")
    return EXIT_OK


def test(args: argparse.Namespace) -> int:
    """Let the observer send a test alert, for only it has the secrets and the network that real alerts will have."""
    path = "/alerts/test" + (f"?sink={quote(args.sink)}" if args.sink else "")
    try:
        body = client.post(observer_address(args), path, TEST_TIMEOUT_S)
    except (ConfigError, ObserverError) as error:
        return fail_to_ask(error)
    replies = msgspec.json.decode(body, type=list[dict[str, str | bool]])
    if args.json:
        sys.stdout.write(body.decode() + "\n")
    else:
        for reply in replies:
            state = "took it" if reply["is_taken"] else "did not take it"
            print(f"{reply['name']} ({reply['kind']}, {reply['target']}) {state}: {reply['text']}")
    return EXIT_OK if all(reply["is_taken"] for reply in replies) else EXIT_FAILED


def _time(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / 1e9).astimezone().isoformat(" ", "seconds")
