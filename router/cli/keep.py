"""``ringrouter keep``: the keeper alone, in the foreground.

Exit codes: 0 stopped by a signal, 2 usage, configuration, or a directory that cannot be had.
"""

from __future__ import annotations

import argparse
import os
from typing import Final

from router import config
from router.cli import fail
from router.cli.location import check_run_dir, settings_of
from router.errors import ConfigError

NICENESS: Final = 5
"""Where cores are short the router comes first."""

ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""A product with a table is as fast as memory is; numpy's own threads would spin on the cores of the router. Read when
numpy is loaded.
"""


def run(args: argparse.Namespace) -> int:
    """Keep what the routers below the run directory answer from, until told to stop."""
    try:
        settings = settings_of(args)
        run_dir = args.run_dir or config.rings_dir(settings)
        check_run_dir(run_dir)
    except ConfigError as error:
        return fail(error)
    if not config.needs_keeper(settings.cache):
        return fail("there is nothing to keep: the configuration has no [cache] section that is enabled")
    os.nice(NICENESS)
    for variable in ONE_THREAD:
        os.environ.setdefault(variable, "1")
    try:
        from router.keep import process  # noqa: PLC0415 - what it needs is an extra

        return process.serve(settings, run_dir)
    except ModuleNotFoundError as error:
        return fail(f"keep needs {error.name}: pip install 'ringrouter[keep]'")
