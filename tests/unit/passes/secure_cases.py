"""A round of plain numbers under a secure sum, and a federation that loses given sites at given stages."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

import fedray as fr
from fedray.errors import SiteError
from fedray.runtime.host import Contribution
from fedray.secrecy.encoding import Encoding, decode, encode
from tests.unit.runtime.toy import sites

SIZE = 7
ANY = {"quorum": 0.01, "on_failure": "raise"}


def vector(site: str) -> torch.Tensor:
    """Return the numbers of a site: some of them large, one zero, one below a step."""
    number = int(site[1:])
    generator = torch.Generator().manual_seed(number)
    found = torch.randn(SIZE, generator=generator)
    found[0], found[1] = 0.0, 1e-9
    return found


@dataclass(frozen=True)
class Given:
    """What a site gives: a vector, a weight, whole numbers, and a wide number."""

    scale: float = 1.0

    def __call__(self, params, site):
        number = int(site[1:])
        return {"x": vector(site) * self.scale, "rows": 3 + number, "total": 1e9 * number + 0.125, "one": 1}


def numbers(scale=1.0):
    def round(server, site):
        given = fr.map(Given(scale), fr.broadcast(server["params"], name="params"), site.id)
        mean = fr.mean(given["x"], name="x")
        return fr.Outputs(
            server={"params": server["params"] + mean, "mean": mean},
            metrics={
                "weighted": fr.mean(given["x"], weight=given["rows"], name="weighted"),
                "sum": fr.sum(given["total"], name="total"),
                "count": fr.count(site),
                "ones": fr.sum(given["one"], name="ones"),
            },
        )

    start = torch.zeros(SIZE)
    return fr.Algorithm(lambda _: {"params": start, "mean": start}, round, name="numbers")


def answer_without(answer: Contribution, call, gone) -> Contribution:
    failures = tuple(SiteError(site, call.round, call.stage, "lost") for site in gone)
    return replace(answer, failures=answer.failures + failures)


@contextmanager
def losing(federation, lost, in_round=0, attempt=None):
    """Let sites be lost: `lost` maps a stage to the sites that do not deliver it."""
    for pack in federation.aggregator.root.transport.hosts.values():
        pack.run = _without(pack.run, lost, in_round, attempt)
    yield federation


def _without(run, lost, in_round, attempt):
    def asked(call, downlink):
        is_hit = call.round == in_round and attempt in (None, call.attempt)
        gone = [site for site in call.cohort if is_hit and site in lost.get(call.stage, ())]
        left = [site for site in call.cohort if site not in gone]
        if not left:
            return answer_without(Contribution(delivered=(), failures=()), call, gone)
        return answer_without(run(call.of(left, call.commits), downlink), call, gone)

    return asked


def fitted(passes, count=5, lost=None, rounds=1, algorithm=None, data=None, **options):
    """Train, losing sites; return the result."""
    schedule = fr.synchronous(**{**ANY, **options})
    with fr.simulate(data or sites(count)) as federation, losing(federation, lost or {}):
        return fr.fit(
            algorithm or numbers(), federation, init={}, rounds=rounds, passes=passes, schedule=schedule
        )


def oracle(counted, num_asked, bound, weights=None, cap=1.0):
    """Return the mean of the integers that the sites' vectors are encoded to, decoded."""
    encoding = Encoding(num_sites=num_asked, bound=bound, max_weight=cap)
    given = weights or dict.fromkeys(counted, 1.0)
    total = np.zeros(SIZE + 3, np.uint32)
    for site in counted:
        total += encode(vector(site).numpy()[None], np.array([given[site]]), encoding)[0]
    found = decode(total, encoding, len(counted), warns=False)
    return torch.from_numpy(found.values * cap / sum(given[site] for site in counted)).float()
