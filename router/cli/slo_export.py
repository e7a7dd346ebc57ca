"""``ringrouter slo export``: the objectives of a configuration as recording and alerting rules for Prometheus.

Whoever keeps all alerts in Prometheus may have those of ours there too. The rules read what the observer's ``/metrics``
tells of each objective (``ringrouter_slo_burn_rate``), which is counted exactly, also by ``where`` and ``group_by``
that no series of a metric could tell apart. The format is that of Prometheus's rule files
(prometheus.io/docs/prometheus/latest/configuration/alerting_rules); JSON is YAML.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from router import config
from router.cli import EXIT_OK, fail
from router.config import SloConfig, SloWindow
from router.config.slo import expanded, needed_ratio
from router.errors import ConfigError
from router.observer.slo.findings import span, window_label


def run(args: argparse.Namespace) -> int:
    """Print the rules; 2 for a configuration that is not good or has no objective."""
    try:
        settings = config.load(args.config, need_keys=False)
    except ConfigError as error:
        return fail(error)
    if not settings.slo:
        return fail(f"{args.config} has no [[slo]]")
    groups = [{"name": f"ringrouter-slo-{slo.name}", "rules": list(_rules(slo))} for slo in expanded(settings.slo)]
    json.dump({"groups": groups}, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    return EXIT_OK


def _rules(slo: SloConfig) -> Iterator[dict[str, Any]]:
    group = ",".join(slo.group_by) or "all"
    for rule in slo.rules:
        yield {
            "alert": "RingrouterSloBurn",
            "expr": " and ignoring(window) ".join(
                f'ringrouter_slo_burn_rate{{slo="{slo.name}",group_by="{group}",window="{window_label(seconds)}"}} '
                f"> {rule.factor:g}"
                for seconds in (rule.long_s, rule.short_s)
            ),
            "labels": {"severity": rule.severity},
            "annotations": {"summary": _summary(slo, rule)},
        }


def _summary(slo: SloConfig, rule: SloWindow) -> str:
    return (
        f"{slo.name}: more than {needed_ratio(slo, rule):.4g} of the requests of the last {span(rule.long_s)} missed "
        f"an objective of {slo.target:g} %"
    )
