"""Tell where the seconds of a start go: one DEBUG line for each phase that has ended.

`experiments/tools/start_up.py` prints them; nobody else listens.
"""

import logging

log = logging.getLogger(__name__)


def ended(phase: str) -> None:
    """Say that a phase of the start has ended now."""
    log.debug(phase)


def are_wanted() -> bool:
    """Tell whether anybody listens."""
    return log.isEnabledFor(logging.DEBUG)


def hand_to(handler: logging.Handler) -> None:
    """Let a handler have the phases, and nobody else."""
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    log.propagate = False
