"""Write a router's configuration for a measurement and start the router with it.

    python -m bench.config --listen 127.0.0.1:8200 --hosts http://127.0.0.1:8101,http://127.0.0.1:8102
    python bench/config.py ...        the same from any directory

This process becomes the router (exec), so that a harness which starts, stops and measures it has one process. Only the
standard library is used, and nothing of this package, so that the file runs by its path.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

MODEL = "mock-model"
UNBOUNDED_SLOTS = 4096
"""Slots of a host that takes whatever comes: with two hosts more than any mode's streams, so that none waits."""
IN_FLIGHT_MAX = 2 * UNBOUNDED_SLOTS
"""Requests in the router: as many as two such hosts take. The router's default is below ``s5000``."""

REPOSITORY = Path(__file__).resolve().parent.parent


def config_text(
    listen: str,
    urls: Sequence[str],
    run_dir: Path,
    *,
    slots: int = UNBOUNDED_SLOTS,
    close: bool = False,
    wait: str = "block",
) -> str:
    """Return the TOML of a router in front of mock hosts.

    ``slots`` is each host's number of requests at once; ``close`` says that the hosts close the connection after every
    streamed answer. JSON strings are TOML strings, so ``json.dumps`` quotes.
    """
    hosts = "".join(_host_text(f"mock{index}", url, slots, close) for index, url in enumerate(urls))
    return (
        f"version = 1\n\n[limits]\nin_flight = {IN_FLIGHT_MAX}\n\n"
        f"[listen]\nhttp = {json.dumps([listen])}\nrun_dir = {json.dumps(str(run_dir))}\n\n"
        f'[loop]\nwait = {json.dumps(wait)}\n\n[log]\nlevel = "warning"\n{hosts}'
    )


def _host_text(name: str, url: str, slots: int, close: bool) -> str:
    address = url if url.startswith(("http://", "unix://")) else f"http://{url}"
    return (
        f"\n[[hosts]]\nname = {json.dumps(name)}\nurl = {json.dumps(address)}\n"
        f'kind = "openai"\nslots = {slots}\nmodels = [{json.dumps(MODEL)}]\n\n'
        f"[hosts.facts]\nreuse_after_stream = {json.dumps(not close)}\n"
    )


def router_command(config_file: Path) -> list[str]:
    """Return the command that serves a configuration with this interpreter."""
    return [sys.executable, "-m", "router", "serve", "--config", str(config_file)]


def router_environment() -> dict[str, str]:
    """Return the environment in which ``router`` is this checkout's, whatever the working directory."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def default_run_dir(listen: str) -> Path:
    """Return the directory of a measured router's rings: the same for the same address, so that runs do not pile up."""
    return Path("/dev/shm") / f"ringrouter-bench-{os.getuid()}" / listen.replace("/", "_").replace(":", "_")


def main() -> None:
    """Write the configuration and become the router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True, help="HOST:PORT or unix:/path of the router")
    parser.add_argument("--hosts", required=True, help="the hosts' URLs, separated by commas")
    parser.add_argument(
        "--slots", type=int, default=UNBOUNDED_SLOTS, help="requests at once per host (default: no limit)"
    )
    parser.add_argument("--close", action="store_true", help="the hosts close after every streamed answer")
    parser.add_argument("--wait", default="block", choices=("block", "adaptive", "spin"), help="loop.wait")
    parser.add_argument("--run-dir", type=Path, help="directory of the rings (default: one below /dev/shm)")
    arguments = parser.parse_args()

    if arguments.run_dir is None:
        run_dir = default_run_dir(arguments.listen)
        shutil.rmtree(run_dir, ignore_errors=True)  # what a router killed in an earlier measurement left
    else:
        run_dir = arguments.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    config_file = run_dir / "bench.toml"
    config_file.write_text(
        config_text(
            arguments.listen,
            arguments.hosts.split(","),
            run_dir,
            slots=arguments.slots,
            close=arguments.close,
            wait=arguments.wait,
        ),
        encoding="utf-8",
    )
    os.execve(sys.executable, router_command(config_file), router_environment())


if __name__ == "__main__":
    main()
