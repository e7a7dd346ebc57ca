"""Finds the account of a key that a client has shown."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from router.errors import ErrorKind, RequestError
from router.keys.account import Account
from router.keys.tokens import TOKEN_BYTES_MAX, digest_of
from router.telemetry.counters import Counter
from router.telemetry.records import NAME_KEY, OTHER_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from router.config import Config
    from router.telemetry.writer import Telemetry

_BEARER: Final = b"bearer "
_LOG_NS: Final = 1_000_000_000
"""One line of the log a second tells of refusals: whoever tries keys must not fill it."""
_COUNTERS: Final = {
    ErrorKind.UNAUTHORIZED: Counter.KEYS_REFUSED,
    ErrorKind.FORBIDDEN: Counter.KEYS_FORBIDDEN,
    ErrorKind.RATE_LIMITED: Counter.KEYS_LIMITED,
}


class Registry:
    """All accounts, by what shows them."""

    def __init__(self, telemetry: Telemetry, log: Any) -> None:
        self._telemetry = telemetry
        self._log = log
        self._accounts: dict[str, Account] = {}
        self._by_digest: dict[bytes, Account] = {}
        self._by_curve: dict[str, Account] = {}
        self._untold = 0
        self._told_ns = 0

    def configure(self, config: Config) -> None:
        """Take over the keys of a configuration; an account that goes on keeps what it has used."""
        instances = config.access.instances
        for each in config.keys:
            account = self._accounts.get(each.name)
            if account is None:
                name_id = self._telemetry.names.intern(NAME_KEY, each.name)
                self._accounts[each.name] = Account(each, name_id if name_id != OTHER_ID else 0, instances)
            else:
                account.configure(each, instances)
        named = {each.name for each in config.keys}
        for account in [a for a in self._accounts.values() if a.name not in named and not a.in_flight]:
            del self._accounts[account.name]
        self._by_digest = {
            bytes.fromhex(each.hash.partition(":")[2]): self._accounts[each.name] for each in config.keys if each.hash
        }
        self._by_curve = {each.curve: self._accounts[each.name] for each in config.keys if each.curve}

    @property
    def has_curve(self) -> bool:
        """Whether a key is one of CURVE."""
        return bool(self._by_curve)

    def accounts(self) -> Iterable[Account]:
        """Return the accounts that can be used."""
        return {account.name: account for account in (*self._by_digest.values(), *self._by_curve.values())}.values()

    # ------------------------------------------------------------ who asks
    def of_token(self, token: bytes) -> Account | None:
        """Return the account of a key, ``None`` where there is none.

        How long that takes tells nothing of a key: what is looked up is its SHA-256, which nobody can bring near to
        another one, and the comparison behind it takes the same time wherever two differ.
        """
        if len(token) > TOKEN_BYTES_MAX:
            return None
        digest = digest_of(token)
        account = self._by_digest.get(digest)
        if account is None:
            return None
        return account if compare_digest(digest, bytes.fromhex(account.config.hash.partition(":")[2])) else None

    def of_curve(self, public_key: str) -> Account | None:
        """Return the account of a client's public CURVE key, ``None`` where there is none."""
        return self._by_curve.get(public_key)

    def of_headers(self, headers: Mapping[bytes, bytes]) -> Account:
        """Return the account of the key in a head; raises :class:`RequestError` for none and for one that is unknown.

        The key is ``authorization: Bearer KEY`` or, as Anthropic's clients send it, ``x-api-key: KEY``.
        """
        token = headers.get(b"x-api-key", b"")
        authorization = headers.get(b"authorization", b"")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            token = authorization[len(_BEARER) :].strip()
        if not token:
            text = "no key was given: send it as `authorization: Bearer KEY` or `x-api-key: KEY`"
            raise RequestError(ErrorKind.UNAUTHORIZED, text)
        return self.known(self.of_token(token))

    @staticmethod
    def known(account: Account | None) -> Account:
        """Return an account; raises :class:`RequestError` for none."""
        if account is None:
            raise RequestError(ErrorKind.UNAUTHORIZED, "the key is not known here")
        return account

    # ------------------------------------------------------------ refusals
    def note_refusal(self, error: RequestError, name: str, address: Callable[[], str], now: int) -> None:
        """Count a refusal, and tell of it in the log unless one was told of just before. ``name`` is that of the key
        where it is known, ``address`` is asked where the client is.
        """
        counter = _COUNTERS.get(error.kind)
        if counter is None:
            return
        self._telemetry.counters.add(counter)
        who = f"key {name}" if name else "a client"
        self._telemetry.errors.note(f"{who}: {error.kind.name.lower()}", now)
        if now - self._told_ns < _LOG_NS and self._told_ns:
            self._untold += 1
            return
        untold, self._untold, self._told_ns = self._untold, 0, now
        self._log.warning(
            "client refused", reason=error.kind.name.lower(), key=name, client=address(), untold_before=untold
        )
