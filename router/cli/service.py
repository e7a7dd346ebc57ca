"""``ringrouter service install|uninstall|upgrade``: the router as a service of systemd."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from router.cli import EXIT_FAILED, EXIT_OK, fail
from router.service.install import (
    InstallError,
    Places,
    Plan,
    carry_out,
    describe,
    own_program,
    plan_install,
    plan_uninstall,
)

_UPGRADE_S = 90.0
"""The new process may take 60 s to serve; then the old one gives up on it."""
_POLL_S = 0.1
_FAILED = "upgrade failed"
"""How the status begins when the old process goes on."""


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 1 when it failed, 2 for wrong use."""
    if args.action == "upgrade":
        return _upgrade(args)
    places = Places(user=args.user)
    try:
        if args.action == "install":
            return _carry_out(plan_install(places, own_program(), force=args.force), args, "installed", places)
        return _carry_out(plan_uninstall(places, force=args.force), args, "uninstalled", places)
    except InstallError as error:
        print(f"ringrouter: {error}", file=sys.stderr)
        return EXIT_FAILED


def _carry_out(plan: Plan, args: argparse.Namespace, word: str, places: Places) -> int:
    for line in describe(plan):
        print(line)
    if args.dry_run:
        print("nothing was changed (--dry-run)")
        return EXIT_OK
    if not places.user and os.geteuid() != 0:
        return fail("this changes /etc: run it as root, or with --user for a service of your own")
    carry_out(plan)
    if not plan.files or plan.changes_nothing:
        print(f"already {word}")
        return EXIT_OK
    print(word)
    if args.action == "install":
        _say_next(places)
    return EXIT_OK


def _say_next(places: Places) -> None:
    """Say what only the operator can do."""
    manager = "systemctl --user" if places.user else "systemctl"
    config = "~/.config/ringrouter/ringrouter.toml" if places.user else "/etc/ringrouter/ringrouter.toml"
    print(f"next: write {config} and check it: ringrouter check {config}")
    print(f"then: {manager} enable --now ringrouter.socket ringrouter.service ringrouter-observe.service")
    print("and:  ringrouter doctor")


def _upgrade(args: argparse.Namespace) -> int:
    """Tell a running service to let a new process take over, and wait for how that ends."""
    unit = f"ringrouter@{args.instance}.service" if args.instance else "ringrouter.service"
    manager = ["systemctl", "--user"] if args.user else ["systemctl"]
    try:
        before = _property(manager, unit, "MainPID")
        status = _property(manager, unit, "StatusText")
        if before in {"", "0"}:
            return fail(f"{unit} is not running: there is nothing to upgrade")
        subprocess.run([*manager, "kill", "--kill-whom=main", "--signal=USR2", unit], check=True)  # noqa: S603
        return _watch_upgrade(manager, unit, before, status)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ringrouter: {unit} cannot be told to upgrade: {error}", file=sys.stderr)
        return EXIT_FAILED


def _watch_upgrade(manager: list[str], unit: str, before: str, old_status: str) -> int:
    """Wait until another process is the main one, or it is said why not; ``old_status`` may tell of an earlier try."""
    is_old = old_status.startswith(_FAILED)
    until_s = time.monotonic() + _UPGRADE_S
    while time.monotonic() < until_s:
        now, status = _property(manager, unit, "MainPID"), _property(manager, unit, "StatusText")
        if now not in {before, "0"}:
            print(f"{unit}: process {now} has taken over from {before}, which drains what it began")
            return EXIT_OK
        is_old = is_old and status == old_status
        if status.startswith(_FAILED) and not is_old:
            print(f"ringrouter: {unit}: {status}", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(_POLL_S)
    print(f"ringrouter: {unit}: process {before} is still the main one after {_UPGRADE_S:g} s", file=sys.stderr)
    return EXIT_FAILED


def _property(manager: list[str], unit: str, name: str) -> str:
    command = [*manager, "show", unit, f"--property={name}", "--value"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
