"""``ringrouter ask``: one chat through the router, in the terminal or a pipe, and where its time went.

The answer alone goes to standard output. Notes, errors and the waterfall go to standard error; the waterfall only when
that is a terminal, or when it is asked for. Exit codes: 1 the request failed or its answer cannot be written, 2 usage,
3 no router there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from router import config
from router.cli import EXIT_OK, EXIT_USAGE, fail
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
_CONTROLS: Final = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
"""What a terminal would obey: a model must not be able to set its title, move its cursor or write its clipboard."""
_EVERY_ADDRESS: Final = ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:")


def run(args: argparse.Namespace) -> int:
    """Ask, print the answer as it comes, and say where the time went."""
    _prepare_output()
    try:
        prompt = _prompt(args)
        curve = {"server_key": args.server_key, "curve_key_file": args.curve_key_file}
        with Client(endpoint_of(args), connect_timeout_s=CONNECT_TIMEOUT_S, **curve) as client:
            _ask(client, args, prompt)
    except RouterError as error:
        _complain(" ".join(str(error).split()))
        return EXIT_NO_ROUTER if _found_none(error) else EXIT_FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up_output(error)
        return EXIT_FAILED
    except ValueError as error:
        _complain(str(error))
        return EXIT_USAGE
    return EXIT_OK


def _prepare_output() -> None:
    """Make standard output take any text."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - print() would take standard output instead
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _prompt(args: argparse.Namespace) -> str:
    """Return what is to be asked; raises :class:`ValueError` for what cannot be sent."""
    prompt = _standard_input() if args.prompt == STDIN else args.prompt
    given = {"the text": prompt, "--model": args.model or "", "--system": args.system or ""}
    for what, value in (given | {f"--tag {name}": value for name, value in args.tag}).items():
        try:
            value.encode()
        except UnicodeEncodeError:  # a surrogate stands for a byte that is no text
            raise ValueError(f"{what}: expected UTF-8") from None
    if not prompt.strip():
        raise ValueError("nothing to ask: the text is empty")
    return str(prompt)


def _standard_input() -> str:
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not text: {error}") from None


def _found_none(error: RouterError) -> bool:
    """Return whether there was no router that the request could be sent to."""
    return isinstance(error, NotConnected) and error.code == "not_connected"


def _complain(text: str) -> None:
    """Say what went wrong, whatever a host has put into it, if there is somewhere to say it."""
    with suppress(OSError):
        fail(text.translate(_CONTROLS))


def _give_up_output(error: OSError) -> None:
    """Say that writing failed; what was not written must not fail once more when the interpreter flushes it."""
    _complain(f"cannot write the answer: {error.strerror or error}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    with stream, _Shown(silent=args.json) as shown:
        if first is not None:
            shown.add(first)
        for token in stream:
            shown.add(token)
    timing = stream.timing
    assert timing is not None, "a stream without an error has ended properly"
    if args.json:
        # In ASCII, which no encoding of standard output and no terminal can break.
        record = msgspec.to_builtins(_as_json(model, stream, timing))
        sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    if args.waterfall if args.waterfall is not None else sys.stderr.isatty() and not args.json:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, RouterError) or not isinstance(error, OSError):  # else there is nowhere to write to
            self._end()

    def add(self, token: Token) -> None:
        """Print a token. What a model thinks is no answer: it is shown to people, faint, and not to programs."""
        self.times_ns.append(token.t_ns)
        thinks = token.kind == "reasoning"
        if self._silent or (thinks and not self._is_terminal):
            return
        if thinks != self._thinking:
            self._thinking = thinks
            self._write(_FAINT if thinks else f"{_PLAIN}\n\n")
        text = token.text.translate(_CONTROLS) if self._is_terminal else token.text
        self._last = text or self._last
        self._write(text)

    def _end(self) -> None:
        """End the last line, however the answer ended: what follows is the error or the shell's prompt."""
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
        "n_cached": _detail(usage, "prompt_tokens_details", "cached_tokens"),
        "n_out": n_out or len(times_ns),
        "n_reasoning": _detail(usage, "completion_tokens_details", "reasoning_tokens"),
    }


def _detail(usage: Mapping[str, Any], part: str, name: str) -> int:
    """Return one of the host's finer counts, 0 where it has none that is a count."""
    details = usage.get(part)
    count = details.get(name) if isinstance(details, dict) else None
    return count if isinstance(count, int) else 0
