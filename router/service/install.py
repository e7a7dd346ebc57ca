"""``ringrouter service install`` and ``uninstall``: first a plan that can be shown, then exactly that plan.

A file that somebody has changed since it was installed is never overwritten or removed unasked.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import router
from router.service import units

UNITS: Final = (
    "ringrouter.service",
    "ringrouter.socket",
    "ringrouter@.service",
    "ringrouter@.socket",
    "ringrouter-observe.service",
    "ringrouter-keep.service",
)
_FILE_MODE: Final = 0o644
Change = Literal["write", "replace", "keep", "remove", "edited"]


class InstallError(Exception):
    """The plan cannot be made or carried out; the text says what is in the way."""


@dataclass(frozen=True)
class FileStep:
    """What becomes of one file."""

    path: Path
    change: Change
    text: str = ""
    """What it will hold."""
    old: str = ""
    """What it holds now."""


@dataclass
class Plan:
    """Everything that will be done, in order."""

    files: list[FileStep] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def edited(self) -> list[Path]:
        """Files that somebody has changed: they stand in the way."""
        return [step.path for step in self.files if step.change == "edited"]

    @property
    def changes_nothing(self) -> bool:
        """Whether everything is as it should be already."""
        return all(step.change == "keep" for step in self.files)


@dataclass(frozen=True)
class Places:
    """Where files go. ``root`` is put before each path of a system-wide installation, for images and tests."""

    user: bool = False
    root: Path = Path("/")

    def unit_dir(self) -> Path:
        """Return the directory of units that an administrator adds."""
        if self.user:
            base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
            return Path(base) / "systemd" / "user"
        return self.root / "etc/systemd/system"

    def targets(self, program: str) -> dict[Path, str]:
        """Return the text of each file, sealed, by its path; :class:`InstallError` if the sources are not here."""
        source = source_dir()
        fit = units.for_user if self.user else units.for_system
        found = {self.unit_dir() / name: units.sealed(fit(_read(source / name), program)) for name in UNITS}
        if not self.user:
            for kind in ("sysusers", "tmpfiles"):
                text = units.sealed(_read(source / f"ringrouter.{kind}.conf"))
                found[self.root / f"etc/{kind}.d/ringrouter.conf"] = text
        return found


def source_dir() -> Path:
    """Return where the files of ``systemd/`` are: beside the packages in a checkout, else among the installed data."""
    beside = Path(router.__file__).resolve().parents[1] / "systemd"
    return beside if beside.is_dir() else Path(sysconfig.get_path("data")) / "share/ringrouter/systemd"


def own_program() -> str:
    """Return how a unit starts this program: the command beside this interpreter, else the interpreter with -m."""
    command = Path(sys.executable).with_name("ringrouter")
    return str(command) if os.access(command, os.X_OK) else f"{sys.executable} -m router"


def plan_install(places: Places, program: str, *, force: bool = False) -> Plan:
    """Return what an installation would change; ``force`` overwrites what somebody has changed."""
    plan = Plan()
    for path, text in places.targets(program).items():
        old = _read(path) if path.exists() else ""
        plan.files.append(FileStep(path, _change(old, text, force=force), text, old))
    if not plan.changes_nothing:
        plan.commands = _commands(places)
    if not places.user and program.startswith(("/home/", "/root/", "/run/user/")):
        plan.warnings.append(
            f"{program} is in a home directory, which the units cannot see (ProtectHome=yes): install the program "
            "somewhere else, in /opt say, or use --user"
        )
    return plan


def plan_uninstall(places: Places, *, force: bool = False) -> Plan:
    """Return what an uninstallation would change: units stopped and files removed, users and data kept."""
    plan = Plan()
    for path in places.targets(""):
        if path.exists():
            old = _read(path)
            change: Change = "remove" if force or units.is_untouched(old) else "edited"
            plan.files.append(FileStep(path, change, old=old))
    if plan.files:
        manager = _manager(places)
        plan.commands = [
            [*manager, "disable", *UNITS],
            [*manager, "stop", "ringrouter*.socket", "ringrouter*.service"],
            [*manager, "daemon-reload"],
        ]
        if not _is_here(places):
            plan.commands = []
    return plan


def _change(old: str, text: str, *, force: bool) -> Change:
    if not old:
        return "write"
    if old == text:
        return "keep"
    return "replace" if force or units.is_untouched(old) else "edited"


def _is_here(places: Places) -> bool:
    return places.root == Path("/")


def _manager(places: Places) -> list[str]:
    return ["systemctl", "--user"] if places.user else ["systemctl"]


def _commands(places: Places) -> list[list[str]]:
    """Return what makes the files known; below another root nothing is run."""
    if not _is_here(places):
        return []
    reload = [*_manager(places), "daemon-reload"]
    if places.user:
        return [reload]
    return [
        ["systemd-sysusers", "/etc/sysusers.d/ringrouter.conf"],
        ["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/ringrouter.conf"],
        reload,
    ]


def describe(plan: Plan) -> Iterator[str]:
    """Yield the lines that show a plan: each file with what changes in it, then the commands."""
    for step in plan.files:
        yield f"{_WORDS[step.change]} {step.path}"
        if step.change in {"replace", "edited"} and step.text:
            diff = difflib.unified_diff(step.old.splitlines(), step.text.splitlines(), "now", "then", lineterm="", n=1)
            yield from (f"    {line}" for line in diff)
    yield from (f"run      {' '.join(command)}" for command in plan.commands)
    yield from (f"warning: {text}" for text in plan.warnings)


_WORDS: Final[dict[Change, str]] = {
    "write": "write   ",
    "replace": "replace ",
    "keep": "keep    ",
    "remove": "remove  ",
    "edited": "EDITED  ",
}


def carry_out(plan: Plan) -> None:
    """Do what a plan says; raises :class:`InstallError` for edited files and for what fails."""
    if plan.edited:
        names = ", ".join(str(path) for path in plan.edited)
        raise InstallError(f"changed by hand since it was installed: {names}; --force overrides that")
    stops = [command for command in plan.commands if command[-1] != "daemon-reload" and command[0] == "systemctl"]
    _run_all(stops)
    for step in plan.files:
        try:
            if step.change in {"write", "replace"}:
                _write(step.path, step.text)
            elif step.change == "remove":
                step.path.unlink(missing_ok=True)
        except OSError as error:
            raise InstallError(f"{step.path}: {error.strerror or error}") from None
    _run_all([command for command in plan.commands if command not in stops])


def _run_all(commands: Sequence[list[str]]) -> None:
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        except OSError as error:
            raise InstallError(f"{command[0]} cannot be run: {error.strerror}") from None
        if done.returncode:
            raise InstallError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(_FILE_MODE)
    temporary.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"{path}: {error}") from None
