"""What is done with scenarios: run, summed up, written down, replayed, put under another policy, made smaller."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.simulation.scenario import Scenario
from tests.simulation.world import Result, simulate

_ROUTING: Final = re.compile(r"\[models\.\w+\.routing\]\n(?:[^\[\n].*\n)*")
_MODEL: Final = re.compile(r"^\[models\.(\w+)\]$", re.MULTILINE)


class Written(msgspec.Struct):
    """A run that was written down."""

    scenario: Scenario
    trace_hash: str
    events: list[str]


def safely(scenario: Scenario, directory: Path, *, keeps_events: bool = False) -> Result:
    """Run a scenario; an exception out of the simulation counts as a violation."""
    try:
        return simulate(scenario, directory, keeps_events=keeps_events)
    except Exception as error:
        return Result(scenario.seed, "", [f"{type(error).__name__}: {error}"], [], 0, 0.0, 0, {}, [], [], {})


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of all lies, NaN without any."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def summary(result: Result) -> str:
    """Return the figures of a run in one line."""
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(result.outcomes.items()))
    return (
        f"{result.asked} asked: {outcomes or 'none came in'}; "
        f"TTFT p50 {percentile(result.ttft_ms, 0.5):.1f} ms, p95 {percentile(result.ttft_ms, 0.95):.1f} ms; "
        f"refused {result.outcomes.get('rejected', 0)}; {result.virtual_s:.1f} virtual s, "
        f"{result.callback_count} callbacks, trace {result.trace_hash}"
    )


def command(seed: int) -> str:
    """Return what replays a seed."""
    return f"python -m tests.simulation --seed {seed}"


def write_down(scenario: Scenario, result: Result, path: Path) -> None:
    """Keep a run: its scenario as values, so that it can be replayed after the drawing has changed, and its events."""
    path.write_bytes(msgspec.json.encode(Written(scenario, result.trace_hash, result.events)))


def read(path: Path) -> Written:
    """Return a run that was written down; raises :class:`ValueError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Written)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path} is no log of a run: {error}") from None


def difference(written: Written, result: Result) -> str:
    """Return where a replay first differs from what was written down, empty where it does not."""
    for index, (before, now) in enumerate(zip(written.events, result.events, strict=False)):
        if before != now:
            return f"event {index} was {before!r} and is {now!r}"
    if len(written.events) != len(result.events):
        return f"there were {len(written.events)} events and are {len(result.events)}"
    return "" if written.trace_hash == result.trace_hash else "the traces differ"


def under_policy(scenario: Scenario, policy: str) -> Scenario:
    """Return the same trouble, routed by another policy."""
    toml = _ROUTING.sub("", scenario.toml)
    toml += "".join(f'[models.{name}.routing]\npolicy = "{policy}"\n' for name in _MODEL.findall(toml))
    return msgspec.structs.replace(scenario, toml=toml)


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """Return the smallest scenario found that still fails: clients, requests and host events are left out in turn."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(scenario):
            if fails(smaller):
                scenario, progress = smaller, True
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Return scenarios that lack something, those that lack most first."""
    replace = msgspec.structs.replace
    clients = scenario.clients
    size = len(clients) // 2
    while size:
        for start in range(0, len(clients), size):
            yield replace(scenario, clients=clients[:start] + clients[start + size :])
        size //= 2
    for position, client in enumerate(clients):
        for index in range(len(client.asks) if len(client.asks) > 1 else 0):
            fewer = replace(client, asks=client.asks[:index] + client.asks[index + 1 :])
            yield replace(scenario, clients=[*clients[:position], fewer, *clients[position + 1 :]])
    hosts = scenario.hosts
    for position, host in enumerate(hosts):
        for index in range(len(host.events)):
            calmer = replace(host, events=host.events[:index] + host.events[index + 1 :])
            yield replace(scenario, hosts=[*hosts[:position], calmer, *hosts[position + 1 :]])
    if scenario.stalls:
        yield replace(scenario, stalls=[])
    for index in range(len(scenario.reloads)):
        yield replace(scenario, reloads=scenario.reloads[:index] + scenario.reloads[index + 1 :])
