"""``ringrouter trace``: what happened to a request, or to all requests of a trace, as a waterfall; read-only.

The observer is asked first; where none answers, its journal is read, and then the rings of the routers here.
Exit codes: 0 ok, 1 no request with that id is kept, 2 usage or configuration.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from ringbuffer import RingError
from ringbuffer.stats import shown
from router.cli import EXIT_FAILED, EXIT_OK, fail
from router.cli.location import all_instance_dirs, journal_dir, observer_address, settings_of
from router.errors import ConfigError
from router.observer import client
from router.observer.client import NotFoundError, ObserverError

if TYPE_CHECKING:
    from router.observer.traces.page import TracePage


_ID_SHOWN_MAX: Final = 80


def run(args: argparse.Namespace) -> int:
    """Print a trace."""
    try:
        from router.observer.traces import book  # noqa: F401, PLC0415 - what it needs is an extra
        from router.observer.traces import page as pages  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return fail(f"trace needs {error.name}: pip install 'ringrouter[observer]'")
    try:
        page = _asked(args, pages.TracePage) or _found(args)
    except (ConfigError, RingError) as error:
        return fail(error)
    if page is None:
        told = repr(args.id[:_ID_SHOWN_MAX])
        fail(f"no request with the id {told} is kept: not in the journal, and overwritten in the rings")
        return EXIT_FAILED
    if args.json:
        sys.stdout.write(msgspec.json.encode(page).decode() + "\n")
        return EXIT_OK
    from router.cli import trace_drawing  # noqa: PLC0415 - likewise

    for line in trace_drawing.lines(page, shutil.get_terminal_size().columns):
        print(shown(line))
    return EXIT_OK


def _asked(args: argparse.Namespace, kind: type[TracePage]) -> TracePage | None:
    """Return what the observer says, ``None`` where there is none or it knows nothing of the request."""
    if args.run_dir is not None or args.data_dir is not None:
        return None  # other places than the observer's
    address = observer_address(args)
    try:
        return msgspec.json.decode(
            client.get(address, f"/traces/{quote(args.id, safe='', errors='replace')}.json"), type=kind
        )
    except NotFoundError:
        return None
    except (ObserverError, msgspec.DecodeError) as error:
        if args.url is not None:
            raise ConfigError(str(error)) from None
        return None


def _found(args: argparse.Namespace) -> TracePage | None:
    """Return what is on disk and in the rings; raises ConfigError and RingError."""
    from router.observer.segments import JOURNAL  # noqa: PLC0415 - what it needs is an extra
    from router.observer.traces import find  # noqa: PLC0415
    from router.observer.traces.book import key_path, naming_of  # noqa: PLC0415
    from router.observer.traces.page import page_of  # noqa: PLC0415
    from router.observer.traces.spans import Naming  # noqa: PLC0415

    if args.url is not None:
        return None
    data_dir = journal_dir(args)
    identity = find.as_recorded(args.id)
    rows, source = find.in_journal(identity, data_dir / JOURNAL), find.JOURNAL
    if not rows:
        rows, source = find.in_rings(identity, all_instance_dirs(args)), find.RINGS
    if not rows:
        return None
    try:
        naming = naming_of(settings_of(args), data_dir if key_path(data_dir).is_file() else None)
    except (ConfigError, OSError):  # a key that this user may not read: then nothing of users is told
        naming = Naming()
    return page_of(identity, source, rows, naming)
