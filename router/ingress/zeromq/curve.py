"""CURVE for ZeroMQ over TCP: the router's own keys, and who is let in.

libzmq asks over ``inproc://zeromq.zap.01`` whether a client's key is good, and lets the handshake wait for the answer
(https://rfc.zeromq.org/spec/27/, https://rfc.zeromq.org/spec/26/). The answer is a look into a dictionary, given in the
loop's own thread. Who is refused gets no message of the protocol, only a connection that ends.
"""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import zmq
from zmq.utils import z85

from router.config.credentials import credential_file
from router.config_schema import shown
from router.errors import ConfigError
from router.ingress.zeromq.access import user_id_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from router.config import Config
    from router.ingress.zeromq.access import ZmqAccess

_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_FRAMES_CURVE: Final = 7
"""Version, request id, domain, address, identity, mechanism, the client's public key of 32 bytes."""
_KEY_BYTES: Final = 32
_Z85_CHARS: Final = 40
_FILE_BYTES_MAX: Final = 4096


class CurveKeys(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A pair of keys as its file has it, 40 characters of Z85 each."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"CurveKeys({self.public!r}, secret not shown)"


def read_keys(config: Config) -> CurveKeys | None:
    """Return the router's own keys, ``None`` where none are configured; raises :class:`ConfigError`."""
    listen = config.listen
    if listen.curve_key_file and listen.curve_key_credential:
        raise ConfigError("listen has curve_key_file and curve_key_credential: expected one of them")
    if listen.curve_key_file:
        return read_key_file(Path(listen.curve_key_file), f"listen.curve_key_file = {shown(listen.curve_key_file)}")
    if listen.curve_key_credential:
        key = f"listen.curve_key_credential = {shown(listen.curve_key_credential)}"
        return read_key_file(credential_file(listen.curve_key_credential, key), key)
    return None


def read_key_file(path: Path, key: str) -> CurveKeys:
    """Return the keys of a file that `ringrouter keys curve` has made; raises :class:`ConfigError` that begins with
    ``key``. What the file holds is never in it.
    """
    try:
        status = path.stat()
        if status.st_mode & stat.S_IRWXO:
            raise ConfigError(f"{key}: expected a file that others cannot read (chmod o-rwx)")
        if status.st_size > _FILE_BYTES_MAX:
            raise ConfigError(f"{key}: expected a file of `ringrouter keys curve`")
        keys = msgspec.convert(tomllib.loads(path.read_text(encoding="ascii")), CurveKeys)
        matches = len(keys.secret) == _Z85_CHARS and zmq.curve_public(keys.secret.encode()).decode() == keys.public
    except OSError as error:
        raise ConfigError(f"{key}: {error.strerror or error}") from None
    except (ValueError, zmq.ZMQError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{key}: expected a file of `ringrouter keys curve`") from None
    if not matches:
        raise ConfigError(f"{key}: its public key is not that of its secret key")
    return keys


class Zap:
    """Answers libzmq's questions of who may come in; one for a context."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], event_loop: AbstractEventLoop, keys: CurveKeys, access: ZmqAccess
    ) -> None:
        self._keys = keys
        self._access = access
        self._event_loop = event_loop
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        event_loop.add_reader(self._descriptor, self._answer)
        self._answer()  # libzmq signals only to who has looked once and found nothing

    def set_options(self, socket: zmq.Socket[bytes], *, is_tcp: bool) -> None:
        """Have what is bound next be encrypted, or not."""
        socket.setsockopt(zmq.CURVE_SERVER, int(is_tcp))
        if is_tcp:
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())

    def close(self) -> None:
        """Answer no more."""
        self._event_loop.remove_reader(self._descriptor)
        self._socket.close()

    def _answer(self) -> None:
        """Answer all that was asked: the descriptor tells of the first question only."""
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            request_id = frames[1] if len(frames) > 1 else b""
            user = self._user(frames)
            status, text = (b"200", b"OK") if user else (b"400", b"the key is not known here")
            self._socket.send_multipart((_VERSION, request_id, status, text, user.encode(), b""), zmq.NOBLOCK)

    def _user(self, frames: list[bytes]) -> str:
        """Return by which name the messages of who asks are known; empty for nobody's."""
        if len(frames) != _FRAMES_CURVE or frames[0] != _VERSION or frames[5] != b"CURVE":
            return ""
        if len(frames[6]) != _KEY_BYTES:
            return ""
        public_key: str = z85.encode(frames[6]).decode()
        return user_id_of(public_key) if self._access.lets_in(public_key) else ""
