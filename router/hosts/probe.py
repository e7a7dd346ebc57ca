"""Asking a host what it is and whether it can serve: small GETs off the token path."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

import msgspec

from router.errors import UNDECODABLE
from router.hosts.host import Host
from router.hosts.kinds import facts_of, kind_of_owner
from router.http1 import HEAD_END, EofDecoder, ProtocolError, declared_length, parse_response_head, response_decoder

_ANSWER_BYTES_MAX: Final = 4 << 20


_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def own_fault(error: OSError) -> bool:
    """Whether an error says that this process lacks something, and nothing about the host."""
    return error.errno in _OWN_FAULTS


class ProbeError(Exception):
    """A host did not answer a probe; the text says how. ``own_fault``: the router could not even ask."""

    def __init__(self, text: str, *, own_fault: bool = False) -> None:
        super().__init__(text)
        self.own_fault = own_fault


async def get(host: Host, path: str, timeout_s: float) -> tuple[int, bytes]:
    """GET a path of a host on a connection of its own; raises :class:`ProbeError`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(host, path)
    except TimeoutError:
        raise ProbeError(f"no answer to GET {path} within {timeout_s:g} s") from None
    except ProtocolError as error:
        raise ProbeError(f"GET {path}: not HTTP: {error}") from None
    except OSError as error:
        raise ProbeError(f"cannot connect: {error.strerror or error}", own_fault=own_fault(error)) from None


async def _get(host: Host, path: str) -> tuple[int, bytes]:
    reader, writer, name = await _open(host)
    try:
        auth = host.authorization().decode()
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {name}\r\n{auth}connection: close\r\n\r\n".encode())
        data = b""
        while HEAD_END not in data:
            more = await reader.read(65536)
            if not more:
                raise ProtocolError("the connection closed before the head was complete")
            data += more
            _bound(data)
        head_bytes, _, rest = data.partition(HEAD_END)
        head = parse_response_head(head_bytes + HEAD_END)
        decoder = response_decoder(head, declared_length(head))
        body = decoder.feed(rest)
        while not decoder.ended:
            more = await reader.read(65536)
            if not more:
                if isinstance(decoder, EofDecoder):
                    break
                raise ProtocolError("the connection closed in the middle of the answer")
            body += decoder.feed(more)
            _bound(body)
        return head.status, body
    finally:
        writer.close()


def _bound(data: bytes) -> None:
    if len(data) > _ANSWER_BYTES_MAX:
        raise ProtocolError(f"an answer over {_ANSWER_BYTES_MAX} bytes")


async def _open(host: Host) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """Connect to a host; of a name with several addresses, to the first one that accepts, which is then used by all."""
    address = host.address
    if isinstance(address, str):
        return *await asyncio.open_unix_connection(address), "localhost"
    name, port = address
    refusal: OSError | None = None
    for found in await _addresses(host):
        try:
            streams = await asyncio.open_connection(*found)
        except OSError as error:
            refusal = error
            continue
        host.resolved = found
        return *streams, f"{name}:{port}"
    raise refusal or OSError(f"{name} has no address")


async def _addresses(host: Host) -> list[tuple[str, int]]:
    """Return where to try a host: the address in use while it is healthy, else all that its name has now."""
    if host.healthy and isinstance(host.resolved, tuple):
        return [host.resolved]
    assert isinstance(host.address, tuple)
    name, port = host.address
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{name} is no name of a host") from None
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))


async def check_health(host: Host, timeout_s: float) -> None:
    """Ask the health path; raises :class:`ProbeError` unless it answers 200."""
    path = host.facts.health_path
    status, body = await get(host, path, timeout_s)
    if status != 200:
        text = body[:200].decode("utf-8", "replace").strip()
        raise ProbeError(f"GET {path} answered {status}{': ' + text if text else ''}")


async def interview(host: Host, timeout_s: float) -> None:
    """Ask a host for its kind, models and slots and take them over; raises :class:`ProbeError`."""
    config = host.config
    kind: str = config.kind
    names: list[str] = []
    if kind == "auto" or not config.models:
        status, body = await get(host, "/v1/models", timeout_s)
        if status != 200:
            raise ProbeError(f"GET /v1/models answered {status}")
        names, owner = _read_models(body)
        if kind == "auto":
            kind = kind_of_owner(owner)
    if not (config.models or names):
        raise ProbeError("GET /v1/models names no model")
    path = facts_of(kind, config).slots_path
    slot_count = await _ask_slots(host, path, timeout_s) if config.slots is None and path else 0
    # All at once: it may be in use, asked anew because its settings have changed.
    host.take_facts(kind, {name: name for name in names}, slot_count)
    host.probed = True


def _read_models(body: bytes) -> tuple[list[str], str]:
    """Return the ids in a model list and the owner of the first."""
    try:
        decoded: Any = msgspec.json.decode(body)
        data = decoded["data"]
        return [str(entry["id"]) for entry in data], str(data[0].get("owned_by", "")) if data else ""
    except (*UNDECODABLE, KeyError, TypeError, AttributeError):
        raise ProbeError("GET /v1/models: not a list of models") from None


async def _ask_slots(host: Host, path: str, timeout_s: float) -> int:
    """Return how many slots a host says that it has, 0 if it does not."""
    status, body = await get(host, path, timeout_s)
    if status != 200:
        return 0
    try:
        slots = msgspec.json.decode(body).get("total_slots")
    except (*UNDECODABLE, AttributeError):
        return 0
    return slots if isinstance(slots, int) and slots > 0 else 0
