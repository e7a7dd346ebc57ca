"""Alerts: what is wrong, why, and who is told.

The map, in the order in which an alert comes about: a *finding* says that something is wrong now; *evidence* says where
and why; an *alert* is a finding with its evidence and its life, from when it begins until it is over. All three are
values (:mod:`router.observer.alerts.model`).
"""
