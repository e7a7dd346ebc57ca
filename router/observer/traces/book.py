"""The observer's traces: chooses, holds them for an hour, and has them exported where an endpoint is configured.

The turn calls :meth:`TraceBook.add` with rows whose cost is known; everything that waits for a network happens in the
exporter's thread.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import router
from router.config import Config, TracesConfig
from router.errors import ConfigError
from router.observer.prometheus import PREFIX, Reading
from router.observer.rows import RequestRow
from router.observer.traces import conventions as names
from router.observer.traces.exporter import Sender, TraceExporter
from router.observer.traces.kept import KeptRows
from router.observer.traces.page import missed_attributes
from router.observer.traces.sampling import Breaches, Kept, Sampler, no_breaches
from router.observer.traces.spans import Naming, Span, spans_of
from router.observer.traces.spool import TraceSpool

DIRECTORY: Final = "traces"
"""Below the observer's data."""
_KEY_FILE: Final = "user-id.key"
_KEY_BYTES: Final = 32
_KEY_CHARS_MIN: Final = 16
_PACKAGE: Final = "opentelemetry.exporter.otlp.proto.http"


class TraceBook:
    """All that has to do with traces in an observer.

    ``breaches`` tells which objectives a request missed. Raises :class:`ConfigError` when spans cannot be exported as
    configured, and OSError when the data directory cannot be used.
    """

    def __init__(self, config: Config, data_dir: Path, breaches: Breaches = no_breaches) -> None:
        traces = config.observer.traces
        self.naming = naming_of(config, data_dir)
        self.breaches = breaches
        self._sampler = Sampler(traces.sample_ratio, traces.keep_slowest, breaches)
        self._kept = KeptRows(traces.kept_count)
        self._exporter = self._make_exporter(config, data_dir) if traces.endpoint else None

    def _make_exporter(self, config: Config, data_dir: Path) -> TraceExporter:
        traces = config.observer.traces
        _check_package()
        headers = headers_of(traces)
        resource = resource_of(config)

        def make_sender() -> Sender:
            from router.observer.traces.otlp import OtlpSender  # noqa: PLC0415 - a second of imports, in the thread

            return OtlpSender(
                traces.endpoint,
                headers,
                resource,
                timeout_s=traces.timeout_s,
                compression=traces.compression,
                ca_file=traces.ca_file,
            )

        spool = TraceSpool(data_dir / DIRECTORY / "spool", traces.spool_bytes)
        return TraceExporter(make_sender, self._spans, spool)

    def _spans(self, kept: Kept) -> list[Span]:
        more = missed_attributes(kept.objectives) | {"ringrouter.kept": list(kept.reasons)}
        return spans_of(kept.row, self.naming, more)

    # ------------------------------------------------------------ rows
    def add(self, rows: Sequence[RequestRow], wall_ns: int) -> None:
        """Take finished requests of users whose cost is known."""
        kept = self._sampler.take(rows, wall_ns)
        self._kept.add((each.row for each in kept), wall_ns)
        if self._exporter is not None:
            self._exporter.offer(kept)

    def find(self, identity: str) -> list[RequestRow]:
        """Return the requests in memory with a request id or a trace id, in the order in which they began."""
        found = self._kept.find(identity)
        if found:
            return found
        return [row for row in self._sampler.waiting() if identity in (row.request_id, row.trace_id)]

    def close(self) -> None:
        """Export what is left, or put it on disk for the next observer."""
        if self._exporter is not None:
            self._exporter.offer(self._sampler.flush())
            self._exporter.close()

    # ------------------------------------------------------------ how it fares
    @property
    def exporting(self) -> bool:
        """Whether spans leave: an endpoint is configured, and this was not closed."""
        return self._exporter is not None and self._exporter.is_running

    def problems(self) -> list[str]:
        """Return what cannot be done now, one line each."""
        exporter = self._exporter
        if exporter is None:
            return []
        found = []
        if exporter.problem:
            found.append(f"traces are not exported: {exporter.problem}; {exporter.waiting_count:,} wait")
        if exporter.spool_problem:
            found.append(f"traces: {exporter.spool_problem}")
        if exporter.dropped_count:
            found.append(f"traces: {exporter.dropped_count:,} were given up since the start")
        if exporter.refused_count:
            found.append(f"traces: the endpoint refused {exporter.refused_count:,} since the start")
        return found

    def readings(self) -> Iterator[Reading]:
        """Yield numbers for ``/metrics``."""
        for reason, count in self._sampler.counts.items():
            yield Reading(
                f"{PREFIX}traces_kept", "counter", "Traces kept, by the first reason", (("reason", reason),), count
            )
        yield Reading(
            f"{PREFIX}traces_held", "gauge", "Traces that can be opened without a journal", (), len(self._kept)
        )
        exporter = self._exporter
        if exporter is None:
            return
        for outcome, count in (
            ("exported", exporter.exported_count),
            ("refused", exporter.refused_count),
            ("dropped", exporter.dropped_count),
        ):
            labels = (("outcome", outcome),)
            yield Reading(f"{PREFIX}traces_exported", "counter", "Traces by what became of them", labels, count)
        yield Reading(f"{PREFIX}trace_export_failures", "counter", "Exports that failed", (), exporter.failed_count)
        yield Reading(f"{PREFIX}traces_waiting", "gauge", "Traces not exported yet", (), exporter.waiting_count)
        yield Reading(f"{PREFIX}trace_spool_bytes", "gauge", "Traces that wait on disk", (), exporter.spool_bytes)


def naming_of(config: Config, data_dir: Path | None) -> Naming:
    """Return what spans need to know beside rows.

    Raises :class:`ConfigError` without the variable of the key, and OSError when the key's file cannot be used. Without
    a ``data_dir``, or where there is no key in it and none can be made, users are left out.
    """
    traces = config.observer.traces
    mode, key = traces.user_id, b""
    if mode == "hash":
        key = _key_of(traces, data_dir)
        mode = "hash" if key else "off"
    providers = {host.name: host.kind for host in config.hosts if host.kind != "auto"}
    return Naming(user_id=mode, user_key=key, providers=providers, has_proxies=bool(config.listen.trusted_proxies))


def _key_of(traces: TracesConfig, data_dir: Path | None) -> bytes:
    name = traces.user_id_key_env
    if name:
        value = os.environ.get(name, "")
        if len(value) < _KEY_CHARS_MIN:
            raise ConfigError(
                f"observer.traces.user_id_key_env = {name!r}: expected an environment variable with at least "
                f"{_KEY_CHARS_MIN} characters"
            )
        return value.encode()
    return b"" if data_dir is None else _own_key(key_path(data_dir))


def key_path(data_dir: Path) -> Path:
    """Return where the key is that users are hashed with."""
    return data_dir / DIRECTORY / _KEY_FILE


def _own_key(path: Path) -> bytes:
    """Return the key of this machine; it is made where there is none yet."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of one that was killed here and had our number: in a container all have
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    return path.read_bytes()


def headers_of(traces: TracesConfig) -> dict[str, str]:
    """Return the headers of each export; raises :class:`ConfigError`, which never shows a value."""
    headers = dict(traces.headers)
    for name, variable in traces.headers_env.items():
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(f"observer.traces.headers_env.{name}: expected an environment variable that is set")
        headers[name] = value
    for name, path in traces.headers_file.items():
        try:
            headers[name] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"observer.traces.headers_file.{name}: expected a file that can be read") from None
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(f"observer.traces: the value of the header {name} (not shown): expected printable ASCII")
    return headers


def resource_of(config: Config) -> Mapping[str, str]:
    """Return the attributes of the resource that all spans are of."""
    traces = config.observer.traces
    return {
        names.SERVICE_NAME: traces.service_name,
        names.SERVICE_VERSION: router.__version__,
        names.SERVICE_INSTANCE: os.uname().nodename,
        **traces.resource,
    }


def _check_package() -> None:
    try:
        is_there = find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise ConfigError(
            "observer.traces.endpoint needs opentelemetry-exporter-otlp-proto-http: pip install 'ringrouter[observer]'"
        )
