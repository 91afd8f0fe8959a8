"""Faults on purpose: seeded schedules of kills, cuts, delays, duplicates and full disks on a Ray cluster.

    python -m experiments.chaos --count 200            schedules one after the other, each judged
    python -m experiments.chaos --hours 1              one run under random faults, looked at for leaks

Who does what:

    kinds.py      the kinds of faults, the points of a round, and a schedule drawn from a seed
    study.py      what is trained: the same algorithms on the cluster and, undisturbed, in this process
    gates.py      runs in every process of the cluster: marks each point, and holds one of them
    driver.py     the run's driver on the head: a process that can be killed like any other
    field.py      the cluster on test hosts, its drivers and its processes by name
    injure.py     one function a fault: do it, see that it has happened, undo it
    judge.py      what must hold after each schedule
    endless.py    the hour of random faults
"""
