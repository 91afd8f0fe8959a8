"""What differential privacy has cost, and who keeps the count. Start reading at `mechanism.py`.

A pass or a local training that spends privacy carries a `Mechanism`; `accountant.py` turns mechanisms into an
epsilon, `calibrate.py` an epsilon into noise, `ledger.py` keeps what was spent over all studies, and
`audit.py` tries to catch a mechanism that spends more than it says.
"""

from fedray.accounting.mechanism import Mechanism

__all__ = ["Mechanism"]
