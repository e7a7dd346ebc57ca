"""What is ended by leaving its ``with``."""

from __future__ import annotations

from typing import Self


class Closing:
    """Base of processes, hosts and clients that :meth:`close` ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        raise NotImplementedError
