"""Where the rings of the routers are that the commands look at."""

from __future__ import annotations

import argparse
import stat
from pathlib import Path
from typing import Final

from ringbuffer import Missing, RingError, find_current
from router import config
from router.errors import ConfigError

DEFAULT_INSTANCE: Final = "main"


def instance_dir(args: argparse.Namespace) -> Path:
    """Return ``RUN/INSTANCE`` as the options, the configuration or the defaults say; raises :class:`ConfigError`."""
    name = args.instance
    if args.run_dir is not None:
        return Path(args.run_dir) / (name or DEFAULT_INSTANCE)
    if args.config is None:
        return _used(config.default_run_dir() / (name or DEFAULT_INSTANCE))
    settings = config.load(args.config, need_keys=False)
    return _used(config.run_dir(settings) / (name or settings.listen.instance))


def all_instance_dirs(args: argparse.Namespace) -> list[Path]:
    """Return ``RUN/INSTANCE`` of every router that has rings there, by name.

    Raises :class:`ConfigError`, and :class:`ringbuffer.RingError` for a directory that cannot be read.
    """
    run_dir = instance_dir(args).parent
    places = {run_dir} if args.run_dir is not None else {run_dir, config.tmpfs_run_dir()}
    return sorted((path for place in places for path in _instances(place)), key=lambda path: path.name)


def _instances(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if _may_have_current(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RingError(f"{place} cannot be read: {error.strerror}") from error


def _may_have_current(path: Path) -> bool:
    """Tell whether there is a router to look at, or something in its place that looking will name."""
    try:
        find_current(path)
    except Missing:
        return False
    except RingError:
        pass
    return True


def _used(path: Path) -> Path:
    """Return the directory, or the one in /dev/shm that a router takes where this one is not on tmpfs."""
    other = config.tmpfs_run_dir() / path.name
    return other if not _may_have_current(path) and _may_have_current(other) else path


def observer_address(args: argparse.Namespace) -> str:
    """Return the address of the observer's HTTP side as ``--url`` or the configuration says; raises ConfigError."""
    if args.url is not None:
        address = str(args.url).removeprefix("http://").rstrip("/")
        config.split_address(address, "--url")
        return address
    return settings_of(args).observer.http


def check_run_dir(path: Path) -> None:
    """Raise :class:`ConfigError` for a place where no router can have its rings; one that is not there yet may come."""
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"run directory {path}: {error.strerror}") from None
    if not is_directory:
        raise ConfigError(f"run directory {path}: not a directory")


def journal_dir(args: argparse.Namespace) -> Path:
    """Return the observer's data directory as the options, the configuration or the defaults say."""
    return Path(args.data_dir) if args.data_dir is not None else config.data_dir(settings_of(args))


def settings_of(args: argparse.Namespace) -> config.Config:
    """Return the configuration of ``--config``, or the defaults; raises :class:`ConfigError`."""
    return config.load(args.config, need_keys=False) if args.config is not None else config.Config(version=1)
