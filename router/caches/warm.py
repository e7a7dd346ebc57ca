"""System prompts sent ahead, so that each host holds them before anybody asks.

A prompt goes to a host that has its model, once after the router's or the host's start, after the host's recovery, when
the prompt changes, and, where ``keep_s`` says so, when the host has been idle for that long. It goes only to a host on
which nothing runs and for which nobody waits, one at a time for each host, through the loop like every request: with
slots, time-outs and records (tag ``workload_class`` ``warm``), and one token of answer.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.caches import published
from router.caches.published import PublishedError, PublishedPrompt, PublishedPrompts, Subscription
from router.caches.silent import SilentEgress
from router.config.caches import published_prompts
from router.errors import RequestError
from router.ingress.pinning import pin
from router.ingress.submission import RequestIds, make_request, submit
from router.ingress.wishes import read_wishes
from router.telemetry.counters import Counter
from router.telemetry.records import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from router.config import Config
    from router.hosts.host import Host
    from router.loop import Loop

_RETRY_NS_MIN: Final = 10_000_000_000
_RETRY_NS_MAX: Final = 640_000_000_000
"""After a failure the prompt goes to that host again, after further ones twice as long each time up to this."""
_NS: Final = 1_000_000_000
_encode: Final = msgspec.json.Encoder().encode


class _Warmth:
    """What one host holds: by prompt, the digest that was sent and when."""

    __slots__ = ("busy_ns", "failures", "is_sending", "sent")

    def __init__(self) -> None:
        self.sent: dict[str, tuple[bytes, int]] = {}
        self.busy_ns = 0
        """When the host was last seen with something running."""
        self.failures: dict[str, tuple[int, int]] = {}
        """By prompt: after which wait it goes out again, and when."""
        self.is_sending = False


class Warmer:
    """Sends prompts ahead to the hosts of a loop."""

    def __init__(self, loop: Loop, config: Config, run_dir: Path, log: Any) -> None:
        self._loop = loop
        self._config = config
        self._log = log
        self._subscription = Subscription(published_prompts(run_dir), published.PROMPTS, PublishedPrompts)
        self._prompts: list[PublishedPrompt] = []
        self._warmth: dict[int, _Warmth] = {}
        self._next_id = RequestIds().next
        self._on_standing = loop.on_standing
        loop.on_standing = self._standing  # type: ignore[method-assign]

    # ------------------------------------------------------------ life
    async def start(self) -> None:
        """Look once a second what is to be sent."""
        self._loop.seconds.append(self._look)

    def stop(self) -> None:
        """Send no more."""
        self._loop.seconds.remove(self._look)

    def _standing(self, host: Host, old_bar: int) -> None:
        """A host that was away holds nothing any more."""
        self._on_standing(host, old_bar)
        if not host.healthy:
            self._warmth.pop(host.host_id, None)

    # ------------------------------------------------------------ what is to be sent
    def _look(self, now: int) -> None:
        try:
            value = self._subscription.poll()
        except PublishedError as error:
            self._log.error("published prompts cannot be used, those before stay", reason=str(error))
            value = None
        if value is not None:
            self._prompts = value.prompts
        for host in self._loop.hosts:
            self._look_at(host, now)

    def _look_at(self, host: Host, now: int) -> None:
        if not host.usable:
            return
        warmth = self._warmth.get(host.host_id)
        if warmth is None:
            warmth = self._warmth[host.host_id] = _Warmth()
        if warmth.is_sending:
            return
        due = self._due(host, warmth, now)
        if host.running or host.draining or host.taken_elsewhere() or self._has_waiting(host):
            warmth.busy_ns = now
        elif due is not None and not self._loop.stopping:
            self._send(host, warmth, due, now)

    def _has_waiting(self, host: Host) -> bool:
        models = self._loop.models
        return bool(self._loop.waiting_count) and any(models[name].waiting for name in host.models if name in models)

    def _due(self, host: Host, warmth: _Warmth, now: int) -> PublishedPrompt | None:
        """Return a prompt that the host should get now, if it is idle."""
        for prompt in self._prompts:
            if prompt.model not in host.models or now < warmth.failures.get(prompt.name, (0, 0))[1]:
                continue
            digest, sent_ns = warmth.sent.get(prompt.name, (b"", 0))
            if digest != prompt.digest:
                return prompt
            if prompt.keep_s and now - max(sent_ns, warmth.busy_ns) >= int(prompt.keep_s * _NS):
                return prompt
        return None

    # ------------------------------------------------------------ one request
    def _send(self, host: Host, warmth: _Warmth, prompt: PublishedPrompt, now: int) -> None:
        egress = SilentEgress(lambda ended: self._ended(host, warmth, prompt, ended))
        warmth.is_sending = True
        try:
            headers = _headers(prompt)
            request = make_request(
                self._loop, egress, Endpoint.CHAT, self._next_id(), _body(prompt), headers, now, now,
                streams_by_default=True, wishes=read_wishes(headers, has_features=False),
            )  # fmt: skip
            pin(self._loop, request, host.name)
            egress.request = request
            submit(self._loop, request, 0)
        except RequestError as error:
            self._failed(host, warmth, prompt, error.message)
            return
        self._loop.counters.add(Counter.WARM_SENT)

    def _ended(self, host: Host, warmth: _Warmth, prompt: PublishedPrompt, egress: SilentEgress) -> None:
        if egress.status != 200:
            message = egress.request.message if egress.request is not None else ""
            self._failed(host, warmth, prompt, message)
            return
        warmth.is_sending = False
        warmth.failures.pop(prompt.name, None)
        warmth.sent[prompt.name] = prompt.digest, monotonic_ns()

    def _failed(self, host: Host, warmth: _Warmth, prompt: PublishedPrompt, reason: str) -> None:
        warmth.is_sending = False
        wait_ns = min(2 * warmth.failures.get(prompt.name, (_RETRY_NS_MIN // 2, 0))[0], _RETRY_NS_MAX)
        warmth.failures[prompt.name] = wait_ns, monotonic_ns() + wait_ns
        self._loop.counters.add(Counter.WARM_FAILED)
        self._loop.telemetry.errors.note(f"host {host.name}: the prompt {prompt.name} was not taken", monotonic_ns())
        self._log.warning("a prompt was not sent ahead", host=host.name, prompt=prompt.name, reason=reason)


def _body(prompt: PublishedPrompt) -> bytes:
    body: dict[str, Any] = {
        "model": prompt.model,
        "messages": [{"role": "system", "content": prompt.text}, {"role": "user", "content": "."}],
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
    }
    if prompt.tools:
        body["tools"] = [{"type": "ringrouter", "names": prompt.tools}]
    return _encode(body)


def _headers(prompt: PublishedPrompt) -> dict[bytes, bytes]:
    headers = {
        b"x-ringrouter-tag-workload-class": b"warm",
        b"x-ringrouter-tag-feature-name": prompt.name.encode(),
        b"x-ringrouter-class": b"batch",
        b"x-ringrouter-cache": b"off",  # an answer that was kept warms no host
    }
    if prompt.prompt_version:
        headers[b"x-ringrouter-tag-prompt-version"] = prompt.prompt_version.encode()
    return headers
