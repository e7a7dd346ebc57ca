"""The hosts and models of a configuration, and how they change with it while the router runs.

A host keeps its id for the life of the process, whatever becomes of it: records name it by that. One that was taken out
of the configuration, or whose address has changed, ends as a host that drains; in the latter case another one takes its
place under the same name and id.
"""

from __future__ import annotations

from random import Random
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import msgspec

from router.config import Config, aliases
from router.errors import ConfigError, ErrorKind
from router.hosts.host import Host
from router.models import Model
from router.telemetry import records as rec
from router.telemetry.host_rows import HostModels

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import HostConfig
    from router.loop import Loop
    from router.telemetry.writer import Telemetry
    from router.tracing import Tracer


class Roster:
    """Makes hosts and models and keeps them as the configuration has them. ``hosts`` is shared with the loop."""

    def __init__(
        self, config: Config, telemetry: Telemetry, log: Any, make_host: Callable[[HostConfig, int, int], Host] = Host
    ) -> None:
        """``make_host`` makes a host of its settings, its id, and its place in the configuration."""
        self._make_host = make_host
        self.config = config
        self.hosts: list[Host] = []
        self.loop: Loop
        self._told: dict[int, dict[str, Any]] = {}
        """By host id: what it was logged to have told of itself. Bounded as ids are."""
        self._telemetry = telemetry
        self._log = log
        self._tracer = self._make_tracer()
        for index, each in enumerate(config.hosts):
            self.hosts.append(self._traced(make_host(each, self._host_id(each.name), index)))

    def attach(self, loop: Loop) -> None:
        """Begin to serve the loop: its models are made here."""
        self.loop = loop
        for host in self.hosts:
            for name in host.config.models:
                self._model(name)
        self._name_models()

    def _host_id(self, name: str) -> int:
        host_id = self._telemetry.names.intern(rec.NAME_HOST, name)
        if host_id == rec.OTHER_ID:
            most = rec.VALUES_PER_TAG_MAX
            raise ConfigError(f"hosts: more than {most} names since the start, or rings.names is full")
        return host_id

    def _make_tracer(self) -> Tracer | None:
        """Return what tells hosts which span they work for, ``None`` where traces are not exported."""
        traces = self.config.observer.traces
        if not traces.endpoint:
            return None
        from router.tracing import Tracer  # noqa: PLC0415 - few routers need it

        generation = int(self._telemetry.generation.path.name)
        return Tracer(self.config.listen.instance, generation, traces.sample_ratio)

    def _traced(self, host: Host) -> Host:
        host.tracer = self._tracer
        return host

    # ------------------------------------------------------------ what probes find
    def probed(self, host: Host) -> None:
        """A host has told what it is."""
        if host.removed:
            return
        self._list_host(host)
        self.loop.recovery.standing.refresh(host, monotonic_ns())
        told = {"kind": host.kind, "slots": host.facts.slot_count, "models": sorted(host.models)}
        if self._told.get(host.host_id) != told:  # a host that is down is asked four times a second
            self._told[host.host_id] = told
            self._log.info("host probed", host=host.name, **told)

    def _list_host(self, host: Host) -> None:
        """Have the models that a host has know it, and no others."""
        for model in self.loop.models.values():
            if host in model.hosts and model.name not in host.models:
                self._unlist(host, model)
        for name in host.models:
            model = self._model(name)
            if host not in model.hosts:
                model.hosts.append(host)
        self._name_models()

    @staticmethod
    def _unlist(host: Host, model: Model) -> None:
        model.hosts.remove(host)
        if model.policy is not None:
            model.policy.forget(host.host_id)

    def came_back(self, host: Host) -> None:
        """A host that was gone is there again, perhaps started anew: what it held of prompts is lost."""
        for model in self.loop.models.values():
            if model.policy is not None and host in model.hosts:
                model.policy.emptied(host.host_id)

    def is_ready(self) -> bool:
        """Whether every model has a host that can serve it."""
        models = self.loop.models.values()
        return bool(models) and all(any(host.usable for host in model.hosts) for model in models)

    # ------------------------------------------------------------ models
    def _model(self, name: str) -> Model:
        model = self.loop.models.get(name)
        if model is None:
            model = Model(name, self._telemetry.names.intern(rec.NAME_MODEL, name), self.config)
            self._route(model)
            self.loop.models[name] = model
        return model

    def _route(self, model: Model) -> None:
        seed = int(self._telemetry.generation.path.name) + model.model_id
        random = Random(seed)  # noqa: S311 - for choices that can be replayed, not for secrets
        model.route_by(model.config.routing, self.loop.host_settings, random, self._telemetry.identify)

    def _name_models(self) -> None:
        """Make anew what names clients may use; an alias goes before a host's model of that name."""
        models, by_name = self.loop.models, self.loop.by_name
        by_name.clear()
        by_name.update(models)
        for alias, name in aliases(self.config).items():
            if name in models:
                by_name[alias] = models[name]
        self._telemetry.host_rows.keep_models(self._host_models())

    def _host_models(self) -> HostModels:
        """Return which models each host has, as far as is known: what it is asked for comes with its first probe."""
        present = [host for host in self.hosts if not host.removed]
        hosts = {host.name: sorted(host.models or host.config.models) for host in present}
        return HostModels(hosts, sorted(self.config.models))

    # ------------------------------------------------------------ another configuration
    def apply(self, config: Config, now: int) -> None:
        """Take over another configuration, which has been checked, all in this call; raises :class:`ConfigError` before
        anything has changed.
        """
        ids = {each.name: self._host_id(each.name) for each in config.hosts}
        self.config = self.loop.config = config
        self.loop.limits = config.limits
        self._tracer = self._make_tracer()
        wanted = {each.name: (index, each) for index, each in enumerate(config.hosts)}
        for host in [host for host in self.hosts if not host.removed]:
            index, settings = wanted.get(host.name, (0, None))
            if settings is None or settings.url != host.config.url:
                self._remove(host, now)
            else:
                del wanted[host.name]
                self._change_host(host, settings, index, now)
        for host in [host for host in self.hosts if host.removed and host.name in wanted]:
            index, settings = wanted[host.name]
            if settings.url == host.config.url:
                del wanted[host.name]
                self._take_back(host, settings, index, now)
        for index, settings in wanted.values():
            self._add(settings, ids[settings.name], index)
        self.loop.host_settings.clear()
        self.loop.host_settings.update({ids[each.name]: _placed(each, i) for i, each in enumerate(config.hosts, 1)})
        self._change_models(config, now)
        self.loop.recovery.standing.configure(config.health, now)
        for host in self.hosts:
            self._traced(host)
            self.loop.pump(host, now)

    def _add(self, settings: HostConfig, host_id: int, index: int) -> None:
        host = self._traced(self._make_host(settings, host_id, index))
        self.hosts.append(host)
        self.loop.host_of[host_id] = host
        self.loop.recovery.standing.add(host, comes_new=True)
        self.loop.on_host_added(host)

    def _remove(self, host: Host, now: int) -> None:
        host.removed = True
        for model in self.loop.models.values():
            if host in model.hosts:
                self._unlist(host, model)
        self.loop.recovery.drain(host, drains=True, now=now)

    def _take_back(self, host: Host, settings: HostConfig, index: int, now: int) -> None:
        """Go on with a host that was taken out and still drains: what runs there counts in its slots."""
        host.removed = False
        self.loop.host_of[host.host_id] = host
        if host.probed:  # before it gets requests: its models may have been forgotten
            self._list_host(host)
        self._change_host(host, settings, index, now)
        self.loop.on_host_added(host)

    def _change_host(self, host: Host, settings: HostConfig, index: int, now: int) -> None:
        if settings != host.config:
            was_probed = host.probed
            host.configure(settings, index)
            if was_probed:
                self._list_host(host)
        drains = settings.drain or host.held
        if drains != host.drains:
            self.loop.recovery.drain(host, drains=drains, now=now)

    def _change_models(self, config: Config, now: int) -> None:
        for host in self.hosts:
            for name in () if host.removed else host.config.models:
                self._model(name)
        named = {name for host in config.hosts for name in host.models}
        for model in list(self.loop.models.values()):
            routing = model.config.routing
            model.configure(config)
            if model.config.routing != routing:
                self._route(model)
            if not model.hosts and model.name not in named:
                del self.loop.models[model.name]
        self._name_models()
        for request in list(self.loop.in_flight.values()):
            if self.loop.waits(request) and not request.model.hosts and not self.loop.recovery.fall_back(request, now):
                text = f"no host has {request.model.name!r} any more"
                self.loop.fail(request, ErrorKind.NO_HOST, text, now)


def _placed(settings: HostConfig, place: int) -> HostConfig:
    """Return a host's settings with its place in the file as its priority where it has no other."""
    return settings if settings.priority is not None else msgspec.structs.replace(settings, priority=place)
