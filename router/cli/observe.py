"""``ringrouter observe``: the observer alone, in the foreground.

Exit codes: 0 stopped by a signal, 2 usage, configuration, or an address or directory that cannot be had.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

import msgspec

from router import config
from router.cli import fail
from router.cli.location import check_run_dir, settings_of
from router.errors import ConfigError

NICENESS: Final = 10
"""Where cores are short the router comes first, from the observer's first moment on: its start is its hardest work."""


def run(args: argparse.Namespace) -> int:
    """Observe every router below the run directory until told to stop."""
    try:
        settings = _with_options(settings_of(args), args)
        run_dir = args.run_dir or config.rings_dir(settings)
        check_run_dir(run_dir)
    except ConfigError as error:
        return fail(error)
    os.nice(NICENESS)
    try:
        from router.observer import process  # noqa: PLC0415 - what it needs is an extra
    except ModuleNotFoundError as error:
        return fail(f"observe needs {error.name}: pip install 'ringrouter[observer]'")
    return process.serve(settings, run_dir)


def _with_options(settings: config.Config, args: argparse.Namespace) -> config.Config:
    """Put the options in the place of the configuration's values; raises :class:`ConfigError`."""
    observer = settings.observer
    if args.data_dir is not None:
        observer = msgspec.structs.replace(observer, data_dir=str(Path(args.data_dir).absolute()))
    if args.http is not None:
        config.split_address(args.http, "--http")
        observer = msgspec.structs.replace(observer, http=args.http)
    return msgspec.structs.replace(settings, observer=observer)
