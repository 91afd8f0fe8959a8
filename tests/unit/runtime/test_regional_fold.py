"""fold="regional": a region sends one rounded row; bits depend on the regions and on nothing else."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.runtime import fold, totals
from fedray.runtime.schedule import LognormalLatency
from tests.unit.runtime.toy import INIT, ToyLocal, sites

NAMES = sorted(sites())
REGIONS = {"a": NAMES[:5], "b": NAMES[5:11], "c": NAMES[11:]}
NESTED = {"a": {"x": NAMES[:2], "y": NAMES[2:5]}, "b": NAMES[5:11], "c": NAMES[11:]}


def fit(how="regional", regions=REGIONS, algorithm=None, schedule=None, **layout):
    algorithm = algorithm or fr.algorithms.fedavg(ToyLocal())
    with fr.simulate(sites(), regions=regions, **layout) as federation:
        return fr.fit(algorithm, federation, init=INIT, rounds=5, fold=how,
                      schedule=schedule or fr.synchronous(cohort=0.75))  # fmt: skip


@pytest.mark.parametrize("layout", [{"packs": 2}, {"sites_per_actor": 1}, {"packs": 3, "group_size": 2}])
@pytest.mark.parametrize("regions", [REGIONS, NESTED])
def test_equal_regions_give_equal_bits_whatever_is_inside(layout, regions):
    one, other = fit(regions=regions), fit(regions=regions, **layout)
    assert [record.hashes for record in one.metrics] == [record.hashes for record in other.metrics]


def test_it_differs_from_the_exact_sum_by_one_rounding_and_without_regions_not_at_all():
    exact, rounded = fit("exact"), fit()
    assert exact.params_sha256 != rounded.params_sha256
    for name in INIT:
        assert torch.allclose(exact.params[name], rounded.params[name], rtol=0, atol=1e-6)
    assert fit("exact", None).params_sha256 == fit("regional", None).params_sha256


def test_a_region_sends_one_model_where_an_exact_sum_is_four():
    def bytes_up(how):
        return fit(how, schedule=fr.synchronous(), packs=2).metrics[-1].bytes_up

    model = sum(leaf.numel() for leaf in INIT.values()) * 4
    assert bytes_up("regional") < 0.6 * bytes_up("exact")
    assert bytes_up("regional") >= 3 * model


def test_a_region_that_loses_a_site_has_the_bits_of_one_that_never_asked_it():
    slow = LognormalLatency(site_sigma=1.0, seed=1)
    late = [site for site in NAMES if slow(site, 0) > 1.5]
    assert late

    def run(latency, deadline_s):
        schedule = fr.synchronous(deadline_s=deadline_s, quorum=0.1)
        with fr.simulate(sites(), regions=REGIONS, latency=latency) as federation:
            return fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=1, fold="regional",
                          schedule=schedule)  # fmt: skip

    left = {region: [site for site in names if site not in late] for region, names in REGIONS.items()}
    left = {region: names for region, names in left.items() if names}
    here = {site: opener for site, opener in sites().items() if site not in late}
    with fr.simulate(here, regions=left) as federation:
        wanted = fr.fit(fr.algorithms.fedavg(ToyLocal()), federation, init=INIT, rounds=1, fold="regional")
    assert run(slow, 1.5).params_sha256 == wanted.params_sha256


def test_a_row_is_the_exact_mean_rounded_once():
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(7, 40, generator=generator)
    weights = torch.arange(1, 8, dtype=torch.float64)
    operand = fold.operand(values, weights)
    row = totals.rounded(fold.fold(operand, operand.needs))
    mean = (values.double() * weights[:, None]).sum(0) / 28
    assert row.is_row and row.weight == 28
    np.testing.assert_array_equal(row.arrays[0], mean.float().numpy())
    assert totals.rounded(row) is row
