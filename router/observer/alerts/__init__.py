"""Alerts: what is wrong, why, and who is told.

The map, in the order in which an alert comes about: a *finding* says that something is wrong now; *evidence* says where
and why; an *alert* is a finding with its evidence and its life, from when it begins until it is over. All three are
values (:mod:`router.observer.alerts.model`).

    watch      findings about hosts, routers, the observer itself and its sinks; pure
    changes    what was changed in the last hour, at the routers and in the traffic
    inhibit    which findings are told by another one; pure
    ledger     the life of alerts: when one fires, when it is over, over restarts; pure; ``ledger_file`` has it on disk
    evidence   where and why, and regressions
    text       an alert in words; ``bodies`` what Alertmanager and webhooks get; pure
    desk       all of these, once an evaluation
    spool      messages that a sink has not taken yet, on disk
    sinks      one delivery to one sink; ``courier`` all deliveries, until they are taken
"""
