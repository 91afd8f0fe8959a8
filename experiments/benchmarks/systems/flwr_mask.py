"""What a mask of one neighbour costs in Flower's secure aggregation: its own generator and its own addition.

    python flwr_mask.py SIZE REPEATS

Runs in Flower's environment. CPU seconds a neighbour, all repeats after a warm-up, as one line of JSON.
"""

import json
import os
import sys
import time

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

MOD_RANGE = 2**32  # the default of its workflow


def neighbour_s(size: int, repeats: int) -> list[float]:
    """Return CPU seconds of making one neighbour's mask and adding it."""
    values, found = [np.zeros(size, np.int64)], []
    for _ in range(repeats + 1):
        key = os.urandom(32)
        began = time.process_time()
        values = parameters_addition(values, pseudo_rand_gen(key, MOD_RANGE, [(size,)]))
        found.append(time.process_time() - began)
    return found[1:]


if __name__ == "__main__":
    print(json.dumps(neighbour_s(int(sys.argv[1]), int(sys.argv[2]))))
