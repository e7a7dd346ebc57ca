"""Names of models in a configuration: aliases, fallback chains, and what contradicts itself among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config_schema import shown, shown_key
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Config


def aliases(config: Config) -> dict[str, str]:
    """Return the model's own name for each alias."""
    return {alias: name for name, model in config.models.items() for alias in model.aliases}


def fallback_chain(config: Config, name: str) -> tuple[str, ...]:
    """Return the models that answer in place of one, in their order, each once.

    Behind each model comes its own chain: with ``a = ["b", "d"]`` and ``b = ["c"]`` the chain of a is b, c, d.
    """
    own_names = aliases(config)
    found: dict[str, None] = {name: None}
    _collect(config, own_names, name, found)
    return tuple(found)[1:]


def _collect(config: Config, own_names: dict[str, str], name: str, found: dict[str, None]) -> None:
    model = config.models.get(name)
    for each in model.fallback if model is not None else ():
        other = own_names.get(each, each)
        if other not in found:
            found[other] = None
            _collect(config, own_names, other, found)


def check_names(config: Config) -> None:
    """Check aliases and fallback chains; raises :class:`ConfigError` that names the key."""
    served = {name for host in config.hosts for name in host.models}
    _check_aliases(config, served)
    open_ended = any(not host.models for host in config.hosts)
    known = served | set(config.models)
    own_names = aliases(config)
    without: set[str] = set()
    for name, model in config.models.items():
        for index, each in enumerate(model.fallback):
            key = f"models.{shown_key(name)}.fallback[{index}] = {shown(each)}"
            other = own_names.get(each, each)
            if each in model.fallback[:index]:
                raise ConfigError(f"{key}: expected names that differ, it stands twice")
            if other not in known and not open_ended:
                raise ConfigError(f"{key}: expected the name of a model that a host has ({_listed(served)})")
            loop = _loop_through(config, own_names, other, (name,), without)
            if loop:
                raise ConfigError(f"{key}: expected a chain without a loop, this one is {' -> '.join(loop)}")


def _check_aliases(config: Config, served: set[str]) -> None:
    seen: dict[str, str] = {}
    for name, model in config.models.items():
        for index, alias in enumerate(model.aliases):
            key = f"models.{shown_key(name)}.aliases[{index}] = {shown(alias)}"
            if alias in seen:
                raise ConfigError(f"{key}: expected names that differ, models.{shown_key(seen[alias])} has it too")
            if alias in served or alias in config.models:
                what = "the model itself" if alias == name else "a model"
                raise ConfigError(f"{key}: expected a name that is not in use, this is the name of {what}")
            seen[alias] = name


def _loop_through(
    config: Config, own_names: dict[str, str], name: str, above: tuple[str, ...], without: set[str]
) -> tuple[str, ...]:
    """Return the first loop on the way down a fallback chain, empty for none; ``without`` are models known as such."""
    if name in above:
        return (*above[above.index(name) :], name)
    if name in without:
        return ()
    model = config.models.get(name)
    for each in model.fallback if model is not None else ():
        found = _loop_through(config, own_names, own_names.get(each, each), (*above, name), without)
        if found:
            return found
    without.add(name)
    return ()


def _listed(names: set[str]) -> str:
    return f"models: {', '.join(sorted(names))}" if names else "none is named"
