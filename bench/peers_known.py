"""The peers that :mod:`bench.peers` knows: how each is started, what kind of thing it is, how it is installed.

Each start function is the peer's whole configuration. All of them get one worker, two hosts, connections that are kept,
no access log and no buffering of answers; everything else is as the peer comes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.build import BUILD_DIR, program
from bench.config import MODEL, UNBOUNDED_SLOTS
from bench.processes import RouterSetup

PEERS_DIR = BUILD_DIR / "peers"
"""A virtual environment for each peer from the package index; git ignores it, ``make clean`` removes it."""

Kind = Literal["floor", "proxy", "router", "ours"]
"""What a peer is compared as: a bare hop, an HTTP proxy, a router for language models, or this checkout."""

OPEN_CONNECTIONS_MAX = 12288
"""More than twice the streams of ``s5000``: a proxy has two connections for each."""


@dataclass(frozen=True)
class Place:
    """Where a peer is started: its port, a second free one, a folder of its own, the hosts as ``HOST:PORT``."""

    port: int
    second_port: int
    directory: Path
    hosts: tuple[str, ...]
    setup: RouterSetup

    @property
    def listen(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def urls(self) -> list[str]:
        return [f"http://{host}" for host in self.hosts]

    def write(self, name: str, text: str) -> str:
        """Write a file into the peer's folder and return its path."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Package:
    """A Python distribution that brings a peer; the version that the published figures are of."""

    distribution: str
    version: str
    executable: str

    @property
    def environment(self) -> Path:
        return PEERS_DIR / self.distribution

    @property
    def path(self) -> Path:
        return self.environment / "bin" / self.executable


@dataclass(frozen=True)
class Known:
    """A peer. ``follows_setup``: it is told the hosts' slots and closing, with a process for each combination."""

    name: str
    kind: Kind
    command: Callable[[Place], list[str]]
    version_command: tuple[str, ...] = ()
    package: Package | None = None
    debian_package: str = ""
    follows_setup: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Return how to install the peer when it is not there."""
        if self.package and not self.package.path.exists():
            return f"install it with: python -m bench.peers --install {self.name}"
        if self.debian_package and not shutil.which(self.name):
            return f"install it with: apt-get install --no-install-recommends {self.debian_package}"
        return None

    def version(self) -> str:
        """Return which version would be started; empty for what belongs to this checkout."""
        if self.package:
            return _first_line(
                str(self.package.environment / "bin" / "python"), "-c", _VERSION_OF, self.package.distribution
            )
        return _first_line(*self.version_command) if self.version_command else ""


_VERSION_OF = "import importlib.metadata as m, sys; print(sys.argv[1], m.version(sys.argv[1]))"


def _first_line(*command: str) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return result.stdout.partition("\n")[0].strip()


def _relay(place: Place) -> list[str]:
    return [str(program("relay")), f"listen={place.listen}", *(f"host={host}" for host in place.hosts)]


def _probe(place: Place) -> list[str]:
    script = Path(__file__).with_name("probe.py")
    return [sys.executable, str(script), "--listen", place.listen, "--hosts", ",".join(place.hosts)]


def _ringrouter(wait: str | None = None) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        script = Path(__file__).with_name("config.py")
        return [
            *(sys.executable, str(script), "--listen", place.listen, "--hosts", ",".join(place.urls)),
            *("--run-dir", str(place.directory / "run")),
            *(("--slots", str(place.setup.slots)) if place.setup.slots != UNBOUNDED_SLOTS else ()),
            *(("--close",) if place.setup.close else ()),
            *(("--wait", wait) if wait else ()),
        ]

    return command


def _nginx(place: Place) -> list[str]:
    """``max_fails=0``: else one request on a connection that the host has just closed takes that host out for 10 s."""
    servers = " ".join(f"server {host} max_fails=0;" for host in place.hosts)
    temporary = "\n  ".join(
        f"{name}_temp_path {place.directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = place.write(
        "nginx.conf",
        f"""\
worker_processes 1;
daemon off;
pid {place.directory}/nginx.pid;
error_log {place.directory}/error.log crit;
events {{ worker_connections {OPEN_CONNECTIONS_MAX}; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_timeout 3600s;
  keepalive_requests 100000000;
  client_body_buffer_size 512k;
  {temporary}
  upstream hosts {{
    {servers}
    keepalive 2048;
    keepalive_requests 100000000;
    keepalive_timeout 3600s;
  }}
  server {{
    listen {place.listen} backlog=4096;
    location / {{
      proxy_pass http://hosts;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 3600s;
    }}
  }}
}}
""",
    )
    return ["nginx", "-p", str(place.directory), "-c", configuration, "-e", f"{place.directory}/error.log"]


def _haproxy(place: Place) -> list[str]:
    servers = "\n".join(f"  server h{i} {host} maxconn 8192 pool-max-conn -1" for i, host in enumerate(place.hosts))
    configuration = place.write(
        "haproxy.cfg",
        f"""\
global
  nbthread 1
  maxconn {OPEN_CONNECTIONS_MAX // 2}
defaults
  mode http
  option http-keep-alive
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 3600s
  timeout server 3600s
  timeout http-keep-alive 3600s
frontend clients
  bind {place.listen} backlog 4096
  default_backend hosts
backend hosts
  balance roundrobin
{servers}
""",
    )
    return ["haproxy", "-db", "-q", "-f", configuration]


def _rust_router(package: Package, *verb: str) -> Callable[[Place], list[str]]:
    """Three routers with one command line: they have a common ancestor."""

    def command(place: Place) -> list[str]:
        return [
            *(str(package.path), *verb, "--host", "127.0.0.1", "--port", str(place.port)),
            *("--worker-urls", *place.urls, "--policy", "round_robin", "--log-level", "error"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.second_port)),
        ]

    return command


_VLLM_ROUTER = Package("vllm-router", "0.1.17", "vllm-router")
_SMG = Package("smg", "1.13.0", "smg")
_SGLANG_ROUTER = Package("sglang-router", "0.3.2", "python")

KNOWN = {
    peer.name: peer
    for peer in (
        Known("relay-c", "floor", _relay),
        Known("probe", "floor", _probe),
        Known("ringrouter", "ours", _ringrouter(), follows_setup=True),
        Known("ringrouter-adaptive", "ours", _ringrouter("adaptive"), follows_setup=True),
        Known("ringrouter-spin", "ours", _ringrouter("spin"), follows_setup=True),
        Known("nginx", "proxy", _nginx, ("nginx", "-v"), debian_package="nginx-light"),
        Known("haproxy", "proxy", _haproxy, ("haproxy", "-v"), debian_package="haproxy"),
        Known("vllm-router", "router", _rust_router(_VLLM_ROUTER), package=_VLLM_ROUTER),
        Known("smg", "router", _rust_router(_SMG, "launch"), package=_SMG),
        Known(
            "sglang-router",
            "router",
            _rust_router(_SGLANG_ROUTER, "-m", "sglang_router.launch_router"),
            package=_SGLANG_ROUTER,
        ),
    )
}
DEFAULT_PEERS = ("direct", "relay-c", "probe", "ringrouter", "nginx", "haproxy", "vllm-router", "smg")


def of_command(text: str) -> Known:
    """Return the peer of ``NAME=COMMAND``; raises ``ValueError`` when it is not that.

    ``{listen}``, ``{port}``, ``{second_port}``, ``{directory}``, ``{model}``, ``{hosts}`` and ``{urls}`` (separated by
    commas) are filled in. The command stays in the foreground, serves ``/v1/chat/completions`` at ``{listen}`` and
    keeps its children in its process group.
    """
    name, separator, command = text.partition("=")
    if not (name and separator and command) or name in {"direct", *KNOWN}:
        raise ValueError(f"--cmd {text!r}: expected NAME=COMMAND with a name that is not taken")

    def filled(place: Place) -> list[str]:
        values = {
            "listen": place.listen,
            "port": place.port,
            "second_port": place.second_port,
            "directory": place.directory,
            "model": MODEL,
            "hosts": ",".join(place.hosts),
            "urls": ",".join(place.urls),
        }
        return ["/bin/sh", "-c", f"exec {command.format_map(values)}"]

    return Known(name, "ours", filled)


def install(peer: Known) -> None:
    """Install a peer's package, in the version of the published figures, into an environment of its own.

    Raises ``RuntimeError`` with what the installer said, and for a peer that is no Python package.
    """
    if not peer.package:
        raise RuntimeError(f"{peer.name}: {peer.missing() or 'there is nothing to install'}")
    environment = peer.package.environment
    python = environment / "bin" / "python"
    requirement = f"{peer.package.distribution}=={peer.package.version}"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", requirement],
    ):
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            shutil.rmtree(environment, ignore_errors=True)
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")
