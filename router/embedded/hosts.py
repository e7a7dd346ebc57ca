"""The model hosts that come with the project: a small chat model and a small embedding model.

Each is ``llama_host`` with its arguments, on a unix socket. It is run by the Python of ``.venv-host``, which ``make
hosts`` sets up; :func:`find_host_python` says where that is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST_PYTHON_VARIABLE: Final = "RINGROUTER_HOST_PYTHON"
"""Environment variable that names the Python of the model hosts, where it is not beside the checkout."""

CHAT_SLOT_COUNT: Final = 2
CHAT_THREADS_MAX: Final = 4
"""More threads than this do not make a model of 135 million parameters faster."""

_HERE: Final = Path(__file__).parent


class HostPythonMissingError(Exception):
    """There is no Python with the model hosts' packages; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class EmbeddedHost:
    """One model host: its name, the model it serves, and the arguments of its program."""

    name: str
    model: str
    what: str
    """What it is, in words for a first-time user."""
    arguments: tuple[str, ...]

    def command(self, python: Path, socket_path: Path, *more: str) -> list[str]:
        """Return the command that serves on ``socket_path``; arguments in ``more`` override the host's own."""
        program = [str(python), "-I", str(_HERE / "llama_host.py")]  # -I: this environment's PYTHONPATH is not its own
        return [*program, *self.arguments, "--alias", self.model, "--host", str(socket_path), *more]


def _threads_beside_the_router() -> int:
    """Return how many threads the chat model may compute with: one core is left to the router where there are two."""
    return max(1, min(CHAT_THREADS_MAX, len(os.sched_getaffinity(0)) - 1))


CHAT: Final = EmbeddedHost(
    name="chat",
    model="smollm2-135m",
    what="chat model SmolLM2-135M",
    arguments=(
        *("--model", "smollm2", "--chat-template", str(_HERE / "tools.jinja")),
        *("--slots", str(CHAT_SLOT_COUNT), "--threads", str(_threads_beside_the_router())),
        *("--batch", "256", "--http-threads", "64"),
    ),
)

EMBEDDING: Final = EmbeddedHost(
    name="embedding",
    model="all-minilm-l6-v2",
    what="embedding model all-MiniLM-L6-v2",
    arguments=("--model", "minilm", "--embedding", "--ctx", "512", "--slots", "2", "--threads", "1"),
)


def find_host_python(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the Python that runs the hosts; raises :class:`HostPythonMissingError` with what to do about it."""
    named = environment.get(HOST_PYTHON_VARIABLE)
    if named and os.access(named, os.X_OK):
        return Path(named)
    if named:
        raise HostPythonMissingError(f"{HOST_PYTHON_VARIABLE} = {named!r}: there is no such program")
    places = [_HERE.parent.parent, Path(sys.prefix).parent]  # the checkout; and where .venv is, if installed there
    for place in places:
        python = place / ".venv-host" / "bin" / "python"
        if os.access(python, os.X_OK):
            return python
    raise HostPythonMissingError(
        "the models of `ringrouter run` are not installed here. In a checkout of ringrouter, `make run` installs and "
        f"starts them ({places[0] / '.venv-host'} is missing). To serve hosts of your own: ringrouter run --config FILE"
    )


def config_text(
    run_dir: Path, http_address: str, observer_address: str, sockets: Mapping[EmbeddedHost, Path], drain_s: float
) -> str:
    """Return the configuration (TOML) of router and observer for these hosts at these sockets."""
    # A JSON string of a path or name is a TOML string too.
    lines = [
        "# Written by `ringrouter run`; a start to copy for a configuration of your own.",
        "version = 1",
        "",
        "[listen]",
        f"http = {json.dumps(http_address)}",
        f"run_dir = {json.dumps(str(run_dir))}",
        "",
        "[timeouts]",
        f"drain_s = {drain_s}",
        "",
        "[observer]",
        f"http = {json.dumps(observer_address)}",
    ]
    for host, socket_path in sockets.items():
        lines += [
            "",
            "[[hosts]]",
            f"name = {json.dumps(host.name)}",
            'kind = "llama.cpp"',
            f"url = {json.dumps(f'unix://{socket_path}')}",
            f"models = {json.dumps([host.model])}",
        ]
    return "\n".join(lines) + "\n"
