"""The regression of `brute.orthogonal_tables` as a federation, through the public API alone."""

import torch

import fedray as fr
from fedray import contribution
from fedray.data.site import SiteData
from tests.unit.contribution import brute

TABLES = brute.orthogonal_tables()
INIT = {"w": torch.zeros(3, dtype=torch.float64)}


def data(sites=TABLES):
    return {site: SiteData({"x": torch.from_numpy(TABLES[site][0]), "y": torch.from_numpy(TABLES[site][1])})
            for site in sites}


def squares(params, batch):
    return (batch["x"] @ params["w"] - batch["y"]).square().mean() / 2


def errors(params, data):
    found = data.train["x"] @ params["w"] - data.train["y"]
    return {"sum": float(found.square().sum()), "n": float(len(found))}


def own_error(params, data):
    found = errors(params, data)
    return {"mse": found["sum"] / found["n"], "n": found["n"]}


def summary(totals):
    return {"mse": totals["sum"] / totals["n"]}


def listed(found):
    return [{"site": site, **found[site]} for site in sorted(found)]


def mean_squared_error(per_site=True):
    """Return an evaluation of one's own: the mean squared error over all rows."""
    def round(server, site):
        params = fr.broadcast(server)
        total = fr.sum(fr.map(errors, params, site.data), name="errors")
        records = fr.gather(fr.map(own_error, params, site.data), name="own") if per_site else None
        rows = fr.apply(listed, records) if per_site else []
        return fr.Outputs(server=server, metrics={"pooled": fr.apply(summary, total), "sites": rows})
    return fr.Algorithm(lambda params: params, round, name="mean squared error")


def local(lr=1.0):
    return fr.learn.sgd(squares, lr=lr, steps=1, batch_size=None)


def game(federation, rounds=1, lr=1.0, **settings):
    given = {"utility": mean_squared_error(), "metric": "mse", **settings}
    algorithm = fr.algorithms.fedavg(local(lr))
    return contribution.game(algorithm, federation, init=INIT, rounds=rounds, **given)
