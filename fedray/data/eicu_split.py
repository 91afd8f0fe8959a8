"""The published split of the eICU cohorts: whole patients, within hospital, stratified by death."""

import numpy as np

Array = np.ndarray


def split_stays(stay: Array, hospital: Array, patient: Array, died: Array, seed: int,
                test_fraction: float = 0.3) -> Array:
    """Return which rows are test rows, (rows,) bool, in the order of the rows given.

    Patients are grouped by (hospital of their first stay, ever died in the cohort), groups in ascending
    order, patients ascending by id; each group is shuffled by one `numpy.random.RandomState(seed)`, then
    one uniform draw u decides whether the test share is rounded up (u < fraction) or down. A patient's
    stays go with the patient. The first stay is the one with the lowest stay id. RandomState is part of the
    published recipe, figures depend on it.
    """
    names, patient_of = np.unique(np.asarray(patient).astype(str), return_inverse=True)
    order = np.lexsort((stay, patient_of))
    _, first = np.unique(patient_of[order], return_index=True)
    home = np.asarray(hospital)[order[first]]
    ever_died = np.zeros(len(names), bool)
    np.logical_or.at(ever_died, patient_of, np.asarray(died) > 0)
    rng = np.random.RandomState(seed)
    is_test = np.zeros(len(names), bool)
    groups = {(place, bool(death)) for place, death in zip(home.tolist(), ever_died, strict=True)}
    for group in sorted(groups):
        members = np.flatnonzero((home == group[0]) & (ever_died == group[1]))  # ascending by patient id
        rng.shuffle(members)
        share = test_fraction * len(members)
        num_test = int(share) + int(rng.random_sample() < share - int(share))
        is_test[members[:num_test]] = True
    return is_test[patient_of]
