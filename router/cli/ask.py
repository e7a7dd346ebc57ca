"""``ringrouter ask``: one chat through the router, in the terminal or a pipe, and where its time went.

The answer alone goes to standard output. Notes, errors and the waterfall go to standard error; the waterfall only when
that is a terminal, or when it is asked for. Exit codes: 1 the request failed, 2 usage, 3 no router there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from router import config
from router.cli import EXIT_OK, fail
from router.cli.location import instance_dir
from router.client import Client, NotConnected, RouterError, Stream, Timing, Token
from router.errors import ConfigError
from router.stamps import EARLY_WINDOW_NS
from router.telemetry import waterfall

SCHEMA: Final = "ringrouter.ask/1"
EXIT_FAILED: Final = 1
EXIT_NO_ROUTER: Final = 3
STDIN: Final = "-"
CONNECT_TIMEOUT_S: Final = 5.0
WIDTH_MAX: Final = 100
_CANNOT_CHAT: Final = frozenset({400, 404, 500, 501})
"""What hosts answer when a model that only embeds is asked for a chat; there is no other way to be sure."""
_EMBEDDING_NAME: Final = re.compile(r"embed|minilm|bge-|rerank", re.IGNORECASE)
_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"
_EVERY_ADDRESS: Final = ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:")


def run(args: argparse.Namespace) -> int:
    """Ask, print the answer as it comes, and say where the time went."""
    try:
        prompt = sys.stdin.read() if args.prompt == STDIN else args.prompt
        if not prompt.strip():
            return fail("nothing to ask: the text is empty")
        client = Client(endpoint_of(args), connect_timeout_s=CONNECT_TIMEOUT_S)
    except UnicodeDecodeError as error:
        return fail(f"standard input is not text: {error}")
    except (ConfigError, ValueError) as error:
        return fail(error)
    with client:
        try:
            _ask(client, args, prompt)
        except NotConnected as error:
            fail(error)
            return EXIT_NO_ROUTER
        except RouterError as error:
            fail(error)
            return EXIT_FAILED
    return EXIT_OK


def endpoint_of(args: argparse.Namespace) -> str:
    """Return where the router's ZeroMQ socket is; raises :class:`ConfigError`."""
    if args.endpoint:
        return str(args.endpoint)
    directory = instance_dir(args)
    if args.config is None or args.instance is not None:
        return f"ipc://{directory}/zmq.sock"
    settings = config.load(args.config, need_keys=False)
    if not settings.listen.zeromq:
        raise ConfigError(f"{args.config}: listen.zeromq is empty: this router has no ZeroMQ socket")
    endpoint = config.zeromq_endpoint(settings, settings.listen.zeromq[0], directory=directory.parent)
    for every in _EVERY_ADDRESS:
        endpoint = endpoint.replace(every, "tcp://127.0.0.1:")
    return endpoint


def _ask(client: Client, args: argparse.Namespace, prompt: str) -> None:
    model, stream, first = _begin(client, args, prompt)
    with stream:
        shown = _Shown(silent=args.json)
        if first is not None:
            shown.add(first)
        for token in stream:
            shown.add(token)
        shown.end()
    timing = stream.timing
    assert timing is not None, "a stream without an error has ended properly"
    if args.json:
        sys.stdout.write(msgspec.json.encode(_as_json(model, stream, timing)).decode() + "\n")
    if args.waterfall if args.waterfall is not None else sys.stderr.isatty() and not args.json:
        sys.stdout.flush()
        width = min(WIDTH_MAX, shutil.get_terminal_size().columns)
        record = _as_record(model, stream, timing, shown.times_ns)
        print(f"\n{waterfall.render(record, width, colour=sys.stderr.isatty())}", file=sys.stderr)


def _begin(client: Client, args: argparse.Namespace, prompt: str) -> tuple[str, Stream, Token | None]:
    """Return the model that answers, its stream and its first token. Without a name, the first model that can chat."""
    names = [args.model] if args.model else sorted(client.models(), key=_embeds)
    if not names:
        raise RouterError("the router has no model")
    body = _body(args)
    messages = [{"role": "user", "content": prompt}]
    if args.system:
        messages.insert(0, {"role": "system", "content": args.system})
    refusal: RouterError | None = None
    for name in names:
        stream = client.chat(name, messages, tags=dict(args.tag), **body)
        try:
            first = next(stream, None)
        except RouterError as error:
            if error.status not in _CANNOT_CHAT or error.delivered:
                raise
            refusal = refusal or error
            continue
        if len(names) > 1:
            others = ", ".join(other for other in names if other != name)
            print(f"asking {name} (--model for another: {others})", file=sys.stderr)
        return name, stream, first
    assert refusal is not None
    raise refusal


def _embeds(name: str) -> bool:
    """Guess from its name whether a model only embeds: such a one is asked last."""
    return _EMBEDDING_NAME.search(name) is not None


def _body(args: argparse.Namespace) -> dict[str, Any]:
    given = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    return {name: value for name, value in given.items() if value is not None}


class _Shown:
    """Prints the tokens as they come and remembers when the router had them."""

    def __init__(self, *, silent: bool) -> None:
        self.times_ns: list[int] = []
        self._silent = silent
        self._is_terminal = sys.stdout.isatty()
        self._thinking = False
        self._last = ""

    def add(self, token: Token) -> None:
        """Print a token. What a model thinks is no answer: it is shown to people, faint, and not to programs."""
        self.times_ns.append(token.t_ns)
        thinks = token.kind == "reasoning"
        if self._silent or (thinks and not self._is_terminal):
            return
        if thinks != self._thinking:
            self._thinking = thinks
            self._write(_FAINT if thinks else f"{_PLAIN}\n\n")
        self._write(token.text)
        self._last = token.text or self._last

    def end(self) -> None:
        """End the last line."""
        if self._thinking:
            self._write(_PLAIN)
        if self._last and not self._last.endswith("\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _as_json(model: str, stream: Stream, timing: Timing) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "request_id": stream.request_id,
        "request_seq": stream.request_seq,
        "model": model,
        "host": stream.host,
        "text": stream.text,
        "reasoning": stream.reasoning,
        "tool_calls": stream.tool_calls,
        "finish_reason": stream.finish_reason,
        "usage": stream.usage,
        "timing": {
            "ttft_ns": timing.ttft_ns,
            "tpot_ns": timing.tpot_ns,
            "e2e_ns": timing.e2e_ns,
            "router_overhead_ns": timing.router_overhead_ns,
            "client_ttft_ns": timing.client_ttft_ns,
            "client_e2e_ns": timing.client_e2e_ns,
            "request_transport_ns": timing.request_transport_ns,
            "first_token_transport_ns": timing.first_token_transport_ns,
            "stages_ns": dict(timing.stage_ns),
            "stamps": dict(timing.stamps),
        },
    }


def _as_record(model: str, stream: Stream, timing: Timing, times_ns: list[int]) -> dict[str, Any]:
    """Return the request as its done record would tell it; tokens of the first seconds are counted by events."""
    usage: Mapping[str, Any] = stream.usage or {}
    first_ns, recv_ns = timing.stamps["tok1"], timing.stamps["recv"]
    early_ns = min(EARLY_WINDOW_NS, timing.stage_ns["decode"])
    early_count = sum(first_ns < t_ns <= first_ns + EARLY_WINDOW_NS for t_ns in times_ns)
    n_out = usage.get("completion_tokens")
    return {
        "outcome": "ok",
        "error": "none",
        "message": "",
        "endpoint": "chat",
        "model": model,
        "host": stream.host,
        "flags": ["stream"] if n_out else ["stream", "n_out_estimated"],
        "failed_attempts": [],
        "stamps": timing.stamps,
        "ttft_ns": timing.ttft_ns,
        "tpot_ns": timing.tpot_ns,
        "e2e_ns": timing.e2e_ns,
        "router_overhead_ns": timing.router_overhead_ns,
        "early_tps": early_count / (early_ns / 1e9) if early_ns else None,
        "visible_2s": sum(t_ns <= recv_ns + EARLY_WINDOW_NS for t_ns in times_ns),
        "n_in": usage.get("prompt_tokens") or 0,
        "n_cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        "n_out": n_out or len(times_ns),
        "n_reasoning": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
    }
