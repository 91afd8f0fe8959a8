"""One-shot ensemble: every site's own model has one vote; evaluated after one exchange, as a program.

Source: Guha, Talwalkar and Smith, One-shot federated learning, 2019, section 2: each site trains to the end
on its own rows (`local_only`), and the ensemble of the models predicts the mean of their probabilities. A
baseline: it shows what one exchange of models gives without any training after it. Deviations: all models
take part, where the paper also picks some by validation, by size or at random; it is not distilled (FedDF
does that). The server must SEE each site's model (a `gather`), and every site then has all of them.
"""

from collections.abc import Mapping
from typing import Any

import fedray as fr
from fedray.algorithms.evaluation import SPLITS, OnSplit
from fedray.learn import metrics, parts
from fedray.learn.distilling import Ensemble
from fedray.learn.models import Model


def side_by_side(found: Mapping[str, Any]) -> Any:
    """Return all models beside each other, in the order of the sites' names, under 0, 1, ..."""
    return parts.join(*(parts.prefixed(found[site], str(n)) for n, site in enumerate(sorted(found))))


def one_shot_ensemble(model: Model, *, split: str = "test", bins: int = 1000) -> fr.Algorithm:
    """Measure the ensemble of the sites' own models on one split of all sites; only sums of metrics leave.

    Run it by `fr.compute` on the federation that `local_only` was fitted on. A site that was never trained
    votes with the parameters given. Raises ValueError on another split, or a model without classes.
    """
    if split not in SPLITS or model.task not in ("binary", "classes"):
        raise ValueError(f"one_shot_ensemble: split={split!r} must be one of {', '.join(SPLITS)}, and the "
                         f"task binary or classes, not {model.task}")  # fmt: skip
    measure = OnSplit(metrics.evaluate(Ensemble(model), bins=bins), split)

    def round(server: Any, site: Any) -> fr.Outputs:
        models = fr.broadcast(fr.apply(side_by_side, fr.gather(site.state, name="model")))
        total = fr.sum(fr.map(measure, models, site.data), name="evaluation")
        return fr.Outputs(server=server, metrics={"pooled": fr.apply(metrics.summarise, total)})

    return fr.Algorithm(lambda params: params, round, lambda params: params, "one_shot_ensemble")
