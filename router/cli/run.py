"""``ringrouter run``: the router with everything it needs to be tried out."""

from __future__ import annotations

import argparse

from router import supervisor


def run(args: argparse.Namespace) -> int:
    """Start hosts and router, show one request, and keep them running until told to stop."""
    return supervisor.run(args.config, port=args.port)
