"""Distributed DP-SGD: what sites send adds up to the pooled step with the noise that is claimed."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import fedray as fr
from fedray import learn, noise, tree
from fedray.data.site import Dataset, SiteData
from fedray.errors import PassError, SecurityConflict
from fedray.learn import patients
from fedray.passes import distributed_record, secure_sum
from fedray.passes.distributed import FromRing, Share
from fedray.passes.distributed_record import RecordRing
from fedray.passes.site_level import Cohort
from fedray.rng import Key
from fedray.testing import check_rows

FEATURES, SITES, PATIENTS, KEY = 6, 5, 30, bytes(range(32))
SIZE = FEATURES + 1
HALF_RING = 2**31 - 1


def data_of(seed, rows=2 * PATIENTS):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=generator)
    y = (torch.rand(rows, generator=generator) < torch.sigmoid(x.sum(1))).float()
    return SiteData({"x": x, "y": y, "patient": 1000 * seed + torch.arange(rows) // 2})


def opened():
    return Dataset(sites={f"h{i}": (lambda i=i: data_of(i)) for i in range(SITES)})


def made(**changed):
    given = {"clip": 0.5, "sampling_rate": 1.0, "num_patients": SITES * PATIENTS, "num_params": SIZE,
             "cohort": SITES, "noise_multiplier": 1e-3, "unit": "patient"}  # fmt: skip
    return distributed_record(**(given | changed))


def run(algorithm, step, rounds=1, mode="ideal", start=None):
    model = learn.logistic(FEATURES)
    with fr.simulate(opened()) as federation:
        return fr.fit(algorithm, federation, rounds=rounds, init=start or model.init(0), seed=1,
                      passes=[step, secure_sum(mode=mode)])  # fmt: skip


def local_of(**changed):
    return learn.sgd(learn.logistic(FEATURES), **({"lr": 0.7, "steps": 1} | changed))


@pytest.mark.parametrize("mode", ["ideal", "real"])
def test_a_round_is_the_private_step_on_all_patients_together(mode):
    model = learn.logistic(FEATURES)
    pooled = {name: torch.cat([data_of(i)[name] for i in range(SITES)]) for name in ("x", "y", "patient")}
    central = learn.private_sgd(model, 0.7, 0.5, sampling_rate=1.0, noise_multiplier=1.0, steps=1,
                                unit="patient")  # fmt: skip
    central = replace(central, privacy=replace(central.privacy, adds_noise=False))
    expected = central(model.init(0), SiteData(pooled), Key(1, 0, "all")).delta
    found = run(fr.algorithms.fedavg(local_of()), made(), mode=mode).state.params
    apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert apart < 6 * 0.7 * 1e-3 * 0.5 / math.sqrt(2 / 3) / (SITES * PATIENTS)  # the noise alone


def test_the_divisor_is_the_expected_number_of_patients_whoever_was_drawn():
    step = made(sampling_rate=0.3)
    found = run(fr.algorithms.fedavg(local_of()), step).state.params["weight"]
    total = torch.zeros(FEATURES)
    for i in range(SITES):
        local = local_of().lock_step(mechanism=_mechanism(0.3), clip=0.5, unit="patient", max_records=None,
                                     is_secret=False)  # fmt: skip
        total += local(learn.logistic(FEATURES).init(0), data_of(i), Key(1, 0, f"h{i}")).delta["weight"][0]
    assert torch.allclose(found[0], 0.7 * total / (0.3 * SITES * PATIENTS), atol=1e-4)


def _mechanism(rate):
    return fr.learn.private_sgd(
        learn.logistic(FEATURES), 0.1, sampling_rate=rate, noise_multiplier=1.0, steps=1
    ).mechanism


def ring_of(**changed):
    given = {
        "bound": 20.0,
        "size": 400,
        "num_sites": 3,
        "noise_multiplier": 1.0,
        "honest": 2 / 3,
        "clip": 0.5,
    }
    return RecordRing(**(given | changed))


def shares(ring, rows, source=None):
    share = Share(ring=ring, mechanism=None, cohort=Cohort(title="t", size=ring.num_sites), source=source)
    return [share(tree.flatten({"w": row})) for row in rows]


def integers(words):
    steps = words.buffer.to(torch.int64)
    return torch.where(steps > HALF_RING, steps - 2**32, steps)


def test_shares_add_up_to_the_integer_oracle_bit_for_bit():
    ring = ring_of()
    rows = torch.randn(3, ring.size, generator=torch.Generator().manual_seed(1)) * 0.3
    sent = shares(ring, rows, noise.keystream(KEY))
    source = noise.keystream(KEY)
    oracle = torch.zeros(ring.size, dtype=torch.int64)
    for row in rows:
        oracle += (row.double() * ring.scale).round().to(torch.int64)
        oracle += noise.skellam(ring.size, ring.share_variance, source)
    words = torch.stack([one.buffer[0].to(torch.int64) for one in sent]).sum(0) % 2**32
    total = FromRing(ring)(tree.Flat(words.to(torch.uint32)[None], sent[0].schema))
    assert torch.equal(total["w"], (oracle.double() / ring.scale).float())


def test_shares_of_all_sites_have_the_deviation_that_is_claimed_and_of_the_honest_ones_no_less():
    ring = ring_of(size=20_000)
    zeros = torch.zeros(3, ring.size)
    noises = torch.stack([integers(one)[0] for one in shares(ring, zeros)]).double()
    claimed = ring.noise_multiplier * ring.l2
    assert float(noises[:2].sum(0).std()) / claimed == pytest.approx(1.0, rel=0.03)  # two of three
    assert float(noises.sum(0).std()) / claimed == pytest.approx(math.sqrt(1.5), rel=0.03)


def test_one_patient_moves_a_sum_by_no_more_than_the_sensitivity_however_it_is_rounded():
    ring = ring_of(noise_multiplier=1.0)
    before = (torch.arange(ring.size) % 7 + 0.5 - 1e-3) / ring.scale  # just under halves of steps
    patient = torch.full((ring.size,), 0.002 / ring.scale)
    rounded = [(row.double() * ring.scale).round() for row in (before, before + patient)]
    moved = float((rounded[1] - rounded[0]).norm())
    assert moved > math.sqrt(ring.size) / 2  # both sums are rounded: half a step is not enough
    assert moved <= ring.l2


def test_the_sum_never_wraps_where_all_sites_are_at_the_bound():
    ring = ring_of(num_sites=185, noise_multiplier=3.0, size=212)
    most = ring.num_sites * ring.largest
    assert most + 8 * math.sqrt(ring.share_variance * ring.num_sites) <= HALF_RING
    assert most > 0.9 * HALF_RING


def test_an_epsilon_is_met_by_its_own_accounting():
    pytest.importorskip("dp_accounting")
    from fedray.accounting import accountant, calibrate

    step = made(noise_multiplier=None, epsilon=3.0, rounds=40, sampling_rate=0.1)
    plan = compiled(fr.algorithms.fedavg(local_of()), step, secure_sum())
    (mechanism,) = {node.fn.mechanism for node in plan.nodes if getattr(node.fn, "mechanism", None)}
    assert (mechanism.unit, mechanism.noise_by, mechanism.trusted) == ("patient", "sites", "nobody")
    assert 2.9 < accountant.epsilon({mechanism: 40}, 1e-5) <= 3.0
    gaussian = calibrate.noise_multiplier(3.0, 1e-5, 40, sampling_rate=0.1)
    assert gaussian <= mechanism.noise_multiplier < 1.3 * gaussian


def test_a_step_in_rows_is_invariant_and_equals_the_plain_form():
    step = local_of().lock_step(mechanism=_mechanism(0.4), clip=0.5, unit="patient", max_records=None,
                                is_secret=False)  # fmt: skip
    given = [[data_of(i, rows), Key(1, 2, f"h{i}")] for i, rows in enumerate((5, 40, 90, 61))]
    check_rows(step, given, shared=[learn.logistic(FEATURES).init(0)], tolerance=1e-5)


def test_no_metric_and_no_noise_of_its_own_leave_a_step():
    step = local_of().lock_step(mechanism=_mechanism(0.4), clip=0.5, unit="patient", max_records=None,
                                is_secret=False)  # fmt: skip
    update = step(learn.logistic(FEATURES).init(0), data_of(1), Key(0, 0, "h"))
    assert update.metrics == {}
    assert not hasattr(step, "mechanism")  # the share charges, once
    assert patients.sample(data_of(1), step.training.privacy, Key(0, 0, "h")).noise == 0.0


# --- refusals ----------------------------------------------------------------------------------------
def compiled(algorithm, *passes):
    return fr.compile(algorithm, passes)


def test_without_a_secure_sum_it_is_refused():
    with pytest.raises(SecurityConflict, match="secure=secure_sum"):
        compiled(fr.algorithms.fedavg(local_of()), made())


def test_an_algorithm_that_sends_more_than_updates_is_refused_by_name():
    with pytest.raises(PassError, match="also sends"):
        compiled(fr.algorithms.scaffold(local_of(), num_sites=SITES), made(), secure_sum())


def test_a_local_training_that_adds_its_own_noise_is_refused():
    private = learn.private_sgd(learn.logistic(FEATURES), 0.1, sampling_rate=0.1, noise_multiplier=1.0)
    with pytest.raises(PassError, match="0 local trainings"):
        compiled(fr.algorithms.fedavg(private), made(), secure_sum())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 2}, "steps=1"),
        ({"momentum": 0.9}, "no momentum"),
        ({"l2": 0.1}, "no l2"),
        ({"lr": learn.constant(0.1)}, "a constant lr"),
    ],
)
def test_a_local_training_of_more_than_one_plain_step_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        compiled(fr.algorithms.fedavg(local_of(**changed)), made(), secure_sum())


def test_batch_statistics_are_refused():
    model = learn.from_module(nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="LayerNorm or GroupNorm"):
        compiled(fr.algorithms.fedavg(learn.sgd(model, lr=0.1, steps=1)), made(), secure_sum())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"noise_multiplier": None}, "noise_multiplier or epsilon"),
        ({"noise_multiplier": None, "epsilon": 1.0}, "rounds"),
        ({"honest": 0.0}, "honest"),
        ({"max_site_norm": 1e9}, "a smaller max_site_norm"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        made(**changed)
