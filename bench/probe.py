"""A featureless proxy on uvloop: what the base that ringrouter stands on can do at its best, for comparison.

    python bench/probe.py --listen 127.0.0.1:8200 --hosts 127.0.0.1:8101,127.0.0.1:8102

It finds where requests and answers end, keeps connections to the hosts, and passes bytes as they are. It does nothing
else: no routing, records, retries, limits or errors; what breaks closes both sides. It understands the mock host, whose
last chunk ends a read, and the load generator, and is no proxy for anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import itertools
from typing import cast

import uvloop

HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"
LAST_CHUNK = b"\r\n0\r\n\r\n"


def message_bytes(head_and_more: bytes) -> int | None:
    """Return how long a message with this head is in all; None when its body comes in chunks; -1: the head is cut."""
    head_end = head_and_more.find(HEAD_END)
    if head_end < 0:
        return -1
    head = head_and_more[:head_end].lower()
    at = head.find(LENGTH)
    if at < 0:
        return None if b"\r\ntransfer-encoding:" in head else head_end + 4
    return head_end + 4 + int(head[at + len(LENGTH) :].partition(b"\r\n")[0])


class Upstream(asyncio.Protocol):
    """One connection to a host; ``client`` is whom it answers now."""

    def __init__(self, idle: collections.deque[Upstream]) -> None:
        self._idle = idle
        self.transport: asyncio.WriteTransport | None = None
        self.client: Downstream | None = None
        self._begun = False
        self._left_bytes: int | None = 0

    def ask(self, client: Downstream, request: bytes) -> None:
        """Send a request of this client's."""
        assert self.transport is not None
        self.client = client
        self._begun = False
        self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's transports do not say what they are

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:
            return
        if not self._begun:
            self._begun = True
            self._left_bytes = message_bytes(data)
        client.transport.write(data)
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
        if self._left_bytes == 0 or (self._left_bytes is None and data.endswith(LAST_CHUNK)):
            self.client = None
            self._idle.append(self)
            client.upstream = None

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        if self in self._idle:
            self._idle.remove(self)
        if self.client is not None:
            self.client.transport.close()


class Downstream(asyncio.Protocol):
    """One client; at most one request at a time."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._request = b""
        self.upstream: Upstream | None = None
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's transports do not say what they are

    def data_received(self, data: bytes) -> None:
        self._request = self._request + data if self._request else data
        if len(self._request) != message_bytes(self._request):
            return
        request, self._request = self._request, b""
        if self._proxy.idle:
            self.upstream = self._proxy.idle.popleft()
            self.upstream.ask(self, request)
        else:
            self._proxy.connect(self, request)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        if self.upstream is not None and self.upstream.transport is not None:
            self.upstream.client = None
            self.upstream.transport.abort()


class Proxy:
    """The hosts in turn, and the connections to them that are free."""

    def __init__(self, hosts: list[tuple[str, int]]) -> None:
        self.idle: collections.deque[Upstream] = collections.deque()
        self._next_host = itertools.cycle(hosts)
        self._connecting: set[asyncio.Task[None]] = set()

    def connect(self, client: Downstream, request: bytes) -> None:
        """Open a further connection to the next host and send the request on it."""
        task = asyncio.get_running_loop().create_task(self._connect(client, request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: Downstream, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(lambda: Upstream(self.idle), *next(self._next_host))
        except OSError:
            client.transport.close()
            return
        client.upstream = upstream
        upstream.ask(client, request)


def _address(text: str) -> tuple[str, int]:
    name, _, port = text.rpartition(":")
    return name, int(port)


async def _serve(listen: tuple[str, int], hosts: list[tuple[str, int]]) -> None:
    proxy = Proxy(hosts)
    server = await asyncio.get_running_loop().create_server(lambda: Downstream(proxy), *listen, backlog=4096)
    gc.collect()
    gc.freeze()
    await server.serve_forever()


def main() -> None:
    """Serve until this process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True, type=_address, help="HOST:PORT")
    parser.add_argument("--hosts", required=True, help="HOST:PORT,HOST:PORT")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.listen, [_address(host) for host in arguments.hosts.split(",")]))


if __name__ == "__main__":
    main()
