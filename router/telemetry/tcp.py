"""TCP_INFO of a client's socket: its share of the time, as the kernel sees it."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from router import native

_TCP_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_U32_MAX: Final = 0xFFFFFFFF
# struct tcp_info of linux/tcp.h: 8 bytes of small fields, then u32 fields by index, then 64-bit ones from byte 104.
_U32S: Final = struct.Struct("<8x24I")
_UNACKED, _RETRANS, _RTT, _RTTVAR, _CWND, _TOTAL_RETRANS = 4, 7, 15, 16, 18, 23
_INFO: Final = struct.Struct("<8I")
_MIN_RTT_OFFSET: Final = 148
_INFO_BYTES: Final = 192


NO_TCP_INFO: Final = b""
"""Where there is no TCP socket; in a record zeros, and so not valid."""


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


def tcp_descriptor(sock: Any) -> int:
    """Return the descriptor of a transport's socket, -1 where it is not one of TCP."""
    return int(sock.fileno()) if sock is not None and sock.family in _TCP_FAMILIES else -1


def plain_tcp_info(descriptor: int) -> bytes:
    """Read TCP_INFO of a descriptor, as it stands in a record: round-trip times in µs, counts, and 1 for valid.

    :data:`NO_TCP_INFO` where there is none. One system call.
    """
    raw = _read(descriptor) if descriptor >= 0 else b""
    if len(raw) < _U32S.size:
        return NO_TCP_INFO
    u = _U32S.unpack_from(raw)
    min_rtt = struct.unpack_from("<I", raw, _MIN_RTT_OFFSET)[0] if len(raw) >= _MIN_RTT_OFFSET + 4 else 0
    min_rtt = 0 if min_rtt == _U32_MAX else min_rtt
    return _INFO.pack(u[_RTT], u[_RTTVAR], min_rtt, u[_RETRANS], u[_TOTAL_RETRANS], u[_CWND], u[_UNACKED], 1)


tcp_info: Final[Callable[[int], bytes]] = plain_tcp_info if native.steps is None else native.steps.tcp_info
"""As :func:`plain_tcp_info`, without ctypes where there is native code."""
