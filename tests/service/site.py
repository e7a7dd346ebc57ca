"""What the tests of the service work with: a systemd, a host, the units between them, and clients."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.support.scripted_host import ScriptedHost
from tests.support.systemd import Machine
from tests.support.waiting import free_port, wait_until

UNIT = "ringrouter.service"
CONFIG = "/etc/ringrouter/ringrouter.toml"
SLOT_COUNT = 4
ASK = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Outcome:
    """How one request ended. ``status`` 0: it could not be asked or answered, ``error`` says how."""

    status: int
    error: str = ""
    closed: bool = False
    """The answer said ``Connection: close``."""
    body: bytes = b""


@dataclass
class Load:
    """Clients that ask one thing after another until told to stop, each over a connection that it keeps."""

    port: int
    client_count: int
    stream: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for _ in range(self.client_count):
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        client = Client(self.port)
        while not self._stop.is_set():
            outcome = client.ask(stream=self.stream)
            self.outcomes.append(outcome)
            if not outcome.status:
                time.sleep(0.01)
        client.close()

    def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more requests are over."""
        wanted = len(self.outcomes) + count
        wait_until(lambda: len(self.outcomes) >= wanted, f"{count} more requests", timeout_s)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]


class Client:
    """One client with a connection that it keeps while the answers let it; never asks twice for one request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, *, stream: bool = False, **more: Any) -> Outcome:
        """Ask one thing and read all of the answer."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            body = json.dumps({**ASK, "stream": stream, **more})
            self._connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            response = self._connection.getresponse()
            text = response.read()
            closed = response.will_close
        except http.client.IncompleteRead as error:  # a stream that does not end as one should
            self.close()
            return Outcome(0, error.partial.decode()[-300:], True, error.partial)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Outcome(0, repr(error))
        if closed:
            self.close()
        broken = stream and response.status == 200 and b"[DONE]" not in text
        return Outcome(0 if broken else response.status, text.decode()[-300:], closed, text)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Site:
    """A machine with the units installed, and a host outside it."""

    def __init__(self, machine: Machine, host: ScriptedHost) -> None:
        self.machine = machine
        self.host = host
        self.port = free_port()
        done = machine.ringrouter("service", "install")
        assert done.returncode == 0, done.stdout + done.stderr
        self.installed = done.stdout
        machine.write(
            "/etc/systemd/system/ringrouter.socket.d/port.conf",
            f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{self.port}\nListenStream=/run/ringrouter/http.sock\n",
        )
        machine.write(
            "/etc/systemd/system/ringrouter@.socket.d/port.conf",
            f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{self.port}\nListenStream=/run/ringrouter/http-%i.sock\n",
        )
        # Tests start it more often in a minute than any operator.
        machine.write("/etc/systemd/system/ringrouter.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n")
        machine.write("/etc/systemd/system/ringrouter.socket.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n")
        machine.systemctl("daemon-reload")

    def toml(self, more: str = "", host_keys: str = "") -> str:
        """Return the usual configuration; ``more`` are further tables, ``host_keys`` further keys of the host."""
        return (
            f'version = 1\n[health]\ninterval_s = 0.2\n{more}\n[[hosts]]\nname = "gpu"\nurl = "{self.host.url}"\n'
            f'kind = "vllm"\nslots = {SLOT_COUNT}\nmodels = ["m"]\n{host_keys}\n'
        )

    def configure(self, text: str) -> None:
        """Write the configuration as an operator has it: readable for the service alone."""
        self.machine.write(CONFIG, text, 0o640)
        self.machine.run("chgrp", "ringrouter", CONFIG)

    def drop_in(self, text: str, unit: str = UNIT) -> None:
        """Add settings to a unit, as `systemctl edit` does."""
        self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.machine.systemctl("daemon-reload")

    def reset(self) -> None:
        """Go back to the usual configuration."""
        self.configure(self.toml())
        if self.machine.try_run("test", "-e", f"/etc/systemd/system/{UNIT}.d/test.conf").returncode == 0:
            self.machine.run("rm", "-f", f"/etc/systemd/system/{UNIT}.d/test.conf")
            self.machine.systemctl("daemon-reload")
        self.host.forget_scripts()

    def start(self) -> None:
        """Start socket and service; both are up then."""
        self.machine.systemctl("start", "ringrouter.socket", UNIT)

    def stop(self) -> None:
        """Stop both."""
        self.machine.try_run("systemctl", "stop", "ringrouter.socket", UNIT)
        self.machine.try_run("systemctl", "reset-failed")

    @property
    def pid(self) -> int:
        """The main process, as systemd sees it."""
        return self.machine.main_pid(UNIT)

    @property
    def watchdog_fed_s(self) -> float:
        """When systemd last heard from the service that it is alive, on the monotonic clock."""
        return int(self.machine.show(UNIT, "WatchdogTimestampMonotonic")) / 1e6

    @property
    def status(self) -> str:
        return self.machine.show(UNIT, "StatusText")

    def ask(self, **more: Any) -> Outcome:
        """Ask one thing over a connection of its own."""
        client = Client(self.port)
        try:
            return client.ask(**more)
        finally:
            client.close()

    def wait_new_pid(self, old: int, timeout_s: float = 20.0) -> int:
        """Wait until another process is the main one and the unit is up."""

        def look() -> int:
            pid = self.pid
            return pid if pid not in {0, old} and self.machine.show(UNIT, "ActiveState") == "active" else 0

        return wait_until(look, "another main process", timeout_s)

    def events(self, name: str) -> list[dict[str, str]]:
        """Return the messages of the service with this name, from the journal, as fields."""
        lines = self.machine.journal(UNIT, f"RINGROUTER_EVENT={name}").splitlines()
        return [json.loads(line) for line in lines]


def connect(port: int) -> socket.socket:
    """Return a connection to the service."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)
