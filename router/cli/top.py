"""``ringrouter top``: what the observer knows, live in a terminal; ``--once`` prints it and ends.

Exit codes: 1 when no observer answers at the start, 2 usage, or a tag that the observer does not slice by.
"""

from __future__ import annotations

import argparse
import sys

from router.cli import EXIT_OK, fail, fail_to_ask
from router.cli.location import observer_address, settings_of
from router.cli.top_hosts import host_states, places
from router.cli.top_tables import as_text
from router.errors import ConfigError
from router.observer import client
from router.observer.client import ObserverError


def run(args: argparse.Namespace) -> int:
    """Show the page until ``q``, or once."""
    try:
        address = observer_address(args)
        first = client.state(address, window_s=args.window, by=args.by)
        here = places(settings_of(args))
        body = client.get(address, client.state_path(args.window, args.by)) if args.json else b""
    except (ConfigError, ObserverError) as error:
        return fail_to_ask(error)
    if args.json:
        sys.stdout.write(body.decode() + "\n")
        return EXIT_OK
    if args.once:
        sys.stdout.write(as_text(first, host_states(first.sources, here)))
        return EXIT_OK
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return fail("the live page needs a terminal; --once and --json do not")
    try:
        from router.cli.top_page import Page  # noqa: PLC0415 - heavy, and --once does without
    except ModuleNotFoundError as error:
        return fail(f"the live page needs {error.name}: pip install 'ringrouter[observer]'")
    Page(address, first, args.window, args.by, here).run()
    return EXIT_OK
