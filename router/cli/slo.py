"""``ringrouter slo``: how the objectives fare, from a running observer.

Exit codes: 1 when no observer answers, 2 usage, or an objective that there is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

import msgspec

from router.cli import EXIT_OK, fail_to_ask
from router.cli.location import observer_address
from router.cli.slo_table import as_text
from router.errors import ConfigError
from router.observer import client
from router.observer.client import ObserverError
from router.observer.slo.status import SCHEMA, SloPage

CLEAR_SCREEN: Final = "\x1b[2J\x1b[H"


def run(args: argparse.Namespace) -> int:
    """Print the objectives once, or every so many seconds; or do what an action says."""
    if args.action in {"alerts", "test-alert"}:
        from router.cli import slo_alerts  # noqa: PLC0415 - other actions do without

        return slo_alerts.show(args) if args.action == "alerts" else slo_alerts.test(args)
    if args.action == "export":
        from router.cli import slo_export  # noqa: PLC0415 - likewise

        return slo_export.run(args)
    try:
        address = observer_address(args)
        _print(args, address)
        while args.watch is not None:
            sys.stdout.flush()
            time.sleep(args.watch)
            if not args.json:
                print(CLEAR_SCREEN if sys.stdout.isatty() else "--")
            _print(args, address)
    except (ConfigError, ObserverError) as error:
        return fail_to_ask(error)
    return EXIT_OK


def _print(args: argparse.Namespace, address: str) -> None:
    body = client.get(address, client.slo_path(args.name))
    if args.json:
        sys.stdout.write(body.decode() + "\n")
        return
    sys.stdout.write(as_text(_page(body, address)))


def _page(body: bytes, address: str) -> SloPage:
    try:
        page = msgspec.json.decode(body, type=SloPage)
    except msgspec.DecodeError as error:
        raise ObserverError(f"{client.shown(address)} answers, but not as an observer: {error}") from None
    if page.schema != SCHEMA:
        raise ObserverError(f"{client.shown(address)} answers with schema {page.schema!r}: expected {SCHEMA!r}")
    return page
