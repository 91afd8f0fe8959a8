"""What differential privacy has cost, and who keeps the count. Start reading at `mechanism.py`.

A pass or a local training that spends privacy carries a `Mechanism`; `accountant.py` turns mechanisms into an
epsilon, `calibrate.py` an epsilon into noise, `ledger.py` keeps what was spent over all studies, and
`audit.py` tries to catch a mechanism that spends more than it says.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedray.accounting.mechanism import Mechanism

if TYPE_CHECKING:
    from fedray.accounting.accountant import delta, epsilon
    from fedray.accounting.calibrate import noise_multiplier
    from fedray.accounting.ledger import PrivacyLedger

__all__ = ["Mechanism", "PrivacyLedger", "delta", "epsilon", "noise_multiplier"]
_HOMES = {"PrivacyLedger": "ledger", "delta": "accountant", "epsilon": "accountant",
          "noise_multiplier": "calibrate"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Resolve a name on first use: a pass that only carries a record loads no accountant."""
    if name not in _HOMES:
        raise AttributeError(f"fedray.accounting has no {name!r}")
    return getattr(import_module(f"fedray.accounting.{_HOMES[name]}"), name)
