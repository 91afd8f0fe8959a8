"""What a check of a machine or a cluster came to: a line that says PASS, or the problem and its fix."""

from collections.abc import Iterable
from dataclasses import dataclass

PASS, NOTE, FAIL = "PASS", "NOTE", "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to; `fix` is empty where nothing is to be done. NOTE: only worth knowing."""

    check: str
    status: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n{'':<20} fix: {self.fix}" if self.fix else ""
        return f"{self.status}  {self.check:<13} {self.message}{fix}"


def problems(findings: Iterable[Finding]) -> list[str]:
    """Return the failures as an error lists them."""
    return [
        f"{finding.check}: {finding.message}. Fix: {finding.fix}"
        for finding in findings
        if finding.status == FAIL
    ]
