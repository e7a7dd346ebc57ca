"""What is sent to Alertmanager and to webhooks; pure.

Alertmanager's API v2 takes an array of ``postableAlert`` (api/v2/openapi.yaml in prometheus/alertmanager)::

    labels        required, strings by name; alertname among them; they identify the alert
    annotations   strings by name
    startsAt endsAt   RFC 3339; endsAt in the future: it fires until then unless it is sent again
    generatorURL  a URI

A webhook gets what Alertmanager sends to one (``"version": "4"``, prometheus.io/docs/alerting/latest/configuration),
with one alert, and beside the fields of that version ``ringrouter``: the alert with all its evidence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

import msgspec

from router.observer.alerts import text
from router.observer.alerts.model import Alert, Cause, Severity

WEBHOOK_VERSION: Final = "4"
NOT_ENDED: Final = "0001-01-01T00:00:00Z"
"""``endsAt`` of a webhook's alert that fires: Go's zero time, as Alertmanager writes it."""
ANNOTATION_BYTES_MAX: Final = 16_384
_NAMES: Final = {
    Cause.BURN: "RingrouterSloBurn",
    Cause.BUDGET: "RingrouterSloBudget",
    Cause.REGRESSION: "RingrouterRegression",
    Cause.HOST_DOWN: "RingrouterHostDown",
    Cause.ROUTER_DOWN: "RingrouterRouterDown",
    Cause.LOSSY: "RingrouterObserverLossy",
    Cause.SINK_DOWN: "RingrouterSinkDown",
    Cause.TEST: "RingrouterTest",
}


def labels_of(alert: Alert, severity: Severity | None = None) -> dict[str, str]:
    """Return what identifies an alert; labels without a value are left out, for Alertmanager does so too."""
    own = {_label(name): value for name, value in sorted(alert.finding.labels.items()) if value}
    return {"alertname": _NAMES[alert.finding.cause], "severity": str(severity or alert.finding.severity)} | own


def _label(name: str) -> str:
    """Return a name that a label may have: ``[a-zA-Z_][a-zA-Z0-9_]*``, and not one of ours."""
    cleaned = "".join(char if char.isascii() and (char.isalnum() or char == "_") else "_" for char in name)
    return f"tag_{cleaned}" if cleaned[:1].isdigit() or cleaned in {"alertname", "severity", ""} else cleaned


def annotations_of(alert: Alert) -> dict[str, str]:
    """Return the sentence and what it stands on."""
    below = "\n".join(text.lines(alert))
    finding = alert.finding
    found = {
        "summary": text.sentence(alert),
        "description": below,
        "where": text.where_line(finding.where),
        "cause": str(finding.cause),
    }
    if alert.evidence is not None and alert.evidence.examples:
        found["examples"] = ", ".join(each.request_id or each.trace_id for each in alert.evidence.examples)
        found["traces"] = ", ".join(each.trace_id for each in alert.evidence.examples if each.trace_id)
    return {name: _cut(value) for name, value in found.items() if value}


def _cut(value: str) -> str:
    return value.encode()[:ANNOTATION_BYTES_MAX].decode("utf-8", "ignore")


def generator_url(alert: Alert, base_url: str) -> str:
    """Return where the observer tells of this alert; empty where it has no URL."""
    return f"{base_url}/alerts.json?fingerprint={quote(alert.fingerprint)}" if base_url else ""


def alertmanager(alerts: Iterable[Alert], base_url: str, until_wall_ns: int) -> bytes:
    """Return the body of ``POST /api/v2/alerts``. What fires is said to end at ``until_wall_ns``, after the next time
    that it is sent.
    """
    return msgspec.json.encode([_postable(alert, base_url, until_wall_ns) for alert in alerts])


def _postable(alert: Alert, base_url: str, until_wall_ns: int) -> dict[str, Any]:
    ends_ns = until_wall_ns if alert.ends_wall_ns is None else alert.ends_wall_ns
    body: dict[str, Any] = {
        "labels": labels_of(alert),
        "annotations": annotations_of(alert),
        "startsAt": text.rfc3339(alert.starts_wall_ns),
        "endsAt": text.rfc3339(max(ends_ns, alert.starts_wall_ns)),  # a clock that was set back must not refuse it
    }
    if url := generator_url(alert, base_url):
        body["generatorURL"] = url
    return body


def webhook(alert: Alert, receiver: str, base_url: str) -> bytes:
    """Return the body for a webhook."""
    status = "firing" if alert.ends_wall_ns is None else "resolved"
    own_labels, own_annotations = labels_of(alert), annotations_of(alert)
    group = {"alertname": own_labels["alertname"]}
    return msgspec.json.encode(
        {
            "version": WEBHOOK_VERSION,
            "groupKey": f'{{}}:{{alertname="{own_labels["alertname"]}"}}:{alert.fingerprint}',
            "truncatedAlerts": 0,
            "status": status,
            "receiver": receiver,
            "groupLabels": group,
            "commonLabels": own_labels,
            "commonAnnotations": own_annotations,
            "externalURL": base_url,
            "alerts": [
                {
                    "status": status,
                    "labels": own_labels,
                    "annotations": own_annotations,
                    "startsAt": text.rfc3339(alert.starts_wall_ns),
                    "endsAt": NOT_ENDED if alert.ends_wall_ns is None else text.rfc3339(alert.ends_wall_ns),
                    "generatorURL": generator_url(alert, base_url),
                    "fingerprint": alert.fingerprint,
                }
            ],
            "ringrouter": alert,
        }
    )
