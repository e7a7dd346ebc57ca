"""TCP_INFO of a real connection, against what the standard library reads."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from router.telemetry.tcp import NO_TCP_INFO, plain_tcp_info, tcp_descriptor, tcp_info

Read = Callable[[int], bytes]
both = pytest.mark.parametrize("read", [plain_tcp_info, tcp_info])


@both
def test_it_agrees_with_getsockopt_of_the_same_socket(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"x" * 1000)
            assert peer.recv(1000)
            info = struct.unpack("<8I", read(tcp_descriptor(client)))
            raw = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    of_kernel = struct.unpack_from("<8x24I", raw)
    assert info[:2] == of_kernel[15:17], "the round-trip time and its variation"
    assert info[0] > 0
    assert info[2] == struct.unpack_from("<I", raw, 148)[0] > 0, "the smallest round-trip time"
    assert info[3:5] == (of_kernel[7], of_kernel[23]) == (0, 0), "retransmissions"
    assert info[5:] == (of_kernel[18], of_kernel[4], 1)
    assert info[5] > 0


@both
def test_what_is_no_tcp_connection_has_none(read: Read) -> None:
    left, right = socket.socketpair()
    with left, right:
        assert tcp_descriptor(left) == -1
        assert read(left.fileno()) == NO_TCP_INFO
    closed = socket.socket()
    closed.close()
    assert read(tcp_descriptor(closed)) == read(-1) == NO_TCP_INFO
    assert tcp_descriptor(None) == -1
