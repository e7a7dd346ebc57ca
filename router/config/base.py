"""What all sections of the configuration are made of."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Meta

# Names become directories and header values: no "..", no line end. \Z, because $ would let a final line end pass.
NAME: Final = r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z"
NAME_ALLOWED: Final = {"allowed": "1 to 64 of `A-Za-z0-9_.-`, not beginning with `.` or `-`"}


def between(least: float, most: float, description: str) -> Meta:
    """Return the bounds and the description of a number."""
    return Meta(ge=least, le=most, description=description)


def above_zero(most: float, description: str) -> Meta:
    """Return the bounds and the description of a number that must not be zero."""
    return Meta(gt=0, le=most, description=description)


def named(description: str) -> Meta:
    """Return the form and the description of a name that becomes a directory or a header's value."""
    return Meta(pattern=NAME, extra=NAME_ALLOWED, description=description)


def path_or_nothing(description: str) -> Meta:
    """Return the form and the description of an absolute path that may be absent."""
    return Meta(pattern=r"\A(/.*)?\Z", extra={"allowed": "an absolute path or nothing"}, description=description)


def variable_or_nothing(description: str) -> Meta:
    """Return the description of the name of an environment variable that may be absent."""
    return Meta(extra={"allowed": "the name of an environment variable, or nothing"}, description=description)


def credential_or_nothing(description: str) -> Meta:
    """Return the form and the description of the name of a credential of systemd that may be absent."""
    return Meta(
        pattern=r"\A([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?\Z",
        extra={"allowed": "the name of a file in `$CREDENTIALS_DIRECTORY`, or nothing"},
        description=description,
    )


class Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Base of all sections: unknown keys are an error, values never change."""
