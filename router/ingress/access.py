"""Keys at the HTTP ingress: whose request a head is, what it may, and what is answered where it may not.

All of it is settled once for heads that repeat, and kept with them (:class:`router.http1.HeadMemo`); only what a key
has used is looked at for each request. The key itself is taken out of the head: nothing behind this module sees it.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.errors import ErrorKind, RequestError
from router.ingress.route import Route

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from router.config import Config
    from router.http1 import Head
    from router.ingress.http import ClientConnection
    from router.keys.registry import Registry

_OPEN: Final = frozenset({b"/health", b"/ready"})
"""What balancers and monitors ask without a key. They hear no more than yes or no."""
_SECRET_HEADERS: Final = (b"authorization", b"x-api-key", b"proxy-authorization", b"cookie")
_FORWARDED_BYTES_MAX: Final = 1024


class HttpAccess:
    """Stands beside a server while keys are configured."""

    def __init__(self, registry: Registry, config: Config) -> None:
        self._registry = registry
        self._has_features = bool(config.features)
        self._proxies = [ip_network(each, strict=False) for each in config.listen.trusted_proxies]

    def route(self, head: Head) -> Route:
        """Return what a head says, with the account of its key or with the error that refuses it."""
        headers = head.headers
        account, refusal = None, None
        try:
            account = self._registry.of_headers(headers)
            account.put_tags(headers)
        except RequestError as error:
            refusal = error
        has_key = b"authorization" in headers or b"x-api-key" in headers
        for name in _SECRET_HEADERS:
            headers.pop(name, None)
        route = Route(head, has_features=self._has_features)
        route.has_key = has_key
        if account is not None and not account.may_ask and head.method == b"POST":
            text = f"key {account.name!r} may look and not ask (its role is {account.config.role})"
            refusal = RequestError(ErrorKind.FORBIDDEN, text)
        route.account = account
        route.is_special = True
        route.body_refusal = refusal
        if refusal is not None and not (account is None and route.path in _OPEN):
            route.refusal = refusal
            route.endpoint = None  # it is answered where pages are
        return route

    def note_refusal(self, connection: ClientConnection, head: Head, error: RequestError) -> None:
        """Count a refusal; ``connection`` is whose."""
        account = head.route.account
        name = account.name if account is not None else ""
        self._registry.note_refusal(error, name, lambda: client_of(connection, head, self._proxies), monotonic_ns())


def client_of(connection: ClientConnection, head: Head, proxies: list[IPv4Network | IPv6Network]) -> str:
    """Return the address of a client: of who is connected or, where that is a trusted proxy, of whom it names.

    Each proxy appends to ``x-forwarded-for`` whom it was asked by. So the last entry that is no trusted proxy itself is
    the client; what stands before it anybody may have written.
    """
    address = connection.peer_address()
    forwarded = head.headers.get(b"x-forwarded-for", b"")
    if not forwarded or len(forwarded) > _FORWARDED_BYTES_MAX or not _is_within(address, proxies):
        return address
    for each in reversed(forwarded.decode("latin-1").split(",")):
        named = _plain(each.strip())
        if not named:
            break
        address = named
        if not _is_within(named, proxies):
            break
    return address


def _plain(text: str) -> str:
    """Return an address in its usual form, without a port; empty for what is none."""
    host = text[1 : text.find("]")] if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def _is_within(address: str, networks: list[IPv4Network | IPv6Network]) -> bool:
    if not networks:
        return False
    try:
        parsed = ip_address(address)
    except ValueError:
        return address == "unix"  # only who may open the socket is there: a proxy on this machine
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
