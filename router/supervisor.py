"""`ringrouter run`: the router, its observer, its keeper and the model hosts that come with it, as one.

Without a configuration it starts a chat host and an embedding host (``router.embedded``), writes a configuration for
them into the run directory, and starts ``ringrouter serve`` and ``ringrouter observe`` with it; with one it starts
these two alone. Then it sends one request through the router and shows where its time went.

* A child that ends is started again: after 0.5 s, then twice as long each time up to 10 s. One that ran for 30 s
  begins anew. A child that fails during the start ends the start, with what its log says.
* The observer is a witness: when it cannot run here at all, that is said once and everything else goes on. So it is
  with the keeper, which is started where the configuration has something for it: without it less is cached.
* SIGINT, SIGTERM and SIGHUP end the router first (its streams drain), then the observer, which reads what that left,
  and the hosts. A second one ends all at once.
* Every child is in a process group of its own, so that Ctrl-C reaches the supervisor alone and the order holds; and the
  kernel kills it when the supervisor dies, so that nothing is ever left behind.
* A router that is told to upgrade itself (SIGUSR2) refuses: its successor would be nobody's child.
* What a child prints goes to ``RUN/logs/NAME.log``, at most 4 MiB and its predecessor ``NAME.log.1``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from router.embedded import demonstration
from router.embedded.child import BackOff, Child, RunError, bound_log, describe_exit
from router.embedded.demonstration import Readiness
from router.embedded.hosts import HostPythonMissingError
from router.embedded.plan import Plan, embedded_plan, user_plan
from router.errors import ConfigError
from router.service.handover import SUPERVISED_VARIABLE

DEFAULT_PORT: Final = 8400
ROUTER_STOP_MARGIN_S: Final = 3.0
"""What the router has beyond its drain time to close its sockets and rings."""
HOST_STOP_S: Final = 3.0
OBSERVER_STOP_S: Final = 10.0
"""To read what the router left and to force the journal to a slow disk."""
KEEPER_STOP_S: Final = 10.0
"""To bring what the router left in its ring to a slow disk."""
HURRY_AFTER_S: Final = 1.0
"""A stop signal this long after the first means "at once"; one before is the first again, sent to a process group."""
LOG_CHECK_S: Final = 5.0

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def run(config_path: Path | None = None, *, port: int | None = None) -> int:
    """Run until a signal; return the exit code: 0 stopped by a signal, 1 failed, 2 cannot be started like this.

    ``config_path`` names the user's own configuration; without it the embedded hosts are served on ``port`` (0: any
    free one).
    """
    try:
        if config_path is not None and port is not None:
            raise RunError("--port goes with the embedded models; a configuration says `listen.http` itself")
        plan = user_plan(config_path) if config_path else embedded_plan(DEFAULT_PORT if port is None else port)
    except (RunError, ConfigError, HostPythonMissingError, OSError) as error:
        sys.stderr.write(f"ringrouter run: {error}\n")
        return EXIT_USAGE
    try:
        return asyncio.run(Supervisor(plan).run())
    finally:
        plan.release()


class Supervisor:
    """Starts the children of a plan, keeps them running, and ends them in order."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hosts = [
            Child(host.name, command, plan.log_dir / f"{host.name}.log", announces_ready=True)
            for host, command in plan.host_commands.items()
        ]
        self._router = Child(
            "router",
            plan.router_command,
            plan.log_dir / "router.log",
            environment={**os.environ, SUPERVISED_VARIABLE: "1"},
        )
        self._observers = [
            Child("observer", command, plan.log_dir / "observer.log")
            for command in (plan.observer_command,)
            if command is not None
        ]
        self._keepers = [
            Child("keeper", command, plan.log_dir / "keeper.log")
            for command in (plan.keeper_command,)
            if command is not None
        ]
        self._stop_signal_s: float | None = None

    @property
    def _children(self) -> list[Child]:
        return [self._router, *self._keepers, *self._observers, *self._hosts]

    async def run(self) -> int:
        """Run until a signal or a failed start; return the exit code."""
        loop = asyncio.get_running_loop()
        work = asyncio.ensure_future(self._work())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._on_stop_signal, work)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            await work
        except asyncio.CancelledError:
            return 0
        except RunError as error:
            sys.stderr.write(f"\nringrouter run: {error}\n")
        finally:
            await self._stop()
        return EXIT_FAILED

    def _on_stop_signal(self, work: asyncio.Future[None]) -> None:
        now_s = time.monotonic()
        if self._stop_signal_s is None:
            self._stop_signal_s = now_s
            work.cancel()
        elif now_s - self._stop_signal_s >= HURRY_AFTER_S:
            for child in self._children:
                child.signal(signal.SIGKILL)

    def _reap(self) -> None:
        for child in self._children:
            child.reap()

    async def _work(self) -> None:
        await self._start_hosts()
        for keeper in self._keepers:
            start(keeper)
        readiness = await self._start_router()
        async with asyncio.TaskGroup() as tasks:
            for observer in self._observers:
                start(observer)
                tasks.create_task(self._keep_beside(observer))
            for keeper in self._keepers:
                tasks.create_task(self._keep_beside(keeper))
            for child in (self._router, *self._hosts):
                tasks.create_task(self._keep_running(child))
            tasks.create_task(self._bound_logs())
            tasks.create_task(demonstration.show(self._plan.config, readiness))

    async def _start_hosts(self) -> None:
        for host, child in zip(self._plan.host_commands, self._hosts, strict=True):
            say(f"starting the {host.what} (usually 1 s) ...")
            start(child)
        for child in self._hosts:
            await child.wait_ready()
            say(f"  {child.name} is ready after {time.monotonic() - child.started_s:.1f} s")

    async def _start_router(self) -> Readiness:
        """Start the router and wait for it; raises :class:`RunError` if it ends or does not answer."""
        say("starting the router (usually 1 s) ...")
        start(self._router)
        ended = asyncio.ensure_future(self._router.wait_ended())
        ready = asyncio.ensure_future(demonstration.wait_ready(self._plan.config))
        try:
            await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise self._router.failure(f"the router ended ({describe_exit(ended.result())})")
            readiness = ready.result()
        except demonstration.DemonstrationError as error:
            raise self._router.failure(str(error)) from None
        finally:
            ended.cancel()
            ready.cancel()
        if readiness.ready:
            say(f"  the router is ready after {time.monotonic() - self._router.started_s:.1f} s")
        return readiness

    async def _keep_running(self, child: Child) -> None:
        back_off = BackOff()
        while True:
            exit_code = await child.wait_ended()
            up_s = time.monotonic() - child.started_s
            delay_s = back_off.delay_s(up_s)
            say(
                f"{child.name} ended after {up_s:.0f} s ({describe_exit(exit_code)}); "
                f"starting it again in {delay_s:g} s. Its log: {child.log_path}"
            )
            await asyncio.sleep(delay_s)
            try:
                start(child)
            except RunError as error:
                say(str(error))

    async def _keep_beside(self, child: Child) -> None:
        """Keep an observer or a keeper running, unless it cannot run here at all."""
        if await child.wait_ended() == EXIT_USAGE:
            say(str(child.failure(f"there is no {child.name} here, everything else goes on")))
        else:
            await self._keep_running(child)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            for child in self._children:
                bound_log(child.log_path)

    async def _stop(self) -> None:
        """End the router first, so that its streams end in order, and then the others."""
        if any(child.pid for child in self._children):
            say("\nstopping; running answers may take a moment (Ctrl-C again: at once) ...")
        drain_s = self._plan.config.timeouts.drain_s
        if not await self._router.stop(drain_s + ROUTER_STOP_MARGIN_S):
            say(f"the router had to be killed; its log: {self._router.log_path}")
        await asyncio.gather(
            *(host.stop(HOST_STOP_S) for host in self._hosts),
            *(observer.stop(OBSERVER_STOP_S) for observer in self._observers),
            *(keeper.stop(KEEPER_STOP_S) for keeper in self._keepers),
        )


def start(child: Child) -> None:
    """Start a child; raises :class:`RunError` if its program is not there."""
    try:
        child.start()
    except OSError as error:
        raise RunError(f"{child.name} cannot be started: {error}") from error


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
