"""The group `privacy`: options take what the run knows; what cannot be protected is said before it starts."""

import math

import pytest

from fedray import experiment
from fedray.config import build, check, compose, compose_run
from fedray.config_schema import SCHEMAS
from fedray.errors import ConfigError, PassError

TOY = ("experiment=debug", "report=none", "rounds=2", "model=mlp", "data.scale=0.02", "data.num_sites=8",
       "evaluate.bins=50", "algorithm.weighted=false")  # fmt: skip
MASKED = ("secure=secure_sum", "evaluate.per_site=false")
MORE = {
    "none": (),
    "site_dp_adaptive": ("privacy.noise_multiplier=0.5",),  # 8 sites carry less than 2 x 8 / 20
    "site_dp_distributed": ("privacy.epsilon=20", "privacy.max_noise=1000", *MASKED),
    "distributed_record": ("privacy.noise_multiplier=1.0", "privacy.num_patients=60", "privacy.unit=null",
                           "privacy.max_noise=1000", "local.steps=1", *MASKED),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def noise_of(*words):
    import fedray as fr

    made = build(compose(*TOY, *words))
    plan = fr.compile(made.training.algorithm, made.passes, made.schedule)
    return next(node.fn for node in plan.nodes if hasattr(node.fn, "mechanism")), made


@pytest.mark.parametrize("option", sorted(SCHEMAS["privacy"]))
def test_every_option_trains(option):
    words = MORE.get(option, ("privacy.epsilon=20", "privacy.max_noise=1000"))
    done = experiment.start(compose_run([*TOY, f"privacy={option}", *words]), live=False)
    assert done.run.status == ("done", "") and not done.result.failures
    assert option == "none" or f"+ {option}(" in done.result.plan.name


def test_cohort_population_and_rounds_are_those_of_the_run():
    fn, made = noise_of(
        "privacy=site_dp", "privacy.epsilon=8", "schedule.cohort=0.5", "schedule.sampling=poisson"
    )
    assert (fn.cohort.size, fn.cohort.rate) == (4, 0.5) and fn.mechanism.kind == "sampled_gaussian"
    whole, _ = noise_of("privacy=site_dp", "privacy.epsilon=8")
    once, _ = noise_of("privacy=site_dp", "privacy.epsilon=8", "rounds=1")
    assert whole.std / once.std == pytest.approx(math.sqrt(2)) and whole.cohort.rate == 1.0
    assert made.rounds == 2


def test_turns_are_those_of_the_schedule():
    fn, _ = noise_of(
        "privacy=site_dp_matrix", "privacy.epsilon=8", "schedule.sampling=cyclic", "schedule.cohort=2"
    )
    assert (fn.bands, fn.mechanism.rounds, fn.population) == (4, 2, 8)


@pytest.mark.parametrize(("words", "fix"), [
    (("privacy=site_dp",), "Fix: privacy.epsilon=8"),
    (("privacy=site_dp", "privacy.epsilon=8", "privacy.noise_multiplier=1"), "Fix: privacy.epsilon=8"),
    (("privacy=site_dp", "privacy.epsilon=8", "algorithm.weighted=true"),
     "Fix: algorithm.weighted=false, or privacy.weights=uniform"),
    (("privacy=site_dp", "privacy.epsilon=8", "model.norm=batch"), "Fix: model.norm=layer, or"),
    (("privacy=site_dp", "privacy.epsilon=-1"), "Fix: privacy.epsilon=8"),
    (("privacy=site_dp_distributed", "privacy.epsilon=8", "privacy.honest=0"), "Fix: privacy.honest=0.66"),
])  # fmt: skip
def test_what_cannot_run_is_named_with_its_fix(words, fix):
    with pytest.raises(ConfigError, match=fix):
        check(compose(*TOY, *words))


def test_scaffold_is_refused_until_its_second_sum_is_named():
    words = (
        *TOY[:-1],
        "algorithm=scaffold",
        "privacy=site_dp",
        "privacy.epsilon=8",
        "privacy.max_noise=1000",
    )
    with pytest.raises(PassError, match="drift .*name it in `only`"):
        experiment.start(compose_run([*words]), live=False)
    both = ("privacy.only=[delta,drift]", "privacy.clip={delta: 1.0, drift: 0.1}")
    assert experiment.start(compose_run([*words, *both]), live=False).run.status == ("done", "")


def test_noise_that_drowns_the_signal_is_refused_unless_it_is_asked_for():
    words = [*TOY, "privacy=site_dp", "privacy.epsilon=1"]
    with pytest.raises(ConfigError, match="clip bounds long .*max_noise="):
        experiment.start(compose_run(words), live=False)
    allowed = compose_run([*words, "privacy.max_noise=1000"])
    assert experiment.start(allowed, live=False).run.status == ("done", "")


def test_shares_need_a_secure_sum():
    with pytest.raises(PassError, match="secure=secure_sum"):
        experiment.start(compose_run([*TOY, "privacy=site_dp_distributed", "privacy.epsilon=8"]), live=False)


def test_patients_without_a_column_are_refused_before_a_round_with_the_column_and_the_fix():
    rate = ("local.batch_size=null", "local.sampling_rate=0.5")
    words = (*TOY, "local=private_sgd", "local.epsilon=20", *rate)
    with pytest.raises(ConfigError, match="column 'patient', and .* has none. Fix: local.unit=null"):
        experiment.start(compose_run(words), live=False)
