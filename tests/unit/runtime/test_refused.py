"""A process to which connections are refused is gone, whatever Ray has heard; silence is borne longer."""

import time

import pytest
from ray import exceptions as ray_errors

from fedray.runtime.ray_faults import REFUSED_S
from fedray.runtime.ray_transport import Call, RayTransport
from fedray.runtime.transport import Lost

REFUSED = "RPC error: failed to connect to all addresses; last error: Failed to connect: Connection refused"


@pytest.mark.parametrize(("message", "since_s", "is_lost"), [
    (REFUSED, 0.0, False),
    (REFUSED, REFUSED_S + 1, True),
    ("RPC error: Deadline Exceeded", REFUSED_S + 1, False),
    ("RPC error: Deadline Exceeded", 91.0, True),
])  # fmt: skip
def test_call_that_is_refused_for_some_seconds_is_lost(message, since_s, is_lost):
    call = Call("pack0", 1, "run", (), None, unsure_since=time.monotonic() - since_s)
    error = ray_errors.ActorUnavailableError(message, None)
    found = RayTransport([], actors={})._unsure(call, error)
    assert isinstance(found, Lost) == is_lost and (is_lost or found is call)
