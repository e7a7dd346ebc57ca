"""One run of the policy study: a workload at a rate, through one rule, from one seed; virtual time throughout.

The router's part is done as its loop does it, with its own modules: a request runs at once when nobody waits and the
policy finds a host for it, else it waits in the router's waiting room, batch work in its class; a freed slot starts the
next one; what becomes of a request is told to the policy. A host that dies is not usable until its next probe after it
is back, and then gets its slots bit by bit. A request without a first token is sent elsewhere, one that has sent tokens
is lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from bench.policies_host import Host, Job
from bench.policies_rules import Rule, host_settings
from bench.policies_workloads import Session, Turn, Workload, next_session, session_s, turn_s, turns_per_session
from router.admission import BATCH, CLASS_NAMES, INTERACTIVE, Turns, WaitingRoom, next_of
from router.config.admission import AdmissionConfig
from router.config.health import Health
from router.hosts.slow_start import slots_now
from router.routing import NO_HOST, Candidate
from router.routing.policy import Ask

NS = 1_000_000_000
DURATION_MIN_S = 120.0
"""Of a run: hosts die and come back a few times in it."""
QUEUE_NS = 30 * NS
"""As ``timeouts.queue_s``: then a request that waits is given up."""
PROBE_NS = NS
"""Within this time the router notices that a host is back."""
ATTEMPTS_MAX = 3
WARM_SHARE = 0.3
"""Of the time; what requests met until then is not counted: caches and models are still being filled."""
GOOD_SHARE = 0.9
UNLIMITED_SLOTS = 1 << 20
"""For rules that queue in hosts."""
_HEALTH = Health()
_SLOW_START_NS = int(_HEALTH.slow_start_s * NS)


class Request:
    """One turn of a session on its way. ``ttft_s`` is infinite until its first token came."""

    __slots__ = (
        "ask", "attempts", "deadline_ns", "deq", "ended_ns", "failed", "first_ns", "host", "job", "seq", "session",
        "share_key", "tried", "turn", "workload",
    )  # fmt: skip

    def __init__(self, seq: int, session: Session, rule: Rule, now_ns: int) -> None:
        self.seq = seq
        self.deq = now_ns
        self.workload = BATCH if session.is_batch else INTERACTIVE
        self.deadline_ns = 0
        self.share_key = ""
        self.session = session
        turn, prompt_tokens, block_count = session.ask()
        self.turn: Turn = turn
        self.job = Job(self, prompt_tokens, turn.answer_tokens, session.blocks[:block_count], list(session.blocks))
        self.ask = Ask(now_ns, prompt_tokens, rule.blocks(self.job.blocks), session.key)
        self.first_ns = 0
        self.ended_ns = 0
        self.attempts = 0
        self.host = NO_HOST
        self.tried: set[int] = set()
        self.failed = False

    @property
    def is_batch(self) -> bool:
        """Whether it belongs to the class that waits behind the other."""
        return self.session.is_batch

    @property
    def ttft_s(self) -> float:
        """Seconds from its arrival to its first token."""
        return (self.first_ns - self.deq) / NS if self.first_ns else float("inf")

    @property
    def token_s(self) -> float:
        """Mean seconds between the tokens of its answer."""
        return (self.ended_ns - self.first_ns) / NS / max(self.job.answer_tokens - 1, 1)


class Outcome(NamedTuple):
    """What a run gave. Times in seconds, infinite for requests that never got a token; shares between 0 and 1.

    The times and ``good_share`` (answers complete, with first token and pace within the workload's limits) are of all
    requests but batch work; ``held_share`` is the part of all prompts' tokens that hosts did not have to read;
    ``imbalance`` the busiest host's part of all answers as a multiple of an equal part.
    """

    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    good_share: float
    held_share: float
    imbalance: float
    batch_tokens_per_s: float
    request_count: int


class Run:
    """The state of one run; :meth:`run` does it."""

    def __init__(self, workload: Workload, rule: Rule, rate: float, seed: int, request_count: int) -> None:
        self.workload = workload
        self.rule = rule
        self.last_ns = int(max(DURATION_MIN_S, request_count / rate) * NS)
        self._random = Random(f"{workload.name} {seed}")
        speeds = self._random.sample(workload.speeds, len(workload.speeds))  # a slow one may stand anywhere
        self.hosts = [Host(workload.kind, speed) for speed in speeds]
        self.usable = [True] * len(self.hosts)
        self.back_ns = [-_SLOW_START_NS] * len(self.hosts)
        self.busy = [0] * len(self.hosts)
        self.waiting = _waiting_room()
        self.turns = Turns()
        self.requests: list[Request] = []
        self.policy = rule.make(host_settings(speeds), Random(f"policy {seed}"))
        self._sessions_per_s = rate / turns_per_session(workload)
        self._events: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._event_count = 0
        self._session_count = 0
        self._now_ns = 0

    # ------------------------------------------------------------ time
    def run(self) -> Outcome:
        """Do everything that happens until the time is over and all requests have ended."""
        self._resume()
        self._at(0, self._arrive)
        if self.workload.outage_every_s:
            self._at(int(self.workload.outage_every_s * NS), self._die, self._random.randrange(len(self.hosts)))
        events = self._events
        while events:
            self._now_ns, _, happens, what = heapq.heappop(events)
            happens(*what)
        return outcome(self)

    def _at(self, t_ns: int, happens: Callable[..., None], *what: object) -> None:
        self._event_count += 1
        heapq.heappush(self._events, (t_ns, self._event_count, happens, what))

    @property
    def _is_over(self) -> bool:
        return self._now_ns >= self.last_ns

    # ------------------------------------------------------------ clients
    def _resume(self) -> None:
        """Begin with as many sessions as are under way at any time; how many turns each has left does not depend on how
        many it had (their number is geometric).
        """
        for _ in range(round(self._sessions_per_s * session_s(self.workload))):
            begin_ns = int(self._random.random() * turn_s(self.workload) * NS)
            self._session_count += 1
            self._at(begin_ns, self._ask, next_session(self._session_count, self.workload, self._random))

    def _arrive(self) -> None:
        if self._is_over:
            return
        self._session_count += 1
        self._ask(next_session(self._session_count, self.workload, self._random))
        self._at(self._now_ns + int(self._random.expovariate(self._sessions_per_s) * NS), self._arrive)

    def _ask(self, session: Session) -> None:
        if self._is_over:
            return
        request = Request(len(self.requests), session, self.rule, self._now_ns)
        self.requests.append(request)
        if self.waiting or not self._send(request):
            self.waiting.add(request)

    # ------------------------------------------------------------ the router
    def _slots(self, index: int) -> int:
        if self.rule.queues_in_hosts:
            return UNLIMITED_SLOTS
        return slots_now(
            self.workload.kind.slot_count, self.back_ns[index], self._now_ns, _SLOW_START_NS, _HEALTH.slow_start_share
        )

    def _candidates(self, request: Request) -> list[Candidate]:
        return [
            (index + 1, self.busy[index], self._slots(index), self.usable[index], index in request.tried)
            for index in range(len(self.hosts))
        ]

    def _send(self, request: Request) -> bool:
        candidates = self._candidates(request)
        request.ask.now_ns = self._now_ns
        chosen = self.policy.choose(candidates, request.ask)
        if chosen == NO_HOST:
            return False
        _, busy, slots, usable, _ = candidates[chosen]
        assert usable, "a host was chosen that cannot be used"
        assert busy < slots, "a host was chosen that is full"
        self.policy.sent(chosen + 1, request.ask)
        request.host = chosen
        request.attempts += 1
        self.busy[chosen] += 1
        host, job = self.hosts[chosen], request.job
        job.left_tokens = -1
        version = host.version
        host.add(job, self._now_ns)
        if not host.is_working:
            host.begin(self._now_ns)
        self._announce(chosen, version)
        return True

    def _announce(self, index: int, version: int) -> None:
        """See to it that the end of a host's steps is noticed, if it is another one than before."""
        host = self.hosts[index]
        if host.version != version and host.is_working:
            self._at(host.end_ns, self._steps, index, host.version)

    def _pump(self, index: int) -> None:
        """Start those who wait, while a host has free slots."""
        host_id, turns, room = index + 1, self.turns, self.waiting
        while room and self.usable[index] and self.busy[index] < self._slots(index):
            starving = turns.is_for_starving(host_id)
            request = next_of([room], lambda who: self._may_serve(index, who), self._now_ns, for_starving=starving)
            if request is None:
                return
            if self._now_ns - request.deq > QUEUE_NS:
                room.remove(request)
                self._fail(request)
                continue
            room.start(request)
            if not self._send(request):
                room.add(request, first=True)
                return
            turns.started(host_id)

    def _may_serve(self, index: int, request: Request) -> bool:
        if index not in request.tried:
            return True
        return not any(usable and other not in request.tried for other, usable in enumerate(self.usable))

    # ------------------------------------------------------------ hosts
    def _steps(self, index: int, version: int) -> None:
        host = self.hosts[index]
        if host.version != version:
            return
        first, ended = host.finish(self._now_ns)
        for job in first:
            request: Request = job.owner
            request.first_ns = self._now_ns
            self.policy.first_token(index + 1, request.ask, self._now_ns - request.ask.now_ns)
        for job in ended:
            self._end(job.owner, index)
        host.begin(self._now_ns)
        if host.is_working:
            self._at(host.end_ns, self._steps, index, host.version)
        if ended:
            self._pump(index)

    def _end(self, request: Request, index: int) -> None:
        self.busy[index] -= 1
        self.policy.ended(index + 1, request.ask)
        request.ended_ns = self._now_ns
        if request.session.turns:
            self._at(self._now_ns + request.turn.pause_ns, self._ask, request.session)

    def _fail(self, request: Request) -> None:
        """A request is lost, and its client goes away."""
        request.failed = True
        request.ended_ns = self._now_ns

    def _die(self, index: int) -> None:
        if self._is_over:
            return
        lost = self.hosts[index].die()
        self.usable[index] = False
        self.policy.emptied(index + 1)
        for job in lost:
            request: Request = job.owner
            self.busy[index] -= 1
            self.policy.ended(index + 1, request.ask)
            request.tried.add(index)
            if request.first_ns or request.attempts >= ATTEMPTS_MAX:
                self._fail(request)
            else:
                self.waiting.add(request, first=True)
        down_ns = int(self.workload.outage_s * NS)
        self._at(self._now_ns + down_ns + int(self._random.random() * PROBE_NS), self._return, index)
        self._at(self._now_ns + int(self.workload.outage_every_s * NS), self._die, index)
        for other in range(len(self.hosts)):
            self._pump(other)

    def _return(self, index: int) -> None:
        self.usable[index] = True
        self.back_ns[index] = self._now_ns
        self._more_slots(index)

    def _more_slots(self, index: int) -> None:
        """The tick: a host that is back has a few slots more."""
        if self.usable[index]:
            self._pump(index)
            if self._now_ns - self.back_ns[index] < _SLOW_START_NS:
                self._at(self._now_ns + NS // 10, self._more_slots, index)


def _waiting_room() -> WaitingRoom:
    """Return a waiting room with the rules that a model has without any of its own."""
    room, rules = WaitingRoom(), AdmissionConfig()
    starve_ns = [int(rules.starve_s(name) * NS) for name in CLASS_NAMES]
    room.configure(is_fair=rules.fair_share, starve_ns=starve_ns, waiting_max=[-1] * len(CLASS_NAMES))
    return room


def outcome(run: Run) -> Outcome:
    """Return what a run gave, without the requests that came first."""
    counted = [request for request in run.requests if request.deq >= WARM_SHARE * run.last_ns]
    judged = [request for request in counted if not request.is_batch]
    times = sorted(request.ttft_s for request in judged)
    workload = run.workload
    good = sum(
        not r.failed and bool(r.ended_ns) and r.ttft_s <= workload.ttft_s and r.token_s <= workload.token_s
        for r in judged
    )
    answers = [0] * len(run.hosts)
    for request in counted:
        if request.first_ns:
            answers[request.host] += 1
    prompt_tokens = sum(request.job.prompt_tokens for request in counted if request.first_ns)
    held_tokens = sum(request.job.held_tokens for request in counted if request.first_ns)
    seconds = (1 - WARM_SHARE) * run.last_ns / NS
    batch_tokens = sum(r.job.answer_tokens for r in counted if r.is_batch and r.ended_ns and not r.failed)
    return Outcome(
        percentile(times, 0.50),
        percentile(times, 0.95),
        percentile(times, 0.99),
        good / len(judged),
        held_tokens / max(prompt_tokens, 1),
        max(answers) * len(answers) / max(sum(answers), 1),
        batch_tokens / seconds,
        len(counted),
    )


def percentile(ordered: list[float], share: float) -> float:
    """Return the smallest value that is not below this share of the values (nearest rank)."""
    return ordered[max(0, -(-int(share * 10_000) * len(ordered) // 10_000) - 1)]


def run(workload: Workload, rule: Rule, rate: float, seed: int, request_count: int) -> Outcome:
    """Do one run: ``rate`` requests a second, on average, until about ``request_count`` have come."""
    return Run(workload, rule, rate, seed, request_count).run()


def capacity(workload: Workload, rule: Rule, request_count: int) -> float:
    """Return the requests a second that a rule can serve well: the highest rate, within 2 %, at which
    :data:`GOOD_SHARE` of the answers are within the workload's limits (the goodput of DistServe, OSDI 2024).
    """
    low = high = 0.25 * len(workload.speeds)
    while run(workload, rule, high, 0, request_count).good_share >= GOOD_SHARE:
        low, high = high, 2 * high
    while high > 1.02 * low:
        middle = (low * high) ** 0.5
        if run(workload, rule, middle, 0, request_count).good_share >= GOOD_SHARE:
            low = middle
        else:
            high = middle
    return low
