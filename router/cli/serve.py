"""``ringrouter serve``: the router alone, in the foreground."""

from __future__ import annotations

import argparse

from router import config
from router.cli import fail
from router.errors import ConfigError
from router.service.notify import Notifier


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if args.config is None:
        return fail(
            "no hosts to serve: name them in a file and give it as --config FILE; `ringrouter run` brings its own"
        )
    try:
        settings = config.load(args.config)
        if args.instance is not None:
            settings = config.with_instance(settings, args.instance)
    except ConfigError as error:
        Notifier().status(f"cannot start: {error}")
        return fail(error)
    from router import daemon  # noqa: PLC0415 - the event loop is not needed to refuse a configuration

    return daemon.serve(settings, args.config)
