"""Few rows: outputs of the first layer that one row alone has moved hold that row, weights over bias.

A model as it starts, nothing prepared: 100 features, hidden layers of 128 and 64. Shares of the victim's rows
that are rebuilt to within 10 %. `steps` of `rows` each, at a small rate, tell what several steps change.
"""

import fedray as fr
from experiments.attacks.privacy.seen import Defence, seen, tables_of
from fedray.airlock.inversion import rebuilt_rows

WIDTH, HIDDEN = 100, (128, 64)
BATCHES = (2, 4, 8, 16, 32)


def attack(defence: Defence, seed: int) -> dict[str, float]:
    """Return the share of rows rebuilt, by the number of rows in the batch."""
    return {f"batch {rows}": share(defence, rows, seed) for rows in BATCHES}


def share(
    defence: Defence, rows: int, seed: int, steps: int = 1, batch_size: int | None = None, lr: float = 1.0
) -> float:
    """Return the share of rows rebuilt from one update."""
    model = fr.learn.mlp(WIDTH, hidden=HIDDEN)
    tables = tables_of(defence, rows, WIDTH, seed)
    local = defence.training(model, seed, lr, steps, batch_size)
    delta = seen(defence, local, model.init(seed), tables, seed)
    found = rebuilt_rows(delta, tables[0]["x"])
    assert found is not None
    return float(found.double().mean())


SIZES = ((2, 1), (2, 2), (2, 4), (2, 16), (4, 2), (4, 8), (8, 4), (32, 1))


def several_steps(defence: Defence, seed: int) -> dict[str, float]:
    """Return the share of rows rebuilt where several steps are behind an update, each on rows of its own."""
    return {
        f"{steps} x {size}": share(defence, steps * size, seed, steps, size, lr=0.1) for size, steps in SIZES
    }
