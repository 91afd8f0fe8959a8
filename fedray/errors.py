"""The errors that fedray raises, one tree, so that callers can catch as widely or as narrowly as they want.

    FedrayError
      TraceError        a round function does what a traced round cannot do
        PlacementError  a value is used where it does not live
      VerifyError       a graph breaks a rule of flow, naming or placement
      PassError         a pass cannot be applied
        PolicyError     a plan releases more than the policy allows
        SecurityConflict  two protections, or a protection and an algorithm, cannot both hold
      ScheduleError     a schedule and a plan, or a schedule and a federation, do not fit
      QuorumError       too few sites were counted; the server state is unchanged
        AttemptLost     the aggregator died in a round that is not run twice under the same name
      FoldError         values or weights outside what an exact sum can hold
      DataError         a data set, a contract or a column is not what it must be
      ConfigError       a configuration cannot run; `problems` lists all that was found
        ClusterError    a cluster may not or cannot be joined as things are
      MemoryForecastError  the run would not fit into memory
      CheckpointError   a checkpoint is missing, broken or of another plan
        DamagedError    a file of a checkpoint is not as it was written
      StorageError      a disk is full, or a store does not answer
      LedgerError       a privacy ledger was cut, edited or removed
      BudgetError       a release would spend more privacy than is allowed
      HostError         a process that holds sites did not answer
      Withheld          a site keeps its update to itself
      SecrecyError      a party of a secure sum refuses; `code` says why

Messages say what happened, where, what was expected and what to do. They never hold a patient value.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class FedrayError(Exception):
    """Root of every error that fedray raises on purpose. `heading` is what the command line says above it."""

    heading = "the run failed"


class TraceError(FedrayError):
    """A round function does what a traced round cannot do."""

    heading = "the algorithm cannot be traced"


class PlacementError(TraceError):
    """A value is used where it does not live."""


class VerifyError(FedrayError):
    """A graph breaks a rule of flow, naming or placement."""

    heading = "the plan breaks a rule"


class PassError(FedrayError):
    """A pass cannot be applied."""

    heading = "a pass cannot be applied"


class PolicyError(PassError):
    """A plan releases more than the policy allows."""

    heading = "the plan releases more than the policy allows"


class SecurityConflict(PassError):
    """Two protections, or a protection and what an algorithm needs, cannot both hold. Names both and a
    fix.
    """

    heading = "two protections cannot both hold"


class ScheduleError(FedrayError):
    """A schedule does not fit the plan or the federation."""

    heading = "the schedule does not fit"


class QuorumError(FedrayError):
    """Too few sites were counted. The server state is unchanged."""

    heading = "too few sites were counted"


class AttemptLost(QuorumError):
    """The aggregator died in a round that draws from the system's entropy: nothing of it was released, and it
    is tried again as attempt `next_number`.
    """

    def __init__(self, message: str, next_number: int = 0) -> None:
        self.next_number = next_number
        super().__init__(message)


class FoldError(FedrayError):
    """A value or a weight lies outside what an exact sum can hold."""

    heading = "a value cannot be added exactly"


class DataError(FedrayError):
    """A data set, a contract or a column is not what it must be."""

    heading = "the data cannot be used"


class ConfigError(FedrayError):
    """A configuration cannot run. `problems` holds every finding, each with the override that mends it."""

    heading = "the configuration cannot run"

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ClusterError(ConfigError):
    """A Ray cluster may not or cannot be joined: credentials, versions, labels or data are not right."""

    heading = "the cluster is not joined"


class MemoryForecastError(FedrayError):
    """The run would not fit into memory."""

    heading = "the run would not fit into memory"


class CheckpointError(FedrayError):
    """A checkpoint is missing, broken or of another plan."""

    heading = "a checkpoint cannot be used"


class DamagedError(CheckpointError):
    """A file of a checkpoint is gone, cut off or changed: the checkpoint before it may be whole."""


class StorageError(FedrayError):
    """A file or an object could not be written or read: a full disk, a store that does not answer."""

    heading = "a file cannot be written or read"


class LedgerError(FedrayError):
    """E_LEDGER: a privacy ledger was cut, edited or removed. Nothing is released before it is restored."""

    heading = "the privacy ledger is not whole"


class BudgetError(FedrayError):
    """E_BUDGET: a release would spend more privacy than is allowed. It was not made."""

    heading = "the privacy budget does not allow this"


class HostError(FedrayError):
    """A process that holds sites did not answer."""

    heading = "a process of the run does not answer"


class Withheld(FedrayError):
    """A site keeps its update to itself. The message says what was found, in numbers, and stays at the site;
    `kind` is all that a record at the server says.
    """

    heading = "a site keeps its update to itself"

    kind = "withheld"


class SecrecyError(FedrayError):
    """A party of a secure sum refuses or gives up. `code` is a name such as E_COHORT for logs and tests."""

    heading = "a party of a secure sum refuses"

    def __init__(self, code: str, message: str) -> None:
        self.code, self.kind = code, f"SecrecyError {code}"
        super().__init__(f"{code}: {message}")


LATE = "late"  # the kind of failure of a site that a deadline has passed over
AWAY = "node away"  # of a site whose node is not in the cluster: it is asked again when it is back


@dataclass(frozen=True, slots=True)
class SiteError:
    """One site's failure in one stage, as it may leave the site: never a message, which could hold a value.

    `kind` is the class of the error, or a word of ours ("not finite", "late", "host lost", "node away",
    "withheld"); `where` is the `file:line` inside the mapped function, without its folder.
    """

    site: str
    round: int
    stage: int
    kind: str
    where: str = ""

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"{self.site}: {self.kind} in stage {self.stage} of round {self.round}{place}"
