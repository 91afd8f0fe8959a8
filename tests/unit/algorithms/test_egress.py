"""What `egress` names is what leaves, to the byte, for every shipped algorithm; its text is a golden file.

FEDRAY_UPDATE_GOLDEN=1 writes the golden files again: review the difference like code.
"""

import os
from pathlib import Path

import pytest
import torch

import fedray as fr
from fedray.algorithms.vertical_options import of_widths
from fedray.core.explain import egress_rows
from fedray.data.linkage import LinkedData
from fedray.data.site import SiteData
from fedray.learn import optimizer
from tests.unit.runtime.toy import NUM_FEATURES, sites

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "egress"
NUM_SITES = 6
MODEL = fr.learn.logistic(NUM_FEATURES)
LOCAL = fr.learn.sgd(MODEL, lr=0.1, epochs=1, batch_size=4)
NETWORK = fr.learn.mlp(NUM_FEATURES, [4])


def column_sums(data):
    return {"n": torch.tensor(float(data.train.num_rows)).double(), "sum": data.train["x"].double().sum(0)}


def column_means(total):
    return total["sum"] / total["n"]


def column_squares(data, means):
    return {"squares": (data.train["x"].double() - means).square().sum(0)}


def both(total, squares):
    return {"rows": total["n"]}


def hidden(params, batch):
    return batch["x"] * params["weight"]


def headed(params, batch):
    return (hidden(params, batch) @ params["head.v"]).square().mean() + params["bias"].square().sum()


def aligned(count):
    """Return sites that hold columns of the same ten records, the first the labels too."""
    draws = torch.Generator().manual_seed(3)
    made = {}
    for number in range(count):
        columns = {"x": torch.randn(10, NUM_FEATURES, generator=draws)}
        if not number:
            columns["y"] = (columns["x"][:, 0] > 0).float()
        made[f"h{number:02d}"] = LinkedData(columns)
    return made


def own_head(data, rng):
    return {"v": torch.ones(data.train["x"].shape[1])}


A = fr.algorithms
PUBLIC = {"x": torch.ones(7, NUM_FEATURES)}
SMALL = {"features": hidden, "first_estimators": {
    "mask.weight": torch.ones(NUM_FEATURES, NUM_FEATURES), "mask.bias": torch.ones(NUM_FEATURES),
    "feature.weight": torch.ones(NUM_FEATURES, NUM_FEATURES), "feature.bias": torch.ones(NUM_FEATURES),
}}  # fmt: skip
SHIPPED = {
    "fedsgd": lambda: A.fedsgd(MODEL, lr=0.1),
    "fedasync": lambda: A.fedasync(LOCAL),
    "fedavg": lambda: A.fedavg(LOCAL),
    "fedavg_uniform": lambda: A.fedavg(LOCAL, weighted=False),
    "fedavgm": lambda: A.fedavg(LOCAL, optimizer.momentum()),
    "fedadagrad": lambda: A.fedavg(LOCAL, optimizer.adagrad()),
    "fedadam": lambda: A.fedavg(LOCAL, optimizer.adam()),
    "fedyogi": lambda: A.fedavg(LOCAL, optimizer.yogi()),
    "fedprox": lambda: A.fedprox(LOCAL, mu=0.1),
    "scaffold_i": lambda: A.scaffold(LOCAL, NUM_SITES, option="I"),
    "scaffold_ii": lambda: A.scaffold(LOCAL, NUM_SITES),
    "cyclic": lambda: A.cyclic(LOCAL),
    "feddyn": lambda: A.feddyn(LOCAL, NUM_SITES),
    "fedexp": lambda: A.fedexp(LOCAL),
    "fedlin": lambda: A.fedlin(LOCAL),
    "fedlora": lambda: A.fedlora(LOCAL, rank=2),
    "fedlora_ffa": lambda: A.fedlora(LOCAL, rank=2, variant="ffa"),
    "fedlora_naive": lambda: A.fedlora(LOCAL, rank=2, variant="naive"),
    "fednova": lambda: A.fednova(LOCAL),
    "mime": lambda: A.mime(LOCAL),
    "mimelite": lambda: A.mimelite(LOCAL),
    "afl": lambda: A.afl(LOCAL, tuple(sites(NUM_SITES))),
    "cfl": lambda: A.cfl(LOCAL),
    "dpsgd": lambda: A.dpsgd(LOCAL, tuple(sites(NUM_SITES))),
    "drfa": lambda: A.drfa(LOCAL, tuple(sites(NUM_SITES)), steps=2, size=NUM_SITES),
    "hierfavg": lambda: A.hierfavg(LOCAL, period=2),
    "ifca": lambda: A.ifca(LOCAL, 2),
    "push_sum": lambda: A.push_sum(LOCAL, tuple(sites(NUM_SITES))),
    "qfedavg": lambda: A.qfedavg(LOCAL),
    "swarm": lambda: A.swarm(LOCAL, tuple(sites(NUM_SITES))),
    "term": lambda: A.term(LOCAL),
    "split": lambda: A.split(NETWORK, batch_size=4),  # made-up sites have four rows
    "splitfed": lambda: A.splitfed(NETWORK, batch_size=4),
    "splitfed_v2": lambda: A.splitfed(NETWORK, batch_size=4, variant="V2", steps=2),
    "vertical_logistic": A.vertical_logistic,
    "vertical_towers": lambda: of_widths(NUM_SITES),
    "vertical_towers_sum": lambda: of_widths(NUM_SITES, merge="sum", batch_size=4),
    "ditto": lambda: A.ditto(LOCAL, prox=0.1),
    "apfl": lambda: A.apfl(LOCAL),
    "fedamp": lambda: A.fedamp(LOCAL, alpha=0.1, sigma=1.0, prox=0.1),
    "fedbabu": lambda: A.fedbabu(LOCAL, ["bias"]),
    "fedbuff": lambda: A.fedbuff(LOCAL),
    "fedbn": lambda: A.fedbn(fr.learn.sgd(MODEL, lr=0.1), ["bias"]),
    "fedper": lambda: A.fedper(LOCAL, ["bias"]),
    "fedrep": lambda: A.fedrep(LOCAL, ["bias"]),
    "fine_tuning": lambda: A.fine_tuning(LOCAL),
    "lg_fedavg": lambda: A.lg_fedavg(LOCAL, ["weight"]),
    "moon": lambda: A.moon(LOCAL, features=hidden),
    "per_fedavg": lambda: A.per_fedavg(LOCAL, inner_lr=0.01),
    "pfedme": lambda: A.pfedme(LOCAL, prox=1.0, lr=0.5, local_rounds=2),
    "private_heads": lambda: A.private_heads(fr.learn.sgd(headed, lr=0.01), own_head),
    "feddf_server": lambda: A.feddf(LOCAL, PUBLIC, steps=2),
    "feddf_sites": lambda: A.feddf(LOCAL, PUBLIC, "sites", steps=2),
    "fedgkt": lambda: A.fedgkt(LOCAL, LOCAL, features=hidden),
    "fedmatch": lambda: A.fedmatch(fr.learn.sgd(MODEL, lr=0.01)),
    "pretrain": lambda: A.pretrain(LOCAL, 1, **SMALL),
    "pseudo_label": lambda: A.pseudo_label(LOCAL, ramp=(0, 0)),
    "pseudo_label_once": lambda: A.pseudo_label(LOCAL, ramp=(0, 0), labels="round"),
    "local_only": lambda: A.local_only(LOCAL),
    "one_shot": lambda: A.one_shot(LOCAL),
    "one_shot_ensemble": lambda: A.one_shot_ensemble(MODEL, split="train", bins=20),
    "evaluation": lambda: A.evaluation(MODEL, split="train", bins=20),
    "evaluation_pooled": lambda: A.evaluation(MODEL, split="train", bins=20, per_site=False),
    "moments": lambda: A.moments(column_sums, column_means, column_squares, both),
}

ALL, ONE_BY_ONE = fr.synchronous(), fr.synchronous(cohort=1, sampling="cyclic")
SCHEDULES = {"cyclic": ONE_BY_ONE, "split": ONE_BY_ONE}  # the others ask all sites


def init_of(name):
    return (NETWORK if name.startswith("split") else MODEL).init(0)


def data_of(name):
    """Return the sites; what leaves under FedGKT has a row a patient, and made-up sites have four rows."""
    if name.startswith("vertical"):
        return aligned(NUM_SITES)
    if name != "fedgkt":
        return sites(NUM_SITES)
    opened = {site: opener() for site, opener in sites(NUM_SITES).items()}
    return {site: SiteData({n: c[:4] for n, c in data.columns.items()}) for site, data in opened.items()}


def promised(rows, sites_of_packs):
    """Return the bytes per name for packs that deliver this many sites, from the table that people sign."""
    found = dict.fromkeys((row["name"] for row in rows), 0)
    for row in rows:
        for count in sites_of_packs:
            if row["kind"] in ("gather", "mix"):
                found[row["name"]] += count * row["site_bytes"]
            else:
                found[row["name"]] += row["site_bytes"] if count == 1 else row["sum_bytes"]
    return found


class Declared(dict):
    """Sites with a region that the data declare: hosts are as they are without."""

    regions = dict.fromkeys(sites(NUM_SITES), "north")


def federated(data, packs):
    return fr.simulate(Declared(data), packs=packs)


@pytest.mark.parametrize("packs", [1, 3, NUM_SITES])
@pytest.mark.parametrize("name", SHIPPED)
def test_names_and_bytes_that_left_are_those_of_egress(name, packs):
    with federated(data_of(name), packs) as federation:
        schedule = SCHEDULES.get(name, ALL)
        result = fr.fit(SHIPPED[name](), federation, init=init_of(name), rounds=2, schedule=schedule)
        counted = dict(federation.aggregator.root.bytes_up)
    delivered = [1] if schedule is ONE_BY_ONE else [NUM_SITES // packs] * packs
    expected = promised(egress_rows(result.plan), delivered)
    times = 1 if result.plan.every else 2  # two rounds: one of each kind, where there are two
    assert counted == {row: times * size for row, size in expected.items()}
    assert result.bytes_up == sum(counted.values()) and counted


@pytest.mark.parametrize("name", SHIPPED)
def test_the_list_of_what_leaves_is_the_golden_one(name):
    with federated(data_of(name), packs=1) as federation:
        schedule = SCHEDULES.get(name, ALL)
        plan = fr.fit(SHIPPED[name](), federation, init=init_of(name), rounds=1, schedule=schedule).plan
    text = fr.egress(plan).replace(plan.digest[:8], "········") + "\n"  # the digest covers code: it changes
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("FEDRAY_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text


def test_every_shipped_algorithm_has_a_row_here():
    made = {plan.split()[0] for plan in (fr.compile(make()).name for make in SHIPPED.values())}
    assert made == set(A.__all__)
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(SHIPPED)
