"""Shapley values the slow way, from their definition: the mean over all orders. Imports nothing of fedray."""

from itertools import combinations, permutations

import numpy as np


def shapley(players, worth):
    """Return the mean over all orders of what a player adds to those before it."""
    totals = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            totals[player] += worth(order[: place + 1]) - worth(order[:place])
    return {player: total / len(orders) for player, total in totals.items()}


def coalitions(players):
    return [each for size in range(len(players) + 1) for each in combinations(players, size)]


def regression(tables, sites):
    """Return the least-squares weights of the rows of some sites; zeros where there are none."""
    if not sites:
        return np.zeros(next(iter(tables.values()))[0].shape[1])
    x, y = (np.concatenate([tables[site][part] for site in sites]) for part in (0, 1))
    return np.linalg.solve(x.T @ x, x.T @ y)


def utility(tables, weights):
    """Return minus the mean squared error over the rows of all sites."""
    errors = np.concatenate([x @ weights - y for x, y in tables.values()])
    return -float(np.mean(errors**2))


def orthogonal_tables(seed=3):
    """Return {site: (x, y)}, columns of x orthogonal with mean square 1; c and d hold the same rows.

    One gradient step of length 1 from zero is then the least-squares answer, of one site as of several.
    """
    draws = np.random.default_rng(seed)
    made = {}
    for site, (rows, shift) in {"a": (6, 0.0), "b": (9, 1.2), "c": (12, -1.0), "e": (30, 0.5)}.items():
        x = np.linalg.qr(draws.normal(size=(rows, 3)))[0] * np.sqrt(rows)
        made[site] = (x, x @ (np.array([1.0, -2.0, 0.5]) + shift) + draws.normal(size=rows))
    return {"a": made["a"], "b": made["b"], "c": made["c"], "d": made["c"], "e": made["e"]}


def steps(tables, sites, rounds, lr):
    """Return the models of full-batch federated averaging of one step, weighted by rows, first one included.

    With them the update of each site in each round.
    """
    model, models, updates = np.zeros(3), [np.zeros(3)], []
    total = sum(len(tables[site][1]) for site in sites)
    for _ in range(rounds):
        found = {}
        for site in sites:
            x, y = tables[site]
            found[site] = -lr * x.T @ (x @ model - y) / len(y)
        model = model + sum(len(tables[site][1]) / total * found[site] for site in sites)
        models.append(model)
        updates.append(found)
    return models, updates


def put_together(tables, sites, model, updates):
    """Return the model that a subset's updates make, weighted by rows."""
    total = sum(len(tables[site][1]) for site in sites)
    return model + sum(len(tables[site][1]) / total * updates[site] for site in sites) if sites else model
