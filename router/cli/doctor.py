"""``ringrouter doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from router import config
from router.config import Config
from router.config.slo import slo_warnings
from router.doctor import machine, network, service
from router.doctor.findings import SCHEMA, Finding, error, exit_code, ok, warning
from router.errors import ConfigError

SYSTEM_CONFIG: Final = Path("/etc/ringrouter/ringrouter.toml")
SYSTEM_RUN_DIR: Final = Path("/run/ringrouter")
_MARKS: Final = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


def run(args: argparse.Namespace) -> int:
    """Print what was found; 0 nothing is broken, 1 something is."""
    if args.config is None and SYSTEM_RUN_DIR.is_dir():
        os.environ.setdefault("RUNTIME_DIRECTORY", str(SYSTEM_RUN_DIR))  # what the unit gives the service
    findings = list(look(args.config or SYSTEM_CONFIG))
    if args.json:
        print(json.dumps({"schema": SCHEMA, "findings": [asdict(each) for each in findings]}, ensure_ascii=False))
        return exit_code(findings)
    for finding in findings:
        print(f"{_MARKS[finding.level]} {finding.check}: {finding.what}")
        if finding.todo:
            print(f"        -> {finding.todo}")
    counts = [sum(each.level == level for each in findings) for level in ("error", "warning")]
    print(f"{counts[0]} errors, {counts[1]} warnings")
    return exit_code(findings)


def look(path: Path) -> Iterator[Finding]:
    """Yield the findings of all checks; without a configuration those that need none."""
    settings = Config(version=1)
    try:
        settings = config.load(path, need_keys=False)
        yield ok("config", f"{path}: good")
    except ConfigError as problem:
        yield error("config", str(problem), f"correct it and run: ringrouter check {path}")
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: service.permissions(path),
        lambda: service.keys(settings),
        lambda: objectives(settings),
        lambda: network.hosts(settings) if settings.hosts else iter(()),
        lambda: network.ports(settings, runs=service.runs(settings) or service.holds_sockets()),
        lambda: machine.shared_memory(settings),
        lambda: machine.descriptors(settings),
        machine.clock,
        lambda: machine.native_parts(settings),
        service.user,
        service.unit_state,
        lambda: service.router_state(settings),
    ]
    for check in checks:
        yield from _guarded(check)


def objectives(settings: Config) -> Iterator[Finding]:
    """Yield what is allowed and yet hardly meant about service level objectives."""
    for line in slo_warnings(settings.slo):
        yield warning("slo", line, "a smaller factor, or a higher objective (docs/slo.md)")


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; one that cannot look says so, and the others go on."""
    try:
        yield from check()
    except OSError as problem:
        yield error("doctor", f"could not look: {problem}", "run it as root, or as the service's user")
    except Exception as problem:
        sys.stderr.write(f"ringrouter doctor: internal error: {type(problem).__name__}: {problem}\n")
        yield error("doctor", f"a check failed: {type(problem).__name__}", "report it with the line on standard error")
