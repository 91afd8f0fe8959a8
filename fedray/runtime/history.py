"""What a driver has asked of its aggregator, as far as an empty one must be told it to be the same again."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedray.errors import HostError
from fedray.runtime.plan import Plan

log = logging.getLogger(__name__)
SETUP = ("hello", "prepare")


@dataclass(slots=True)
class History:
    """The set-up, the start of the run, and the rounds since the last checkpoint."""

    setup: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    start: tuple[Any, ...] | None = None
    restore: tuple[str, int] | None = None
    rounds: list[tuple[tuple[Any, ...], dict[str, str]]] = field(default_factory=list)

    def note(self, method: str, args: tuple[Any, ...], answer: Any) -> None:
        """Take a call that was answered."""
        if method in SETUP:
            self.setup = [asked for asked in self.setup if asked != ("hello", ())] + [(method, args)]
        elif method == "start":
            self.start, self.rounds = args, []
            self.restore = args[2] if len(args) > 2 else None
        elif method == "run_round" and self.is_one_shot(method, args) and self.start and self.start[0].folder:
            self.restore, self.rounds = (self.start[0].folder, args[0]), []  # the aggregator has saved it
        elif method == "run_round":
            self.rounds.append((args, dict(answer.hashes)))
        elif method == "save":
            self.restore, self.rounds = (args[0], args[1]), []

    def is_one_shot(self, method: str, args: tuple[Any, ...]) -> bool:
        """Tell whether a call draws from the system's entropy, and must not be made twice."""
        if method == "compute":
            plan = args[0]
        elif method == "run_round" and self.start is not None:
            plan = self.start[0].plan.of_round(args[0])
        else:
            return False
        return isinstance(plan, Plan) and plan.is_one_shot

    def told(self, method: str, args: tuple[Any, ...]) -> tuple[str, int]:
        """Return what is said of an attempt that was lost, and the first number that is free after it."""
        if method != "run_round" or self.start is None:
            return f"{args[0].name} was lost with the aggregator; it is not run twice", 0
        number = args[1] if len(args) > 1 else 0
        return f"round {args[0]} was lost with the aggregator", number + self.start[0].schedule.attempts

    def replay(self, ask: Callable[..., Any]) -> int:
        """Tell an empty aggregator everything; return how many rounds were run again.

        Raises HostError where a round must not be run again.
        """
        for method, args in self.setup:
            ask(method, *args)
        if self.start is None:
            return 0
        if any(self.is_one_shot("run_round", args) for args, _ in self.rounds):
            raise HostError(
                "the aggregator has died, and rounds that draw noise or keys are not run again: give fit() "
                "a checkpoint, which is then written after each of them, and start the run again"
            )
        ask("start", self.start[0], self.start[1], self.restore)
        for args, hashes in self.rounds:
            found = ask("run_round", *args)
            if dict(found.hashes) != hashes:
                log.warning("round %d was run again and came to other bits than before", args[0])
        return len(self.rounds)
