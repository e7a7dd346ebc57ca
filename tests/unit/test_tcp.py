"""TCP_INFO of a real connection, against what the standard library reads."""

from __future__ import annotations

import socket
import struct

from router.telemetry.tcp import NO_TCP_INFO, read_tcp_info


def test_it_agrees_with_getsockopt_of_the_same_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"x" * 1000)
            assert peer.recv(1000)
            info = read_tcp_info(client)
            raw = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    assert info.valid == 1
    assert info.rtt_us == struct.unpack_from("<I", raw, 8 + 15 * 4)[0] > 0
    assert info.snd_cwnd == struct.unpack_from("<I", raw, 8 + 18 * 4)[0] > 0
    assert info.retrans == info.total_retrans == 0


def test_what_is_no_tcp_connection_has_none() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert read_tcp_info(left) == NO_TCP_INFO
    closed = socket.socket()
    closed.close()
    assert read_tcp_info(closed) == NO_TCP_INFO
    assert read_tcp_info(None) == NO_TCP_INFO
