"""Who drives a run: one driver, until its signs of life have ended."""

import pytest

from fedray.errors import HostError
from fedray.runtime.lease import Driver, Lease

ONE, OTHER = Driver("1", "process 1 on one"), Driver("2", "process 2 on two")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease(clock):
    lease = Lease("study", 10.0, clock)
    lease.take(ONE)
    return lease


def test_another_driver_is_refused_by_the_name_of_the_one_that_is_alive(lease, clock):
    clock.now = 9.0
    lease.renew(ONE.id)
    clock.now = 18.0
    with pytest.raises(HostError, match="study is driven by process 1 on one.*9.0 s ago"):
        lease.take(OTHER)
    lease.check(ONE.id)


def test_another_driver_takes_a_run_whose_driver_is_silent_and_the_first_is_then_refused(lease, clock):
    clock.now = 10.1
    lease.take(OTHER)
    lease.renew(ONE.id)
    lease.check(OTHER.id)
    with pytest.raises(HostError, match="driven by process 2 on two now"):
        lease.check(ONE.id)


def test_driver_takes_its_own_run_again(lease):
    lease.take(ONE)
    lease.check(ONE.id)


def test_silence_counts_from_the_last_sign_of_the_holder_alone(lease, clock):
    clock.now = 4.0
    lease.renew(OTHER.id)
    assert lease.silent_s == 4.0
    lease.renew(ONE.id)
    assert lease.silent_s == 0.0


def test_lease_is_alive_until_its_driver_is_silent_for_its_length(lease, clock):
    clock.now = 10.0
    assert lease.is_alive
    clock.now = 10.1
    assert not lease.is_alive
    assert not Lease("study", 10.0).is_alive


def test_run_without_a_driver_is_nobodys():
    with pytest.raises(HostError, match="driven by nobody"):
        Lease("study", 10.0).check(ONE.id)
