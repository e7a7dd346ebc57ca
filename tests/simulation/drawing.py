"""Draws scenarios from seeds. Each has a theme that it has more of than the others, so that rare things meet."""

from __future__ import annotations

import re
from random import Random
from typing import Final, get_args

from msgspec.structs import replace

from tests.simulation.drawing_config import CLASSES, FEATURE, alias, config_text
from tests.simulation.scenario import Ask, Client, Fate, FateKind, Host, HostEvent, Leave, Reload, Scenario

THEMES: Final = (
    "calm", "leaving", "dying", "slow_clients", "overload", "hosts_flap", "pipelines", "stopped", "reloaded", "mixture",
)  # fmt: skip
_KINDS: Final = ("openai", "vllm", "sglang", "llama.cpp", "ollama")
_ALIKE: Final = ("openai", "vllm", "sglang")
"""Kinds that a host may be taken for without its noticing."""
_TROUBLES: Final = tuple(kind for kind in get_args(FateKind) if kind != "ok")
_DEATHS: Final = (*(kind for kind in _TROUBLES if kind.startswith("die_")), "silent", "stall")
_SLOTS: Final = re.compile(r"^slots = \d+\n", re.MULTILINE)
_PACES: Final = ((100, 1.0), (300, 20.0), (4000, 20.0), (2000, 300.0), (4000, 1500.0), (8000, 4000.0))
"""Bytes and milliseconds of a slow client's reads; the last ones are as good as none."""


class Draw:
    """One seed's draws."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.seed = seed
        self.theme = THEMES[seed % len(THEMES)]
        self.plain = random.random() < 0.4
        self.count = 0
        self.model_names = ["small", "large"][: random.choice([1, 1, 2])]
        self.trouble = {"calm": 0.0, "dying": 0.6, "mixture": 0.25, "hosts_flap": 0.15}.get(self.theme, 0.08)

    def scenario(self) -> Scenario:
        """Return what the seed stands for."""
        random = self.random
        hosts = [self._host(index) for index in range(random.randint(1, 4))]
        toml = config_text(random, self.model_names, plain=self.plain)
        return Scenario(
            seed=self.seed,
            theme=self.theme,
            toml=toml,
            hosts=hosts,
            clients=[self._client(index) for index in range(self._client_count(hosts))],
            step_ns=random.choice([0, 0, 40, 1000]),
            stop_ms=round(random.uniform(50, 4000), 1) if self.theme == "stopped" else 0.0,
            stalls=[(round(random.uniform(100, 4000), 1), random.choice([5.0, 30.0, 200.0]))]
            if random.random() < 0.1
            else [],
            reloads=self._reloads(hosts),
        )

    def _client_count(self, hosts: list[Host]) -> int:
        slots = sum(host.slots for host in hosts)
        if self.theme in {"overload", "leaving"}:
            return self.random.randint(2, 6) * min(slots, 8)
        return self.random.randint(2, 14)

    # ------------------------------------------------------------ another configuration
    def _reloads(self, hosts: list[Host]) -> list[Reload]:
        """Return new configurations while running: hosts drain, go, come back, and have other slots."""
        random = self.random
        reloads, at_ms = [], 0.0
        for _ in range(random.randint(1, 3) if self.theme == "reloaded" else 0):
            at_ms += round(random.uniform(100, 1500), 1)
            toml = config_text(random, self.model_names, plain=self.plain)
            kept = [self._changed(host) for host in hosts if random.random() < 0.75] or hosts[:1]
            reloads.append(Reload(at_ms=at_ms, toml=toml, hosts=kept))
        return reloads

    def _changed(self, host: Host) -> Host:
        random = self.random
        toml = host.toml
        if random.random() < 0.3:
            toml = "drain = true\n" + toml
        if random.random() < 0.3:
            toml = _SLOTS.sub(f"slots = {random.randint(1, host.slots)}\n", toml)
        kind = random.choice(_ALIKE) if host.kind in _ALIKE and random.random() < 0.3 else host.kind
        return replace(host, toml=toml, kind=kind)

    # ------------------------------------------------------------ hosts
    def _host(self, index: int) -> Host:
        random = self.random
        kind = random.choice(_KINDS)
        slots = random.choice([1, 1, 2, 4, 8])
        grace_ms = random.choice([0, 0, 20, 150])
        keeps = random.random() < 0.7
        of_all = random.random()
        served = self.model_names if of_all < 0.8 else self.model_names[:1] if of_all < 0.9 else self.model_names[-1:]
        asked = random.random() < 0.3 and kind == "llama.cpp"
        facts = f"[hosts.facts]\ncancel_grace_ms = {grace_ms}\nreuse_after_stream = {str(keeps).lower()}\n"
        if random.random() < 0.2:
            facts += "cancels_whole_answers = false\n"
        return Host(
            name=f"h{index}",
            kind=kind,
            slots=slots,
            models=served,
            toml=f"cost_per_hour = {index % 3 + 1}\nweight = {index + 1}\n"
            + (f"models = {served}\n" if random.random() < 0.8 else "")
            + ("" if asked else f"slots = {slots}\n")
            + facts,
            latency_ms=random.choice([0.0, 0.05, 0.3, 2.0]),
            cancel_ms=random.choice([0.0, grace_ms / 2, float(grace_ms), -1.0]),
            slope=random.choice([0.0, 0.1, 0.5]),
            keeps=keeps,
            events=self._host_events(),
        )

    def _host_events(self) -> list[HostEvent]:
        random = self.random
        if random.random() > (1.0 if self.theme == "hosts_flap" else 0.15):
            return []
        events, at_ms = [], 0.0
        for _ in range(random.randint(1, 4)):
            at_ms += random.uniform(0, 1500)
            what = random.choice(["down", "frozen", "deaf", "sick", "failing", "slow", "slots"])
            value = {"slow": random.choice([2.0, 10.0]), "slots": random.choice([1, 2, 4])}.get(what, 1.0)
            events.append(HostEvent(at_ms=round(at_ms, 2), what=what, value=value))  # type: ignore[arg-type]
            at_ms += random.uniform(0, 1500)
            events.append(HostEvent(at_ms=round(at_ms, 2), what="up"))
        return events

    def _fate(self) -> Fate:
        random = self.random
        kind: FateKind = "ok"
        if random.random() < self.trouble:
            kind = random.choice(_DEATHS if self.theme == "dying" and random.random() < 0.5 else _TROUBLES)  # type: ignore[arg-type]
        return Fate(
            kind=kind,
            ttft_ms=round(random.expovariate(1 / random.choice([1, 20, 200])), 3),
            gap_ms=round(random.expovariate(1 / random.choice([0.2, 5, 20])), 3),
            tokens=random.choice([6, 40, 40] if self.theme == "slow_clients" else [1, 2, 6, 20, 40]),
            token_bytes=random.choice([3, 400, 2000, 4000] if self.theme == "slow_clients" else [0, 3]),
            at=random.randint(0, 10),
            status=random.choice([400, 404, 429, 500, 502, 503]),
            retry_after=random.choice([0, 3]),
            cut=random.choice([0, 0, 1, 2]),
            reset=random.random() < 0.5,
        )

    # ------------------------------------------------------------ clients
    def _client(self, index: int) -> Client:
        random = self.random
        burst = self.theme in {"overload", "leaving"} and random.random() < 0.6
        slow = random.random() < (0.7 if self.theme == "slow_clients" else 0.05)
        pipelined = random.random() < (0.7 if self.theme == "pipelines" else 0.05)
        return Client(
            name=f"c{index}",
            at_ms=random.choice([200.0, 500.0]) if burst else round(random.uniform(0, 2500), 2),
            asks=[self._ask() for _ in range(random.choice([1, 1, 2, 3, 5]))],
            pipelined=pipelined,
            pace=random.choice(_PACES) if slow else None,
            latency_ms=random.choice([0.0, 0.1, 5.0]),
            room=random.choice([500, 4000, 65_536]) if slow else 65_536,
        )

    def _ask(self) -> Ask:
        random = self.random
        self.count += 1
        endpoint = random.choices(
            ["chat", "completion", "embeddings", "responses", "models", "broken", "unknown_model"],
            [60, 15, 6, 8, 3, 2, 2],
        )[0]
        pieces = random.choice([1, 1, 1, 2, 5])
        return Ask(
            id=f"r{self.count}",
            model=self._model(),
            endpoint=endpoint,  # type: ignore[arg-type]
            stream=random.random() < 0.7 and endpoint in {"chat", "completion"},
            pause_ms=random.choice([0.0, 0.0, 3.0, 700.0]),
            body_bytes=random.choice([0, 50, 3000, 300_000 if random.random() < 0.1 else 0]),
            max_tokens=random.choice([0, 0, 3, 100]),
            fates=[self._fate() for _ in range(random.choice([1, 2, 4]))],
            leave=self._leave(),
            pieces=pieces,
            stuck=pieces > 1 and random.random() < 0.03,
            headers=self._headers(),
            minor=0 if random.random() < 0.05 else 1,
            session=random.choice(["", "", "s1", "s2"]),
        )

    def _model(self) -> str:
        name = self.random.choice(self.model_names)
        return name if self.plain or self.random.random() < 0.8 else alias(name)

    def _headers(self) -> dict[str, str]:
        random = self.random
        headers = {"x-ringrouter-timing": "1"} if random.random() < 0.1 else {}
        if self.plain:
            return headers
        if random.random() < 0.3:
            headers["x-ringrouter-class"] = random.choice([*CLASSES, "urgent"] if random.random() < 0.1 else CLASSES)
        if random.random() < 0.3:
            headers["x-ringrouter-deadline-ms"] = random.choice(["1", "40", "200", "1000", "soon"])
        if random.random() < 0.2:
            headers["x-ringrouter-tag-feature-name"] = FEATURE
        if random.random() < 0.3:
            headers["x-ringrouter-tag-user-id"] = random.choice(["u1", "u2"])
        if random.random() < 0.05:
            headers["x-ringrouter-host"] = random.choice(["h0", "h1", "h9"])
        return headers

    def _leave(self) -> Leave | None:
        random = self.random
        if random.random() > (0.7 if self.theme == "leaving" else 0.08):
            return None
        return Leave(
            when=random.choice(["begun", "sent", "sent", "head", "token"]),
            after_ms=round(random.choice([0.0, random.uniform(0, 5), random.uniform(0, 400)]), 3),
            n=random.choice([1, 3, 10]),
            reset=random.random() < 0.5,
        )


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    return Draw(seed).scenario()
