"""A link between two regions of test hosts, as its creator sees and changes it while it runs."""

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from experiments.testbed.relay import NAMES

ANSWERS_WITHIN_S = 10.0


def wide_area(rtt_s: float = 0.08, bits_per_s: float = 100e6, loss: float = 0.0) -> dict[str, Any]:
    """Return the setting of a link between two regions: half of the round trip each way."""
    return {"latency_s": rtt_s / 2, "bits_per_s": bits_per_s, "loss": loss}


@dataclass(frozen=True)
class Traffic:
    """What one direction has carried and dropped since its start; bytes are those of whole frames."""

    frames: int
    bytes: int
    lost_frames: int
    cut_frames: int
    cut_bytes: int
    full_frames: int
    doubled_frames: int
    last_cut_s: float
    last_s: float


@dataclass(frozen=True)
class Link:
    """A link, seen from one side; `direction` is "out", "in" or "both"."""

    sides: tuple[str, str]
    door: str
    is_reversed: bool = False

    def reversed(self) -> "Link":
        """Return the same link, seen from the other side."""
        return Link((self.sides[1], self.sides[0]), self.door, not self.is_reversed)

    def set(self, direction: str = "both", **setting: Any) -> None:
        """Change latency_s (one way), bits_per_s, loss, is_cut, doubled or queue_bytes, from now on."""
        unknown = set(setting) - set(NAMES)
        if unknown:
            raise ValueError(f"a link has no {', '.join(sorted(unknown))}: it has {', '.join(NAMES)}")
        self._ask(dict.fromkeys(self._numbers(direction), setting))

    def cut(self, direction: str = "both") -> None:
        """Let nothing pass any more; what is under way is lost too."""
        self.set(direction, is_cut=True)

    def heal(self) -> None:
        """Let frames pass again, both ways."""
        self.set(is_cut=False)

    def traffic(self, direction: str) -> Traffic:
        """Return the counters of a direction, "out" or "in"."""
        (number,) = self._numbers(direction)
        return Traffic(**self._ask({})[number]["counters"])

    def _numbers(self, direction: str) -> list[int]:
        if direction not in ("out", "in", "both"):
            raise ValueError(f"direction={direction!r}: choose 'out', 'in' or 'both'")
        if direction == "both":
            return [0, 1]
        return [int(self.is_reversed) if direction == "out" else int(not self.is_reversed)]

    def _ask(self, wanted: dict[int, Any]) -> Any:
        own = f"{self.door}-{os.getpid()}-{id(wanted)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            asking.bind(own)
            try:
                asking.settimeout(ANSWERS_WITHIN_S)
                asking.sendto(json.dumps(wanted).encode(), self.door)
                return json.loads(asking.recv(65536))
            finally:
                os.unlink(own)
