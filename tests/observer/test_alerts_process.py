"""Alerts by the processes themselves: a router that dies, an observer that is killed, a sink that is away, and what the
commands say.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from router import cli
from router.observer import client
from router.observer.alerts.desk import AlertsPage
from router.observer.client import ObserverError
from router.telemetry.change_log import read_changes
from router.telemetry.host_rows import read_models
from tests.support.alert_sink import WebhookThread
from tests.support.processes import Program, RouterProcess, host_toml
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import free_port, wait_until

TIME_SCALE = 50
"""An evaluation takes 0.2 s."""
ALERT_S = 60.0


class Site:
    """A router, an observer and a webhook."""

    def __init__(self, directory: Path, host: ScriptedHost, hook: WebhookThread, more: str = "") -> None:
        self.address = f"127.0.0.1:{free_port()}"
        toml = (
            f'[observer]\nhttp = "{self.address}"\ndata_dir = "{directory}/data"\ntime_scale = {TIME_SCALE}\n'
            "[observer.alerts]\nretry_s = 0.05\n"
            f'[[observer.alerts.sinks]]\nname = "hook"\nkind = "webhook"\nurl = "{hook.url}"\n'
        ) + host_toml("alpha", host.url, kind="vllm", models=["m"])
        toml += more
        self.router = RouterProcess(directory, toml)
        command = [sys.executable, "-m", "router", "observe", "--config", str(self.router.config_path)]
        self.observer = Program("observer", command, directory / "observer.log")

    def page(self) -> AlertsPage | None:
        """Return what ``/alerts.json`` says; nothing while the observer starts."""
        try:
            return msgspec.json.decode(client.get(self.address, "/alerts.json"), type=AlertsPage)
        except ObserverError:
            self.observer.check_running()
            return None

    @property
    def generation(self) -> Path:
        return (self.router.instance_dir / "current").resolve()

    def wait_looking(self) -> None:
        wait_until(lambda: (page := self.page()) and page.evaluated_wall_ns, "an evaluation", ALERT_S)


def posted(address: str, path: str, headers: dict[str, str]) -> int:
    """Return the status of a POST."""
    name, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(name, int(port), timeout=5)
    try:
        connection.request("POST", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_without_alerts_there_is_no_page_and_nothing_to_test(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedHost("alpha") as host, WebhookThread() as hook:
        site = Site(directory, host, hook)
        site.router.write_config()
        text = site.router.config_path.read_text()
        site.router.config_path.write_text(text.replace("[observer.alerts]", "[observer.alerts]\nenabled = false"))
        with site.observer:
            wait_until(lambda: "observing" in site.observer.log_text(), "the observer", ALERT_S)
            for action, status in (("alerts", 1), ("test-alert", 2)):
                assert cli.main(["slo", action, "--url", site.address]) == status
            said = capsys.readouterr().err
    assert "there are no alerts: observer.alerts.enabled is false" in said
    assert "expected one of no sinks" in said


def test_a_router_that_dies_is_told_once_over_a_killed_observer_and_a_sink_that_is_away(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedHost("alpha") as host, WebhookThread() as hook:
        site = Site(directory, host, hook)
        with site.router, site.observer:
            site.wait_looking()
            url = ["--url", site.address]
            assert cli.main(["slo", "test-alert", *url]) == 0
            assert "hook (webhook, http://127.0.0.1:" in (said := capsys.readouterr().out)
            assert " took it: firing 200 in " in said
            assert [each["status"] for each in hook.told] == ["firing", "resolved"]

            told_count = len(hook.told)
            for headers in ({}, {"host": "evil.example", client.ASKED_HEADER: "1"}):
                assert posted(site.address, "/alerts/test", headers) == 403, "a web page may not do it"
            assert len(hook.told) == told_count

            hook.take = False
            assert cli.main(["slo", "test-alert", "--sink", "hook", "--json", *url]) == 1
            (reply,) = json.loads(capsys.readouterr().out)
            assert reply["text"] == "status 503"
            assert cli.main(["slo", "test-alert", "--sink", "nobody", *url]) == 2
            assert "sink=nobody: expected one of hook" in capsys.readouterr().err

            refused_count = hook.refused_count
            site.router.kill()
            wait_until(lambda: hook.refused_count > refused_count, "the alert to be tried", ALERT_S)
            site.observer.kill()
            hook.take_again()
            site.observer.start()
            wait_until(hook.names, "the alert to be delivered by the next observer", ALERT_S)
            site.wait_looking()
            assert cli.main(["slo", "alerts", *url]) == 0
            said = capsys.readouterr().out
            assert "page RingrouterRouterDown since " in said
            assert "router main is dead: it ended without having been told to" in said
            assert cli.main(["slo", "alerts", "--fingerprint", "no-such", *url]) == 0
            assert "has the fingerprint no-such" in (said := capsys.readouterr().out)
            assert "no alert fires" not in said

            site.router.start()
            wait_until(lambda: len(hook.names()) > 1, "the end to be told", ALERT_S)
            assert hook.names() == [("RingrouterRouterDown", "firing"), ("RingrouterRouterDown", "resolved")]
            assert cli.main(["slo", "alerts", "--recent", *url]) == 0
            assert "no alert fires" in (said := capsys.readouterr().out)
            assert " until " in said
    assert [(each.kind, each.text) for each in read_changes(site.generation)] == [
        ("start", "router 0.1.0 started"), ("stop", "router stopped"),
    ]  # fmt: skip


def test_a_host_that_is_down_is_told_with_what_was_changed_before(directory: Path) -> None:
    with ScriptedHost("alpha") as host, WebhookThread() as hook:
        site = Site(directory, host, hook, "[health]\ninterval_s = 0.1\nfail_after = 2\n")
        with site.router, site.observer:
            site.wait_looking()
            site.router.config_path.write_text(site.router.config_path.read_text() + "[limits]\nwaiting = 64\n")
            site.router.signal(signal.SIGHUP)
            wait_until(lambda: len(read_changes(site.generation)) > 1, "the reload", ALERT_S)
            host.health_status = 503
            wait_until(hook.names, "an alert", ALERT_S)
            host.health_status = 200
            wait_until(lambda: len(hook.names()) > 1, "its end", ALERT_S)
    assert hook.names() == [("RingrouterHostDown", "firing"), ("RingrouterHostDown", "resolved")]
    (told, _) = hook.told
    assert told["commonLabels"] == {"alertname": "RingrouterHostDown", "severity": "page", "host": "alpha"}
    assert "host alpha is down: its probes fail" in told["commonAnnotations"]["summary"]
    assert "limits.waiting: 1024 -> 64 (main)" in told["commonAnnotations"]["description"]


def test_a_damaged_ledger_is_said_where_an_operator_looks(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedHost("alpha") as host, WebhookThread() as hook:
        site = Site(directory, host, hook)
        ledger = directory / "data" / "alerts" / "ledger.json"
        ledger.parent.mkdir(parents=True)
        ledger.write_bytes(b"\0" * 4096)
        with site.router, site.observer:
            wait_until(hook.names, "the alert", ALERT_S)
            assert cli.main(["slo", "alerts", "--url", site.address]) == 0
            page, health = site.page(), client.get(site.address, "/healthz").decode()
            log_text = site.observer.log_text()
    assert hook.names() == [("RingrouterObserverLossy", "firing")]
    said = f"{ledger} is damaged ("
    printed = capsys.readouterr().out
    assert f"the observer does not know what fired before its start: {said}" in printed
    assert f"\nproblem: {said}" in printed
    assert page is not None
    assert page.problem.startswith(said)
    assert said in health
    assert "alerts_not_remembered" in log_text


def test_the_last_host_of_a_model_pages_and_the_model_is_named(directory: Path) -> None:
    """The host is asked which models it has: only the router knows."""
    with (
        ScriptedHost("alpha") as host,
        ScriptedHost("beta", models=["small"]) as both,
        ScriptedHost("gamma", models=["large", "small"]) as only,
        WebhookThread() as hook,
    ):
        more = "".join(host_toml(each.name, each.url, kind="vllm") for each in (both, only))
        site = Site(directory, host, hook, f"{more}[health]\ninterval_s = 0.1\nfail_after = 2\n")
        with site.router, site.observer:
            site.wait_looking()
            wait_until(lambda: read_models(site.generation).hosts["gamma"], "the probe of gamma", ALERT_S)
            both.health_status = 503
            wait_until(hook.names, "an alert", ALERT_S)
            both.health_status = 200
            wait_until(lambda: len(hook.names()) > 1, "its end", ALERT_S)
            only.health_status = 503
            wait_until(lambda: len(hook.names()) > 2, "the other alert", ALERT_S)
            path = site.router.config_path
            path.write_text(path.read_text().replace(host_toml("gamma", only.url, kind="vllm"), ""))
            site.router.signal(signal.SIGHUP)
            wait_until(lambda: len(hook.names()) > 3, "its end: the host was taken out", ALERT_S)
            assert read_models(site.generation).hosts == {"alpha": ["m"], "beta": ["small"]}
    ticket, _, page = hook.told[:3]
    assert ticket["commonLabels"] == {"alertname": "RingrouterHostDown", "severity": "ticket", "host": "beta"}
    assert "2 of 3 hosts still serve" in ticket["commonAnnotations"]["summary"]
    assert "no host left" not in ticket["commonAnnotations"]["summary"]
    assert page["commonLabels"] == {"alertname": "RingrouterHostDown", "severity": "page", "host": "gamma"}
    assert "2 of 3 hosts still serve; model large has no host left" in page["commonAnnotations"]["summary"]


def test_an_observer_without_what_its_sinks_need_says_so_and_ends(directory: Path) -> None:
    with ScriptedHost("alpha") as host, WebhookThread() as hook:
        site = Site(directory, host, hook)
        site.router.write_config()
        with site.router.config_path.open("a") as file:
            file.write('[[observer.alerts.sinks]]\nname = "x"\nkind = "webhook"\nurl = "http://h"\n')
            file.write('headers_env = { Authorization = "NOT_SET_ANYWHERE" }\n')
        site.observer.start()
        assert site.observer.wait(ALERT_S) == 2
        assert "headers_env.Authorization: expected the name of an environment variable" in site.observer.log_text()


def test_the_command_says_when_no_observer_answers(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("alerts", "test-alert"):
        assert cli.main(["slo", action, "--url", f"127.0.0.1:{free_port()}"]) == 1
        assert "no observer answers at http://127.0.0.1:" in capsys.readouterr().err
