"""Routing, pure: which host gets a request."""

from router.routing.least_outstanding import NO_HOST, Candidate, Policy, Reason, choose, explain

__all__ = ["NO_HOST", "Candidate", "Policy", "Reason", "choose", "explain"]
