"""TCP_INFO of a client's socket: its share of the time, as the kernel sees it."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_TCP_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_U32_MAX: Final = 0xFFFFFFFF
# struct tcp_info of linux/tcp.h: 8 bytes of small fields, then u32 fields by index, then 64-bit ones from byte 104.
_U32S: Final = struct.Struct("<8x24I")
_UNACKED, _RETRANS, _RTT, _RTTVAR, _CWND, _TOTAL_RETRANS = 4, 7, 15, 16, 18, 23
_MIN_RTT_OFFSET: Final = 148
_INFO_BYTES: Final = 192


class TcpInfo(NamedTuple):
    """Round-trip times in microseconds and counts; ``valid`` 0 where there is no TCP socket."""

    rtt_us: int
    rttvar_us: int
    min_rtt_us: int
    retrans: int
    total_retrans: int
    snd_cwnd: int
    unacked: int
    valid: int


NO_TCP_INFO: Final = TcpInfo(0, 0, 0, 0, 0, 0, 0, 0)


def _reader() -> Callable[[int], bytes]:
    """Return a function that reads TCP_INFO of a descriptor, empty where there is none.

    getsockopt() of the C library, called directly: uvloop's sockets duplicate their descriptor for it (five system
    calls), and a socket object made on the descriptor asks for its name first.
    """
    getsockopt = ctypes.CDLL(None, use_errno=False).getsockopt
    buffer = ctypes.create_string_buffer(_INFO_BYTES)
    length = ctypes.c_uint32()
    where, size = ctypes.byref(buffer), ctypes.byref(length)

    def read(descriptor: int) -> bytes:
        length.value = _INFO_BYTES
        if getsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, where, size) != 0:
            return b""
        return buffer.raw[: length.value]

    return read


_read: Final = _reader()


def read_tcp_info(sock: Any) -> TcpInfo:
    """Read TCP_INFO of a transport's socket; one system call. A unix socket, or one that is gone, has none."""
    if sock is None or sock.family not in _TCP_FAMILIES or (descriptor := sock.fileno()) < 0:
        return NO_TCP_INFO
    raw = _read(descriptor)
    if len(raw) < _U32S.size:
        return NO_TCP_INFO
    u = _U32S.unpack_from(raw)
    min_rtt = struct.unpack_from("<I", raw, _MIN_RTT_OFFSET)[0] if len(raw) >= _MIN_RTT_OFFSET + 4 else 0
    min_rtt = 0 if min_rtt == _U32_MAX else min_rtt
    return TcpInfo(u[_RTT], u[_RTTVAR], min_rtt, u[_RETRANS], u[_TOTAL_RETRANS], u[_CWND], u[_UNACKED], 1)
