"""Keys at the ZeroMQ ingress: whose message it is.

Over an encrypted connection it is who has shown its CURVE key in the handshake: libzmq says so of each message
(``User-Id``, which :mod:`router.ingress.zeromq.curve` has set). Else it is whose key stands in the header. Nothing is
kept between messages: a client may choose its own identity, and the next one may choose the same.
"""

from __future__ import annotations

import secrets
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import zmq

from router.errors import ErrorKind, RequestError
from router.ingress.zeromq.messages import API_VERBS, FRAMES_MAX, NEAREST_VERB

if TYPE_CHECKING:
    from router.ingress.zeromq.messages import Header
    from router.keys.account import Account
    from router.keys.registry import Registry

_OF_OWN_REQUESTS: Final = frozenset({"cancel", "credit"})
"""What a client says of requests that it was allowed to begin."""
_ASKING: Final = frozenset({*API_VERBS, NEAREST_VERB})
_NOBLOCK: Final = int(zmq.NOBLOCK)
_OURS: Final = secrets.token_hex(16) + ":"
"""What begins each ``User-Id`` that is of this process. A client may put properties into its handshake, ``User-Id``
too, and where there is no CURVE libzmq takes them for its own; nobody outside sees this one.
"""


def user_id_of(public_key: str) -> str:
    """Return what libzmq is told to call the messages of who has shown a CURVE key."""
    return _OURS + public_key


class ZmqAccess:
    """Stands beside the server while keys are configured. What it says is of the message received last."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._user = ""
        self._address = ""
        self.account: Account | None = None
        """Whose message it is, once :meth:`check` has found out."""

    def receive(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        """Receive a message as the server does, and note who has sent it."""
        first: Any = socket.recv(_NOBLOCK, copy=False)
        frames = [first.bytes]
        last = first
        while last.more:
            last = socket.recv(_NOBLOCK, copy=False)
            if len(frames) <= FRAMES_MAX:
                frames.append(last.bytes)
        self.account = None
        user = _property(last, "User-Id")
        self._user = user.removeprefix(_OURS) if user.startswith(_OURS) else ""
        self._address = _property(last, "Peer-Address")
        return frames

    def check(self, header: Header) -> None:
        """Find out whose message it is, and whether it may; raises :class:`RequestError`."""
        if header.verb in _OF_OWN_REQUESTS:
            return
        registry = self._registry
        if self._user:
            account = registry.known(registry.of_curve(self._user))
        elif header.key:
            account = registry.known(registry.of_token(header.key.encode()))
        else:
            raise RequestError(ErrorKind.UNAUTHORIZED, "no key was given: send it as `key` in the header")
        self.account = account
        if header.verb in _ASKING and not account.may_ask:
            text = f"key {account.name!r} may look and not ask (its role is {account.config.role})"
            raise RequestError(ErrorKind.FORBIDDEN, text)

    def refused(self, error: RequestError) -> RequestError:
        """Count a refusal of the message received last; return what its sender may be told of it."""
        account = self.account
        name = account.name if account is not None else ""
        self._registry.note_refusal(error, name, lambda: self._address, monotonic_ns())
        return error if account is None else account.in_its_words(error)

    def lets_in(self, public_key: str) -> bool:
        """Whether a CURVE key is one that is known."""
        return self._registry.of_curve(public_key) is not None


def _property(frame: Any, name: str) -> str:
    """Return what libzmq says of a message, empty where it says nothing."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
