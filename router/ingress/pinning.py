"""Requests whose client names the host that is to answer: ``x-ringrouter-host``, or ``host`` in a ZeroMQ header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import ErrorKind, RequestError

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.loop import Loop
    from router.request import Request

PIN_HEADER: Final = b"x-ringrouter-host"
_NAMED_MAX: Final = 20
_SHOWN_CHARS_MAX: Final = 100


def pin(loop: Loop, request: Request, name: str) -> None:
    """Let a request go to the host of this name and to no other; raises :class:`RequestError` where it never can.

    That the host cannot serve just now is no error here: the request waits for its slots as any other, and is refused
    as any other whose model no host can serve.
    """
    host = next((host for host in loop.hosts if host.name == name), None)
    if host is None:
        raise _refused(f"{name[:_SHOWN_CHARS_MAX]!r} is not a host here (hosts: {_names(loop.hosts)})")
    model = request.model
    if host not in model.hosts:
        if not host.probed:
            text = f"{PIN_HEADER.decode()}: which models {name!r} has is not known yet, it did not answer so far"
            raise RequestError(ErrorKind.NO_HOST, text, PIN_HEADER.decode())
        raise _refused(f"host {name!r} does not have model {model.name!r} (hosts that have it: {_names(model.hosts)})")
    if request.path and request.path not in host.facts.paths:
        able = [host for host in model.hosts if request.path in host.facts.paths]
        raise _refused(f"host {name!r} does not have {request.path} (hosts that have it: {_names(able)})")
    request.own_terms().pin = host.host_id


def _refused(text: str) -> RequestError:
    name = PIN_HEADER.decode()
    return RequestError(ErrorKind.BAD_REQUEST, f"{name}: {text}", name)


def _names(hosts: list[Host]) -> str:
    return ", ".join(sorted(host.name for host in hosts)[:_NAMED_MAX]) or "none"
