"""A driver in a process of its own: train with a checkpoint after every round, and die by SIGKILL after one
of them.

    python -m tests.cluster.driver ALGORITHM FOLDER STOP [ray]        STOP -1: resume and print the hash
"""

import os
import signal
import sys

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from tests.cluster.test_killed import ROUNDS
from tests.equivalence import study


class Dies:
    """A tracker that kills the driver after a round."""

    def __init__(self, federation, stop):
        self.federation, self.stop = federation, stop

    def start(self, plan, facts):
        if self.federation.where == "ray":
            print(*self.federation.call("pids").values(), flush=True)

    def round(self, record):
        if record.round == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def evaluation(self, record):
        pass

    def finish(self, result):
        print(result.params_sha256)


def main(name, folder, stop, where="in_process"):
    with fr.simulate(study.hospitals(), runtime=where, packs=2, placement="actors") as federation:
        fr.fit(
            study.algorithm(name),
            federation,
            init=study.model().init(0),
            rounds=ROUNDS,
            seed=5,
            passes=study.passes(name),
            schedule=fr.synchronous(cohort=0.75),
            tracker=Dies(federation, int(stop)),
            checkpoint=Checkpoints(folder, every_s=0.0),
            resume=stop == "-1",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
