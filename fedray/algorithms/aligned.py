"""What vertical algorithms share: sites that hold other columns of the same records, in one common order.

`fr.data.link` brings rows into that order and says what doing so leaks. One site, the label holder, has a
column `y`; the others have none. Every site holds a part of every record, so each is needed in each round:
`Algorithm(needs_all=True)` lets a round fail as a whole, for everybody, where one does not deliver.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray.algorithms.evaluation import SPLITS, Fixed, as_list
from fedray.errors import DataError
from fedray.learn import losses, metrics
from fedray.learn.batches import Batch, num_rows, shared_batch, training_rows
from fedray.settings import check_whole

UNLINKED = "record"  # the column of hashed identifiers, which linking takes away


@dataclass(frozen=True)
class Records:
    """Take the records of a round out of a site's training rows: the same ones at every site."""

    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_whole("records", or_none=True, batch_size=self.batch_size)

    def __call__(self, data: Any, rng: Any) -> Batch:
        """Return the batch. Raises DataError for rows that were not linked."""
        rows = training_rows(data)
        if UNLINKED in rows:
            raise DataError("the sites' records are not in a common order yet: call fr.data.link(federation)")
        return shared_batch(rows, self.batch_size, rng)


@dataclass(frozen=True)
class Labels:
    """Send the labels of a round's records; zeros of the same size from a site that holds none."""

    records: Records

    def __call__(self, data: Any, rng: Any) -> dict[str, Any]:
        """Return labels in float64, and whether the site holds them."""
        batch = self.records(data, rng)
        if "y" in batch:
            return {"y": batch["y"].double(), "holds": 1}
        return {"y": torch.zeros(num_rows(batch), dtype=torch.float64), "holds": 0}


def labels_of(told: Mapping[str, Mapping[str, Any]]) -> Tensor:
    """Return the labels of the one site that holds them. Raises DataError where none or several do."""
    holders = [site for site in sorted(told) if told[site]["holds"]]
    if len(holders) != 1:
        raise DataError(
            f"{len(holders)} of {len(told)} sites hold labels ({', '.join(holders[:5]) or 'none'}): just one "
            "site has a column y, the others have columns of the same records without it"
        )
    return torch.as_tensor(told[holders[0]]["y"])


@dataclass(frozen=True)
class Given:
    """A model whose outputs are there already, for `metrics`: they come from parts of it at several sites."""

    task: str

    def predict(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the outputs."""
        return params["output"]

    def loss_of(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over rows."""
        return losses.mean_loss(self.task, output, batch["y"])


@dataclass(frozen=True)
class OnLabels:
    """Measure outputs where the labels are; elsewhere no row is measured."""

    fn: Callable[[Any, Any], Any]
    split: str

    def __call__(self, output: Tensor, data: Any) -> Any:
        """Return what `fn` finds on the rows of the split."""
        rows = data.view(self.split)
        if "y" not in rows:
            return self.fn({"output": output[:0]}, {"y": torch.zeros(0, dtype=output.dtype)})
        return self.fn({"output": output}, {"y": rows["y"]})


def of_holder(found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the record of the site that measured rows."""
    return [record for record in as_list(found) if record["n"]]


def evaluating(
    name: str, task: str, outputs: Callable[[Any, Any, str], Any]
) -> Callable[..., fr.Algorithm]:
    """Return what makes an evaluation program of a vertical model: `evaluate(split, per_site, bins)`.

    `outputs(params, site, split)` is the round's part that gives every site the outputs of the split's rows;
    the label holder measures them. What comes back has the form of `fr.algorithms.evaluation`.
    """

    def evaluate(split: str = "valid", per_site: bool = True, bins: int = 1000) -> fr.Algorithm:
        if split not in SPLITS:
            raise ValueError(f"{name}: split={split!r} is none of {', '.join(SPLITS)}")
        model = Given(task)
        measure = OnLabels(metrics.evaluate(model, bins=bins), split)
        record = OnLabels(Fixed(metrics.site_record(model)), split)

        def round(server: Any, site: Any) -> fr.Outputs:
            output = outputs(server, site, split)
            total = fr.sum(fr.map(measure, output, site.data), name="evaluation")
            sites: Any = []
            if per_site:
                sites = fr.apply(of_holder, fr.gather(fr.map(record, output, site.data), name="site_metrics"))
            found = {"pooled": fr.apply(metrics.summarise, total), "sites": sites}
            return fr.Outputs(server=server, metrics=found)

        return fr.Algorithm(
            lambda params: params,
            round,
            lambda params: None,
            name=f"evaluation of {name} on {split}",
            needs_all=True,
            note="to every site: the score of each record that is measured.",
        )

    return evaluate
