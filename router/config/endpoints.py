"""What sections of servers that the observer sends to share: headers of each request, certificates, what a URL is."""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from router.config.base import Section, path_or_nothing
from router.config_schema import shown
from router.errors import ConfigError

HEADERS_MAX: Final = 16
HEADER_TABLES: Final = ("headers", "headers_env", "headers_file")
"""Keys of a section under which headers stand: with their values, or with where these are found."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
"""The name of a header (RFC 9110 §5.6.2)."""
_RESERVED_HEADERS: Final = frozenset({"content-type", "content-length", "host", "transfer-encoding", "connection"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def header_table(description: str) -> Meta:
    """Return the bound and the description of a table of headers."""
    return Meta(max_length=HEADERS_MAX, description=description)


HeadersByVariable = Annotated[
    dict[str, str], header_table("The same, with the environment variable that holds the value.")
]


def certificates(server: str) -> Meta:
    """Return the form and the description of a file of certificates that may be absent; ``server`` is a noun."""
    return path_or_nothing(f"Certificates (PEM) that an `https` {server} is checked by, in place of the system's.")


def check_headers(section: Section, key: str) -> None:
    """Check a section's :data:`HEADER_TABLES`; ``key`` is where it stands. :class:`ConfigError` never shows a value."""
    named: set[str] = set()
    for table in HEADER_TABLES:
        for name, value in getattr(section, table).items():
            if not _TOKEN.fullmatch(name) or name.lower() in _RESERVED_HEADERS:
                raise ConfigError(f"{key}.{table}: expected names of headers, {shown(name)} cannot be one")
            if name.lower() in named:
                raise ConfigError(f"{key}.{table}.{name}: the header stands twice")
            named.add(name.lower())
            _check_value(value, f"{key}.{table}.{name}", table)


def _check_value(value: str, key: str, table: str) -> None:
    """Check a header's value, or where it is found. Nothing of it is shown: it may be the secret itself."""
    if table == "headers_env" and not _VARIABLE.fullmatch(value):
        raise ConfigError(f"{key} (not shown): expected the name of an environment variable")
    if table == "headers_file" and not value.startswith("/"):
        raise ConfigError(f"{key} (not shown): expected an absolute path")
    if table == "headers" and not (value.isascii() and value.isprintable()):
        raise ConfigError(f"{key} (not shown): expected printable ASCII")


def is_http(url: str) -> bool:
    """Return whether a URL can be asked over HTTP."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not any(c.isspace() for c in url)
