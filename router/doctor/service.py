"""Checks of the service: the units, the user, and the routers of this directory."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringbuffer import RingError, writer_state
from router.config import Config, rings_dir
from router.doctor.findings import Finding, error, ok, warning

UNIT: Final = "ringrouter.service"
_SECRET_MODE: Final = 0o007
"""Bits of who is neither owner nor of the group."""


def runs(config: Config) -> bool:
    """Whether a router of this configuration lives."""
    try:
        return writer_state(rings_dir(config) / config.listen.instance) in {"alive", "hung"}
    except RingError:
        return False


def router_state(config: Config) -> Iterator[Finding]:
    """How does the router of this configuration fare?"""
    path = rings_dir(config) / config.listen.instance
    try:
        state = writer_state(path)
    except RingError:
        yield ok("router", f"none has run in {path} yet")
        return
    if state == "alive":
        yield ok("router", f"alive in {path}")
    elif state == "hung":
        todo = "ringrouter stats says since when; the watchdog of the unit ends it, without one: kill -KILL its pid"
        yield error("router", f"hung in {path}: it lives and its loop makes no progress", todo)
    else:
        todo = "ringrouter dump shows what it was doing; systemctl status ringrouter says why it ended"
        yield warning("router", f"dead: the last one in {path} has ended", todo)


def unit_state() -> Iterator[Finding]:
    """Is the unit there, does it run, how often was it started anew?"""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        yield ok("service", "no systemd here")
        return
    values = _show(UNIT, "LoadState", "ActiveState", "UnitFileState", "NRestarts", "StatusText", "Result")
    if values.get("LoadState") != "loaded":
        yield warning("service", f"{UNIT} is not installed", "ringrouter service install")
        return
    active, status = values.get("ActiveState", ""), values.get("StatusText", "")
    if active == "failed":
        todo = f"journalctl -u {UNIT} -e says why; then: systemctl reset-failed {UNIT} && systemctl start {UNIT}"
        yield error("service", f"{UNIT} has failed ({values.get('Result')}): {status or 'no status'}", todo)
    elif active == "active":
        yield ok("service", f"{UNIT}: {status}")
        if values.get("NRestarts", "0") != "0":
            todo = f"journalctl -u {UNIT} | grep -B5 'Main process exited'"
            yield warning("service", f"{UNIT} was started anew {values['NRestarts']} times", todo)
    else:
        yield warning("service", f"{UNIT} is {active}", f"systemctl start {UNIT}")
    if values.get("UnitFileState") not in {"enabled", "static"}:
        todo = f"systemctl enable ringrouter.socket {UNIT}"
        yield warning("service", f"{UNIT} is not enabled: it will not be there after a reboot", todo)


def holds_sockets() -> bool:
    """Whether systemd holds the addresses for a router, which then does not open them itself."""
    if shutil.which("systemctl") is None:
        return False
    return _show("ringrouter.socket", "ActiveState").get("ActiveState") == "active"


def _show(unit: str, *names: str) -> dict[str, str]:
    command = ["systemctl", "show", unit, *(f"--property={name}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def permissions(config_path: Path) -> Iterator[Finding]:
    """May everybody read the configuration and the keys?"""
    for path in (config_path, config_path.parent / "environment"):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if mode & _SECRET_MODE:
            todo = f"chown root:ringrouter {path} && chmod 0640 {path}"
            yield warning("permissions", f"every user may read {path} (mode {mode & 0o777:o})", todo)
        else:
            yield ok("permissions", f"{path}: mode {mode & 0o777:o}")


def keys(config: Config) -> Iterator[Finding]:
    """Is there a key for each host that wants one?"""
    for index, host in enumerate(config.hosts):
        if host.api_key_env and not os.environ.get(host.api_key_env):
            yield warning(
                "keys",
                f"hosts[{index}].api_key_env = {host.api_key_env!r} is not set in this shell",
                "set it for the service in /etc/ringrouter/environment, or use api_key_credential",
            )
        elif host.api_key_credential and not host.api_key():
            yield warning(
                "keys",
                f"hosts[{index}].api_key_credential = {host.api_key_credential!r}: only the service has them",
                f"systemctl show {UNIT} --property=LoadCredential is to name it",
            )
        elif host.api_key_env or host.api_key_credential:
            yield ok("keys", f"{host.name} has one")


def user() -> Iterator[Finding]:
    """Does the service's user exist, and is it a system user?"""
    try:
        entry = pwd.getpwnam("ringrouter")
    except KeyError:
        return
    if entry.pw_uid >= _FIRST_PERSON_UID:
        todo = "make it a system user (systemd-sysusers): logind deletes the shared memory of others at logout"
        yield warning("service", f"the user ringrouter has uid {entry.pw_uid}, which is a person's", todo)
    members = ", ".join(grp.getgrnam("ringrouter").gr_mem) or "nobody else"
    yield ok("service", f"user ringrouter, uid {entry.pw_uid}; in its group: {members}")


_FIRST_PERSON_UID: Final = 1000
"""As useradd counts (login.defs)."""
