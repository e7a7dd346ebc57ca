"""A real systemd, booted in namespaces of its own: its units, users and journal are gone with it, and the machine's own
/etc, /var, /run and /tmp are never written. The network is the machine's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
INIT = Path("/lib/systemd/systemd")
BOOT_S = 20.0
PROGRAM = f"/mnt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
# What would reach through to the machine's kernel, and what is only slow.
MASKED = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-remount-fs.service", "systemd-udevd.service",
    "systemd-udev-trigger.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "systemd-logind.service",
    "systemd-random-seed.service", "systemd-hwdb-update.service", "systemd-update-utmp.service", "timers.target",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount",
    "dev-mqueue.mount",
)  # fmt: skip
BOOT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/etc /mnt/etc.work /mnt/var /mnt/var.work /mnt/python /mnt/site /mnt/repo /mnt/shared
mount --bind "$SHARED" /mnt/shared
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/etc.work /etc
mount -t overlay overlay -o lowerdir=/var,upperdir=/mnt/var,workdir=/mnt/var.work /var
mount --bind "$PREFIX" /mnt/python
mount --bind "$SITE" /mnt/site
mount --bind "$REPO" /mnt/repo
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
# Shared again, among these namespaces alone: it is how credentials come from where systemd prepares them.
mount --make-rshared /
mkdir -p /etc/systemd/system /etc/systemd/system.conf.d
find /etc/systemd/system -mindepth 1 -delete
for unit in $MASKED; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
printf '[Manager]\nDefaultEnvironment=%s %s %s\n' \
  PYTHONPATH=/mnt/repo:/mnt/site PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/mnt/python/lib \
  > /etc/systemd/system.conf.d/python.conf
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=unshare \
  /lib/systemd/systemd --system --log-target=journal --show-status=0 systemd.unit=basic.target
"""


def why_impossible() -> str:
    """Return why no systemd can be booted here, empty when one can."""
    if os.geteuid() != 0:
        return "only root may make the namespaces"
    missing = [name for name in ("unshare", "nsenter", "journalctl") if shutil.which(name) is None]
    if missing or not INIT.exists():
        return f"not installed: {', '.join([*missing, *([] if INIT.exists() else ['systemd'])])}"
    probe = ["unshare", "--fork", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


class Machine:
    """A booted systemd; a context manager."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="rr-systemd-", dir="/dev/shm"))
        self.shared = self._directory / "shared"
        """Seen inside as /mnt/shared."""
        self.shared.mkdir()
        self.shared.chmod(0o755)
        self._unshare: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        environment = {
            **os.environ,
            "PREFIX": sys.base_prefix,
            "SITE": sysconfig.get_path("purelib"),
            "REPO": str(ROOT),
            "MASKED": " ".join(MASKED),
            "SHARED": str(self.shared),
        }
        log = (self._directory / "boot.log").open("wb")
        namespaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--uts", "--ipc", "--cgroup"]
        self._unshare = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-c", BOOT], env=environment, stdout=log, stderr=log
        )
        log.close()
        try:
            wait_until(self._is_up, "systemd is up", BOOT_S)
        except AssertionError as error:
            text = (self._directory / "boot.log").read_text(errors="replace")
            self.close()
            raise AssertionError(f"{error}\n{text[-2000:]}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything in it at once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(10)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _is_up(self) -> bool:
        assert self._unshare is not None
        assert self._unshare.poll() is None, "it ended"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
            return False
        self.pid = int(children[0])
        return self.try_run("systemctl", "is-active", "basic.target").returncode == 0

    def try_run(self, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside; its outcome may be anything."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        inside = ["nsenter", "-t", str(self.pid), "-p", "-m", "-u", "-i", "-C", *as_user, *command]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "/mnt/repo:/mnt/site",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_LIBRARY_PATH": "/mnt/python/lib",
            "LC_ALL": "C.UTF-8",
            "SYSTEMD_COLORS": "0",
        }
        return subprocess.run(
            inside,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=100,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )

    def run(self, *command: str, user: str = "") -> str:
        """Run a command inside that must succeed; return what it printed."""
        done = self.try_run(*command, user=user)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ringrouter(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of the program inside."""
        return self.try_run(PROGRAM, "-m", "router", *arguments)

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl inside; it must succeed."""
        return self.run("systemctl", *arguments)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").strip()

    def main_pid(self, unit: str) -> int:
        """Return the pid of a unit's main process, as seen inside."""
        return int(self.show(unit, "MainPID"))

    def kill(self, unit: str) -> None:
        """Kill a unit's main process. `systemctl kill` looks for others of it too, and fails when none is left."""
        self.run("kill", "-KILL", str(self.main_pid(unit)))

    def journal(self, unit: str, *more: str) -> str:
        """Return what a unit has written into the journal, as JSON lines."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "-u", unit, "-o", "json", "--no-pager", *more)

    def said(self, unit: str, line_count: int = 20) -> str:
        """Return the last lines that a unit, and systemd of it, has written into the journal, the words alone."""
        self.run("journalctl", "--sync")  # what was sent before is there afterwards
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager", "-n", str(line_count))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside."""
        staged = self.shared / "staged"
        staged.write_text(text)
        self.run("install", "-D", f"--mode={mode:o}", "/mnt/shared/staged", path)
        staged.unlink()

    def wait_for(self, unit: str, name: str, value: str, timeout_s: float = 15.0) -> None:
        """Wait until a property of a unit has a value."""
        try:
            wait_until(lambda: self.show(unit, name) == value, f"{unit}: {name} is {value}", timeout_s)
        except AssertionError as error:
            status = self.try_run("systemctl", "status", unit, "--no-pager", "-l").stdout
            raise AssertionError(f"{error}\n{status}") from None


def booted() -> Iterator[Machine]:
    """Boot one, for a fixture; skip the test with the reason where that is impossible."""
    reason = why_impossible()
    if reason:
        pytest.skip(f"no systemd can be booted here: {reason}")
    with Machine() as machine:
        yield machine
