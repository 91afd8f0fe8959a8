"""What privacy a run has spent, in sentences: for its page and for the last lines on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

QUARTERS = (0.25, 0.5, 0.75, 1.0)  # of a run, after which epsilon is told


def headline(told: Mapping[str, Any]) -> str:
    """Return the figure of a run in one line, from the `privacy` of its result.json."""
    units = " and ".join(told["units"])
    return f"differential privacy: epsilon {told['epsilon']:.3g} at delta {told['delta']:.1g}, unit: {units}"


def sentences(told: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield what was protected and at which cost, and what left without noise; `sign` is yes or no."""
    makers = sorted({f"by the {noise['noise_by'].replace('sites', 'hospitals')}" for noise in told["noise"]})
    trusted = sorted({noise["trusted"] for noise in told["noise"]})
    over = told["epsilon_over_all_studies"]
    whole = f", and {over:.3g} with all studies in its ledger" if over > told["epsilon"] else ""
    figure = f"{headline(told).capitalize()}, to add or remove one of them{whole}."
    who = f"Noise {' and '.join(makers)}; trusted with what it is added to: {', '.join(trusted)}."
    yield {"sign": "yes", "text": f"{figure} {who} {_by_round(rounds)}"}
    if None in told["exact"].values():
        yield {"sign": "no", "text": "What the masked sum holds without noise beside it is in egress.txt."}
    exact = sorted({name for names in told["exact"].values() for name in names or ()})
    if exact:
        yield {"sign": "no", "text": f"Released without noise, outside of this epsilon: {', '.join(exact)}."}


def _by_round(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return epsilon after each quarter of the run."""
    spent = [row for row in rounds if row.get("epsilon") is not None]
    if not spent:
        return ""
    chosen = {max(0, round(share * len(spent)) - 1): None for share in QUARTERS}
    told = [f"{spent[place]['epsilon']:.3g} after round {spent[place]['round'] + 1}" for place in chosen]
    return f"Epsilon was {', '.join(told)}."
