"""Routing: which replica a request goes to, and why."""

from anyserve_scheduler.routing.decision import Decision, Hints, NoRoute, Why
from anyserve_scheduler.routing.explain import Considered, Explanation
from anyserve_scheduler.routing.policy import (
    LEAST_WAIT,
    POLICIES,
    POWER_OF_TWO,
    PREFIX,
    Policy,
)
from anyserve_scheduler.routing.prefix import PrefixTable, block_hashes
from anyserve_scheduler.routing.router import Router, Sent
from anyserve_scheduler.routing.sessions import Sessions

__all__ = [
    "LEAST_WAIT",
    "POLICIES",
    "POWER_OF_TWO",
    "PREFIX",
    "Considered",
    "Decision",
    "Explanation",
    "Hints",
    "NoRoute",
    "Policy",
    "PrefixTable",
    "Router",
    "Sent",
    "Sessions",
    "Why",
    "block_hashes",
]
