"""What a thousand clients that never finish their requests cost everybody else: ``python -m bench.slowloris``.

Streams run through a router at an even pace, first in quiet, then beside ``--attackers`` connections of which each
sends a request head one byte at a time and never ends it (a *slow loris*). A connection that the router ends, as it
does with each after ``timeouts.head_s``, is opened again at once. Both runs take turns, ``--rounds`` times. Reported is
the median time from a host's write of a token to the client's read, less that of the same load without a router: what
the router adds. Exit status 1: the attack makes it more than ``--limit`` times as long, or the router lets fewer
attackers stay connected than were asked for, so that nothing was measured.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import sys
import threading
from time import monotonic
from typing import Any, Final, Self

from bench.build import BuildError
from bench.processes import MockHosts, RouterProcess, run_load

ATTACKERS: Final = 1000
LIMIT: Final = 1.5
_HEAD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nhost: slow\r\nx-filler: "
_BYTE_EVERY_S: Final = 1.0
"""Between two bytes of one connection: a thousand of them wake the router a thousand times a second."""
_TURN_S: Final = 0.01
_CONNECTED_LIMIT_S: Final = 10.0
_STREAMS: Final = "mode=stream conc={streams} n=32 ttft=20000 itl=20000 dur={seconds} warm=0.8"


class Attack:
    """Connections that send heads byte by byte, on a thread of its own; a context manager."""

    def __init__(self, target: str, count: int) -> None:
        host, _, port = target.rpartition(":")
        self._address = (host, int(port))
        self._count = count
        self._selector = selectors.DefaultSelector()
        self._sent: dict[socket.socket, int] = {}
        self._due: dict[socket.socket, float] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ended_count = 0
        """Connections that the router has ended."""

    @property
    def open_count(self) -> int:
        """Connections there are now."""
        return len(self._sent)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline_s = monotonic() + _CONNECTED_LIMIT_S
        while self.open_count < self._count and monotonic() < deadline_s:
            self._thread.join(_TURN_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            for _ in range(min(self._count - len(self._sent), 50)):
                self._open()
            for key, _ in self._selector.select(_TURN_S):
                self._read(key.fileobj)  # type: ignore[arg-type]
            now = monotonic()
            for sock in [sock for sock, due in self._due.items() if due <= now]:
                self._send(sock, now)
        for sock in list(self._sent):
            self._forget(sock)
        self._selector.close()

    def _open(self) -> None:
        sock = socket.create_connection(self._address)
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)
        self._sent[sock] = 0
        # Evenly over the interval, not all at once: the worst is a router that never gets to sleep.
        self._due[sock] = monotonic() + _BYTE_EVERY_S * (len(self._sent) % 100) / 100

    def _send(self, sock: socket.socket, now: float) -> None:
        sent = self._sent[sock]
        try:
            sock.send(_HEAD[sent : sent + 1] or b"x")
        except OSError:
            self._end(sock)
            return
        self._sent[sock] = sent + 1
        self._due[sock] = now + _BYTE_EVERY_S

    def _read(self, sock: socket.socket) -> None:
        try:
            if sock.recv(4096):
                return  # why it was refused; the end follows
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        if sock in self._sent:
            self.ended_count += 1
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._sent[sock], self._due[sock]
        sock.close()


def token_p50_us(run: dict[str, Any]) -> float:
    """Return the median time of a token from write to read in µs; raises ``RuntimeError`` for a load with failures."""
    if any(run["errors"].values()) or not run["tok"]["n"]:
        raise RuntimeError(f"streams failed: {run['errors']}")
    value: float = run["tok"]["p50"]
    return value


def main() -> int:
    """Measure, print, and say whether the limit holds."""
    arguments = _arguments()
    load = _STREAMS.format(streams=arguments.streams, seconds=arguments.seconds)
    times: dict[str, list[float]] = {"direct": [], "quiet": [], "attacked": []}
    most_open = ended = 0
    try:
        with MockHosts(["127.0.0.1:0"]) as hosts, RouterProcess(hosts.urls) as router:
            router.wait_ready()
            for _ in range(arguments.rounds):
                times["direct"].append(token_p50_us(run_load(hosts.addresses[0], load)))
                times["quiet"].append(token_p50_us(run_load(router.target, load)))
                with Attack(router.target, arguments.attackers) as attack:
                    times["attacked"].append(token_p50_us(run_load(router.target, load)))
                    most_open = max(most_open, attack.open_count)
                ended += attack.ended_count
    except (BuildError, RuntimeError) as error:
        print(f"slowloris: {error}", file=sys.stderr)
        return 1
    return _report(times, arguments, most_open, ended)


def _report(times: dict[str, list[float]], arguments: argparse.Namespace, most_open: int, ended: int) -> int:
    medians = {name: statistics.median(values) for name, values in times.items()}
    added = {name: medians[name] - medians["direct"] for name in ("quiet", "attacked")}
    ratio = added["attacked"] / max(added["quiet"], 1.0)
    print(f"{arguments.streams} streams, {arguments.attackers} slow connections, {arguments.rounds} rounds; µs at p50")
    for name, values in times.items():
        more = f"  added {added[name]:7.1f}" if name in added else ""
        print(f"{name:<10}{medians[name]:9.1f}  ({min(values):.1f} to {max(values):.1f}){more}")
    print(f"attacked / quiet {ratio:.2f}, limit {arguments.limit:g}; {most_open} stayed connected, {ended} were ended")
    return int(ratio > arguments.limit or most_open < arguments.attackers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.slowloris", description=__doc__)
    parser.add_argument("--attackers", type=int, default=ATTACKERS, help=f"slow connections (default: {ATTACKERS})")
    parser.add_argument("--streams", type=int, default=32, help="streams that run meanwhile (default: 32)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, taking turns (default: 3)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"attacked over quiet (default: {LIMIT:g})")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
