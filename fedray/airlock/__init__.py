"""Airlock: a site tests its own update, in its own process, before it leaves. Start at `gate.py`."""

from fedray.airlock.canaries import Canaries, Exposure
from fedray.airlock.checks import Membership, Norm, Rebuilt, RowsBehind
from fedray.airlock.gate import airlock, of_policy
from fedray.airlock.leaving import Finding, Leaving, Test

__all__ = [
    "Canaries",
    "Exposure",
    "Finding",
    "Leaving",
    "Membership",
    "Norm",
    "Rebuilt",
    "RowsBehind",
    "Test",
    "airlock",
    "of_policy",
]
