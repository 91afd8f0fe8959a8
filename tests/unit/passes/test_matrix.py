"""The matrix mechanism: noise of the explicit inverse, the numbers of security.md 8.2, whom it may ask."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import noise, tree
from fedray.errors import PassError, ScheduleError
from fedray.passes.matrix import MatrixNoise
from tests.unit.passes.site_level import Silent, echo, released
from tests.unit.passes.stacks import LOCAL, P


def noise_of(step):
    return next(node.fn for node in fr.compile(echo(), [step]).nodes if isinstance(node.fn, MatrixNoise))


def in_turn(sites, cohort, rounds, **more):
    return P.site_dp_matrix(1.0, 1.0, rounds=rounds, cohort=cohort, population=sites, **more)


@pytest.mark.parametrize(("sites", "cohort", "rounds", "bands", "expected"), [
    (100, 1, 100, 100, 1.591022), (20, 1, 100, 20, 3.174815), (5, 1, 50, 5, 3.953542),
    (50, 50, 50, 1, 50**0.5),
    (41, 2, 100, 20, 3.174815), (3, 1, 30, 1, 10**0.5),
])  # fmt: skip
def test_bands_participations_and_sensitivity_follow_from_the_turns(sites, cohort, rounds, bands, expected):
    fn = noise_of(in_turn(sites, cohort, rounds))
    assert fn.bands == bands and fn.std == pytest.approx(expected, abs=1e-6)
    assert (fn.mechanism.kind, fn.mechanism.rounds, fn.mechanism.noise_multiplier) == ("matrix", rounds, 1.0)


class Counted:
    """A source that goes on: the draws of all rounds, one after the other."""

    def __init__(self):
        self.stream = noise.keystream(bytes(32))

    def __call__(self, num_bytes):
        return self.stream(num_bytes)


def test_the_recursion_gives_the_rows_of_the_inverse_times_z():
    bands, rounds, size = 4, 11, 6
    fn = noise_of(in_turn(bands, 1, rounds, source=Counted()))
    memory, rows = None, []
    blank = tree.flatten({"v": torch.zeros(size, dtype=torch.float64)})
    for _ in range(rounds):
        found = fn(blank, memory)
        memory = found["memory"]
        rows.append(found["sum"]["v"].numpy().copy())
    source = Counted()
    z = np.stack([noise.gaussian((1, size), fn.std, source, torch.float64).numpy()[0] for _ in range(rounds)])
    c = np.array([1.0, 0.5, 0.375, 0.3125])
    matrix = sum(c[back] * np.eye(rounds, k=-back) for back in range(bands))
    assert np.abs(np.stack(rows) - np.linalg.solve(matrix, z)).max() < 1e-12
    assert sorted(memory["last"]) == ["1", "2", "3"] and memory["rounds"] == rounds


def test_one_round_more_than_was_paid_for_is_refused():
    rows = torch.eye(4, dtype=torch.float64)
    schedule = fr.synchronous(cohort=1, sampling="cyclic")
    found, _ = released(rows, [in_turn(4, 1, 4, source=Silent())], rounds=4, schedule=schedule)
    assert found.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    with pytest.raises(PassError, match="made for 4 rounds"):
        released(rows, [in_turn(4, 1, 4)], rounds=5, schedule=schedule)


def test_the_noise_of_a_running_sum_is_less_than_that_of_independent_noise():
    rounds, size = 40, 400
    sums = {}
    for bands in (1, 10):
        fn = noise_of(in_turn(10, 1, rounds, bands=bands))
        memory, total = None, torch.zeros(size, dtype=torch.float64)
        blank, squares = tree.flatten({"v": total}), []
        for _ in range(rounds):
            found = fn(blank, memory)
            memory, total = found["memory"], total + found["sum"]["v"]
            squares.append(float(total.square().mean()))
        sums[bands] = np.sqrt(np.mean(squares))
    assert sums[10] < 0.75 * sums[1]


@pytest.mark.parametrize(("schedule", "why"), [
    (fr.synchronous(cohort=1), "use schedule.sampling=cyclic"),
    (fr.synchronous(cohort=1, sampling="shuffled"), "use schedule.sampling=cyclic"),
    (fr.synchronous(cohort=1, sampling="cyclic", on_failure="skip"), "closer together"),
    (fr.synchronous(cohort=2, sampling="cyclic"), "divides by a cohort of 1"),
    (fr.buffered(size=1), "use schedule.sampling=cyclic|more than once"),
])  # fmt: skip
def test_a_schedule_that_does_not_keep_the_distance_is_refused(schedule, why):
    with pytest.raises(ScheduleError, match=why):
        released(torch.eye(4), [in_turn(4, 1, 4)], schedule=schedule)


def test_other_sites_than_take_turns_are_refused():
    with pytest.raises(ScheduleError, match="give the pass population=3"):
        released(torch.eye(3), [in_turn(4, 1, 4)], schedule=fr.synchronous(cohort=1, sampling="cyclic"))


@pytest.mark.parametrize(("more", "why"), [
    ({"rounds": None}, "give both"), ({"population": None}, "give both"), ({"bands": 5}, "choose 1 to 4"),
    ({"bands": 0}, "choose 1 to 4"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(more, why):
    with pytest.raises(ValueError, match=why):
        P.site_dp_matrix(1.0, 1.0, **{"rounds": 8, "cohort": 1, "population": 4, **more})


def test_an_epsilon_is_that_of_all_rounds_as_one_release():
    step = P.site_dp_matrix(1.0, epsilon=8.0, rounds=50, cohort=1, population=50)
    assert noise_of(step).mechanism.noise_multiplier == pytest.approx(4.244 / 50**0.5, abs=1e-3)


def test_rounds_of_two_exchanges_are_refused():
    with pytest.raises(PassError, match="exchanges more than once"):
        fr.compile(
            fr.algorithms.mime(LOCAL, weighted=False),
            [P.site_dp_matrix(1.0, 1.0, rounds=4, cohort=6, population=6, only={"gradient", "delta"})],
        )
