"""A stage whose router wants keys: its clients show one unless they are told otherwise."""

from __future__ import annotations

from typing import Any

from router.keys.tokens import hash_of, new_token
from tests.faults.client import Client
from tests.faults.stage import Stage

SETTLER = new_token()


def key_table(name: str, token: str = "", **settings: str) -> str:
    """Return a ``[[keys]]`` table; the values of ``settings`` are TOML."""
    lines = [f'name = "{name}"', *([f'hash = "{hash_of(token)}"'] if token else [])]
    lines += [f"{key} = {value}" for key, value in settings.items()]
    return "[[keys]]\n" + "".join(f"{line}\n" for line in lines)


class KeyedClient(Client):
    """A client with a key, ``""`` for none."""

    def __init__(self, port: int, token: str, **keys: Any) -> None:
        super().__init__(port, **keys)
        self.token = token

    def chat(self, *, model: str = "m", stream: bool = True, more: str = "", **fields: Any) -> None:
        """Send a request for a chat with the key."""
        own = f"authorization: Bearer {self.token}\r\n" if self.token else ""
        super().chat(model=model, stream=stream, more=own + more, **fields)

    def get(self, path: str, method: str = "GET") -> None:
        """Send a request without a body, with the key."""
        own = f"authorization: Bearer {self.token}\r\n" if self.token else ""
        self.send(f"{method} {path} HTTP/1.1\r\nhost: test\r\n{own}\r\n".encode())


class KeyedStage(Stage):
    """A stage with a key of its own to settle with, named ``settler``."""

    def __init__(self, directory: Any, hosts: Any, toml: str, models: Any = (), **listen: Any) -> None:
        super().__init__(directory, hosts, toml + key_table("settler", SETTLER), models)

    def client(self, token: str = SETTLER, **keys: Any) -> KeyedClient:
        """Return a new connection to the router, closed after the test."""
        client = KeyedClient(self.router.port, token, **keys)
        self._connected_count += 1
        self._clients.append(client)
        return client
