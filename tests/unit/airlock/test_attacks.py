"""The privacy attacks of experiments/attacks/privacy, small: each succeeds undefended and fails defended."""

import pytest
import torch

from experiments.attacks.privacy import exact, inversion, masked, membership, property, ratio, trap
from experiments.attacks.privacy.seen import DEFENCES

NONE, SUM, LARGE_SUM = (DEFENCES[name] for name in ("none", "secure sum of 5", "secure sum of 50"))
NOISE = DEFENCES["records: clip, noise 0.1"]
MUCH_NOISE = DEFENCES["records: clip, noise 1"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_row_is_recovered_to_1e_5_with_its_label():
    for seed in range(4):
        found = exact.attack(NONE, seed)
        assert found["error"] < 1e-5 and found["label"] == 1


@pytest.mark.parametrize(
    "defence", [SUM, LARGE_SUM, NOISE, DEFENCES["site: clip, noise 0.1"]], ids=lambda d: d.name
)
def test_one_row_is_not_recovered_from_a_sum_or_through_noise(defence):
    assert min(exact.attack(defence, seed)["error"] for seed in range(4)) > 0.5


def test_words_of_one_site_in_a_secure_sum_hold_nothing_of_its_row():
    assert masked.attack(NONE, 0)["row"] > 0.999
    found = masked.attack(SUM, 0)
    assert found["gradient"] < 0.1 and found["row"] < 0.1


def test_ratios_rebuild_all_rows_of_a_batch_of_four_and_none_of_32():
    assert [ratio.share(NONE, 4, seed) for seed in range(3)] == [1.0] * 3
    assert [ratio.share(NONE, 32, seed) for seed in range(3)] == [0.0] * 3
    assert [ratio.share(defence, 4, 0) for defence in (SUM, NOISE)] == [0.0] * 2


def test_rows_of_several_steps_mix_as_those_of_one_batch_do():
    assert ratio.share(NONE, 4, 0, steps=2, batch_size=2, lr=0.1) == 1.0
    assert ratio.share(NONE, 32, 0, steps=16, batch_size=2, lr=0.1) == 0.0


def test_a_trap_rebuilds_most_rows_half_of_them_from_a_small_sum_and_none_through_little_noise():
    rows = {
        each.name: sum(trap.attack(each, seed)["rows"] for seed in range(3)) for each in (NONE, SUM, NOISE)
    }
    assert rows["none"] >= 0.8 * 96
    assert rows["secure sum of 5"] > 0.4 * 96
    assert rows["records: clip, noise 0.1"] == 0
    assert trap.attack(LARGE_SUM, 0)["rows"] <= 2


@pytest.mark.slow
def test_a_search_finds_a_row_and_noise_hides_it():
    assert inversion.share(NONE, 1, 0, steps=300) == 1.0
    assert inversion.share(MUCH_NOISE, 1, 0, steps=100) == 0.0


@pytest.mark.slow
def test_shadow_models_tell_members_that_noise_hides():
    plain = membership.attack(NONE, 0, rows=400, epochs=60)
    noisy = membership.attack(MUCH_NOISE, 0, rows=400, epochs=60)
    assert plain["lira auroc"] > 0.57 and plain["lira auroc"] > plain["loss auroc"]
    assert noisy["lira auroc"] < plain["lira auroc"] - 0.03


@pytest.mark.slow
def test_an_update_tells_what_a_hospital_is_like():
    assert property.attack(NONE, 0, known=60, unknown=30)["auroc"] > 0.9


@pytest.mark.slow
def test_a_sum_of_five_hardly_tells_what_one_of_them_is_like():
    assert property.attack(SUM, 0)["auroc"] < 0.8
