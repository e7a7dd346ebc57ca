"""TCP_NODELAY is set on both sides: without it a token waits up to 40 ms for the acknowledgement of the one before."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import uvloop

from ringbuffer import CountersWriter
from router.config import HostConfig
from router.hosts.fleet import Fleet
from router.hosts.host import Host
from router.ingress.http import ClientConnection
from router.ingress.server import HttpServer

WAIT_S = 5.0


class AcceptingServer:
    """As much of the HTTP server as a connection needs to begin and to end."""

    def __init__(self) -> None:
        self.accepted: asyncio.Future[ClientConnection] = asyncio.get_running_loop().create_future()

    def accept(self, connection: ClientConnection) -> bool:
        self.accepted.set_result(connection)
        return True

    def forget(self, connection: ClientConnection) -> None:
        """Nothing is kept of it."""


class NoCounters:
    def add(self, counter: int, count: int = 1) -> None:
        """Count nothing."""


def no_delay(transport: asyncio.BaseTransport | None) -> int:
    assert transport is not None
    return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


async def both_sides() -> tuple[int, int]:
    """Connect a real connection to hosts with a real connection of clients; return the option at both."""
    event_loop = asyncio.get_running_loop()
    server = AcceptingServer()
    listener = await event_loop.create_server(lambda: ClientConnection(cast("HttpServer", server)), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    host = Host(HostConfig(name="alpha", url=f"http://127.0.0.1:{port}"), 1, 0)
    host.resolved, host.healthy, host.usable = ("127.0.0.1", port), True, True
    fleet = Fleet([host], cast("CountersWriter", NoCounters()), WAIT_S)
    fleet.top_up(host, 0)
    client = await asyncio.wait_for(server.accepted, WAIT_S)
    await asyncio.wait_for(asyncio.gather(*fleet._tasks), WAIT_S)
    options = no_delay(client._transport), no_delay(host.idle[0].transport)
    await fleet.close()
    listener.close()
    await listener.wait_closed()
    return options


def test_tcp_nodelay_is_set_towards_clients_and_hosts() -> None:
    assert uvloop.run(both_sides()) == (1, 1)
