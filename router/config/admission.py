"""The sections that say who is served first, until when, and what may be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between
from router.config_schema import shown, shown_key
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Config

DEADLINE_MS_MAX: Final = 86_400_000
"""A day, as long as any time-out of the waiting room."""
TOKENS_MAX: Final = 1 << 31
TEMPERATURE_MAX: Final = 10.0

ClassName = Literal["realtime", "interactive", "batch"]
OnDeadline = Literal["refuse", "serve"]
STARVE_S: Final[dict[ClassName, float]] = {"realtime": 5.0, "interactive": 15.0, "batch": 60.0}
"""Seconds of waiting after which a request of a class is starving, unless its section says otherwise."""


class ClassAdmission(Section, frozen=True):
    """`[models.NAME.admission.classes.CLASS]`: rules of one class: `realtime`, `interactive` or `batch`."""

    deadline_ms: (
        Annotated[
            float,
            between(1, DEADLINE_MS_MAX, "Time to the first token, from the request's head read, where neither the "
            "request nor its feature says one. Absent: no deadline."),
        ]
        | None
    ) = None  # fmt: skip
    waiting: (
        Annotated[
            int,
            between(0, 65_536, "Most requests of the class that wait, within `limits.waiting`; the next gets a 429."),
        ]
        | None
    ) = None  # fmt: skip
    starve_s: (
        Annotated[
            float,
            above_zero(86_400, "Waiting time above which a request starves: every fourth slot that a host hands on "
            "goes to one that does. Absent: 5 for realtime, 15 for interactive, 60 for batch."),
        ]
        | None
    ) = None  # fmt: skip


class AdmissionConfig(Section, frozen=True):
    """`[models.NAME.admission]`: in which order waiting requests start, and which are refused (docs/admission.md)."""

    default_class: Annotated[
        ClassName, Meta(description="Class of a request of which neither it, its tags nor its feature says one.")
    ] = "interactive"
    on_deadline: Annotated[
        OnDeadline,
        Meta(
            description="`refuse`: a request that cannot have its first token by its deadline is refused at once, and "
            "one whose deadline passes while it waits is ended. `serve`: the deadline only orders those that wait."
        ),
    ] = "refuse"
    fair_share: Annotated[
        bool,
        Meta(description="Clients take turns inside a class: by their key, else by the tag `user_id`."),
    ] = True
    classes: Annotated[dict[ClassName, ClassAdmission], Meta(description="Rules of single classes.")] = msgspec.field(
        default_factory=dict
    )

    def of(self, name: ClassName) -> ClassAdmission:
        """Return the rules of a class."""
        return self.classes.get(name, _NO_RULES)

    def starve_s(self, name: ClassName) -> float:
        """Return the waiting time above which a request of a class starves."""
        own = self.of(name).starve_s
        return STARVE_S[name] if own is None else own

    @property
    def settles(self) -> bool:
        """Whether a request gets a class or a deadline that it did not ask for."""
        return self.default_class != "interactive" or any(c.deadline_ms is not None for c in self.classes.values())


_NO_RULES: Final = ClassAdmission()


class LeverRules(Section, frozen=True):
    """`[models.NAME.levers]`: what requests of the model may ask for (docs/admission.md)."""

    max_output_tokens: (
        Annotated[
            int, between(1, TOKENS_MAX, "Most tokens of an answer: a request for more, or for no number, gets this.")
        ]
        | None
    ) = None
    default_max_output_tokens: (
        Annotated[int, between(1, TOKENS_MAX, "Most tokens of an answer where the request says no number.")] | None
    ) = None
    temperature_min: (
        Annotated[float, between(0, TEMPERATURE_MAX, "A request for less gets this.")] | None
    ) = None  # fmt: skip
    temperature_max: (
        Annotated[float, between(0, TEMPERATURE_MAX, "A request for more gets this.")] | None
    ) = None  # fmt: skip
    default_temperature: (
        Annotated[
            float,
            between(0, TEMPERATURE_MAX, "Temperature where the request says none; without it the host's own stands."),
        ]
        | None
    ) = None


class FeatureConfig(LeverRules, frozen=True):
    """`[features.NAME]`: rules for requests with the tag `feature_name = NAME`; they go before those of the model."""

    model: Annotated[str, Meta(description="Model that answers, whichever the request asks for. Empty: that one.")] = ""
    default_class: Annotated[
        ClassName | None, Meta(description="Class of a request that says none in its header.")
    ] = None  # fmt: skip
    deadline_ms: (
        Annotated[
            float,
            between(1, DEADLINE_MS_MAX, "Time to the first token of a request that says none in its header."),
        ]
        | None
    ) = None
    on_deadline: Annotated[
        OnDeadline | None, Meta(description="As `models.NAME.admission.on_deadline`, for this feature.")
    ] = None  # fmt: skip


def check_admission(config: Config) -> None:
    """Check classes, features and levers against each other; raises :class:`ConfigError` that names the key."""
    for name, model in config.models.items():
        _check_levers(f"models.{shown_key(name)}.levers", model.levers)
        for each, rules in model.admission.classes.items():
            if rules.waiting is not None and rules.waiting > config.limits.waiting:
                key = f"models.{shown_key(name)}.admission.classes.{each}.waiting"
                raise ConfigError(f"{key} = {rules.waiting}: expected at most limits.waiting ({config.limits.waiting})")
    served = {name for host in config.hosts for name in host.models} | set(config.models)
    served.update(alias for model in config.models.values() for alias in model.aliases)
    all_known = all(host.models for host in config.hosts)
    for name, feature in config.features.items():
        key = f"features.{shown_key(name)}"
        if not name:
            raise ConfigError(f"{key}: expected a name, the value of the tag feature_name")
        _check_levers(key, feature)
        if feature.model and all_known and config.hosts and feature.model not in served:
            models = ", ".join(sorted(served)) or "none"
            raise ConfigError(f"{key}.model = {shown(feature.model)}: expected a model that a host has ({models})")


def _check_levers(key: str, rules: LeverRules) -> None:
    most, usual = rules.max_output_tokens, rules.default_max_output_tokens
    if most is not None and usual is not None and usual > most:
        raise ConfigError(
            f"{key}.default_max_output_tokens = {usual}: expected at most {key}.max_output_tokens ({most})"
        )
    low, high, given = rules.temperature_min, rules.temperature_max, rules.default_temperature
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{key}.temperature_min = {low:g}: expected at most {key}.temperature_max ({high:g})")
    if given is not None and low is not None and given < low:
        raise ConfigError(f"{key}.default_temperature = {given:g}: expected at least {key}.temperature_min ({low:g})")
    if given is not None and high is not None and given > high:
        raise ConfigError(f"{key}.default_temperature = {given:g}: expected at most {key}.temperature_max ({high:g})")
