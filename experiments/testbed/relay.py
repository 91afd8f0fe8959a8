"""The process behind a link: it moves frames between two interfaces with latency, rate, loss and cuts.

A link joins two regions. Only frames from an address of the one side for an address of the other pass, so
links between any pairs of regions never make a loop. Start reading at `Direction.take`.
"""

import contextlib
import gc
import json
import random
import select
import socket
import struct
import time
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from typing import Any

ALL_FRAMES, IPV4, ARP = 0x0003, b"\x08\x00", b"\x08\x06"  # of linux/if_ether.h
SOL_PACKET, STATISTICS, IGNORE_OUTGOING = 263, 6, 23  # of linux/if_packet.h
RECEIVE_BYTES = 16 * 2**20  # that the kernel holds for us: 1.3 s of a 100 Mbit link
BURST = 64  # frames taken from one side before the other has its turn
LONGEST_SLEEP_S = 1.0


@dataclass
class Setting:
    """How one direction of a link behaves. It can be changed while frames are under way."""

    latency_s: float = 0.0  # one way
    bits_per_s: float = 0.0  # 0: no limit
    loss: float = 0.0  # share of frames
    is_cut: bool = False
    doubled: float = 0.0  # share of frames that are delivered twice
    queue_bytes: int = 2 * 2**20  # waiting for the rate; more is dropped, as a router would


@dataclass
class Counters:
    """What one direction has seen since its start; bytes are those of whole Ethernet frames."""

    frames: int = 0  # delivered
    bytes: int = 0  # delivered
    lost_frames: int = 0  # by `loss`
    cut_frames: int = 0
    cut_bytes: int = 0
    full_frames: int = 0  # the queue was full, or the kernel's
    doubled_frames: int = 0  # by `doubled`
    last_cut_s: float = 0.0  # wall clock of the last frame that a cut has taken
    last_s: float = 0.0  # wall clock of the last frame delivered


def prefix_of(region: int) -> bytes:
    """Return the first three bytes of the addresses of a region: see wiring.py."""
    return bytes((10, 77, region))


@dataclass
class Direction:
    """One direction: frames that came in and have not been delivered yet."""

    source: socket.socket
    target: socket.socket
    own: bytes  # prefix of addresses on the side where frames come from
    other: bytes
    draws: random.Random
    setting: Setting = field(default_factory=Setting)
    counters: Counters = field(default_factory=Counters)
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0  # when the wire has sent all that is before

    def belongs(self, frame: bytes) -> bool:
        """Tell whether a frame goes from the one side to the other."""
        kind = frame[12:14]
        if kind == IPV4:
            return frame[26:29] == self.own and frame[30:33] == self.other
        return kind == ARP and frame[28:31] == self.own and frame[38:41] == self.other

    def take(self, frame: bytes, now: float) -> None:
        """Let a frame in: drop it, or say when it will be delivered."""
        setting, counters = self.setting, self.counters
        if setting.is_cut:
            counters.cut_frames += 1
            counters.cut_bytes += len(frame)
            counters.last_cut_s = time.time()
            return
        if setting.loss and self.draws.random() < setting.loss:
            counters.lost_frames += 1
            return
        sent = max(now, self.free_at)
        if setting.bits_per_s:
            if (sent - now) * setting.bits_per_s > 8 * setting.queue_bytes:
                counters.full_frames += 1
                return
            sent += 8 * len(frame) / setting.bits_per_s
        self.free_at = sent
        due = sent + setting.latency_s
        if self.waiting and self.waiting[-1][0] > due:  # the latency fell: frames keep their order
            due = self.waiting[-1][0]
        self.waiting.append((due, frame))
        if setting.doubled and self.draws.random() < setting.doubled:
            counters.doubled_frames += 1
            self.waiting.append((due, frame))

    def receive(self, now: float) -> None:
        """Take what has come in."""
        for _ in range(BURST):
            try:
                frame = self.source.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # the interface went down: its host is gone
                return
            if self.belongs(frame):
                self.take(frame, now)

    def deliver(self, now: float) -> None:
        """Send what is due. What is under way when the link is cut is lost too."""
        waiting, counters = self.waiting, self.counters
        while waiting and waiting[0][0] <= now:
            frame = waiting.popleft()[1]
            if self.setting.is_cut:
                counters.cut_frames += 1
                counters.cut_bytes += len(frame)
                counters.last_cut_s = time.time()
                continue
            try:
                self.target.send(frame)
            except OSError:  # no room, or the interface went down
                counters.full_frames += 1
                continue
            counters.frames += 1
            counters.bytes += len(frame)
            counters.last_s = time.time()

    def change(self, wanted: dict[str, Any]) -> None:
        """Change some of the setting's values."""
        for name, value in wanted.items():
            setattr(self.setting, name, value)

    def told(self) -> dict[str, Any]:
        """Return setting and counters as plain values."""
        kept = struct.unpack("II", self.source.getsockopt(SOL_PACKET, STATISTICS, 8))
        self.counters.full_frames += kept[1]  # since the last time that we asked
        return {"setting": asdict(self.setting), "counters": asdict(self.counters)}


NAMES = tuple(one.name for one in fields(Setting))


def raw_socket(interface: str) -> socket.socket:
    """Open a socket that reads and writes whole frames of an interface."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
    opened.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BYTES)  # SO_RCVBUFFORCE
    opened.bind((interface, 0))
    opened.setblocking(False)
    return opened


def relay(interfaces: tuple[str, str], regions: tuple[int, int], setting: dict[str, Any], seed: int,
          door: str) -> None:
    """Move frames for ever; `door` is the path of the socket over which settings are changed."""
    gc.disable()  # nothing here makes a cycle, and a pause is latency
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(door)
    control.setblocking(False)
    ends = [raw_socket(name) for name in interfaces]
    prefixes = [prefix_of(region) for region in regions]
    ways = [
        Direction(ends[side], ends[1 - side], prefixes[side], prefixes[1 - side],
                  random.Random(2 * seed + side), Setting(**setting))
        for side in (0, 1)
    ]
    while True:
        now = time.monotonic()
        for way in ways:
            way.deliver(now)
        due = [way.waiting[0][0] for way in ways if way.waiting]
        patience = min(max(0.0, min(due) - time.monotonic()), LONGEST_SLEEP_S) if due else LONGEST_SLEEP_S
        readable, _, _ = select.select([*ends, control], [], [], patience)
        if control in readable:
            obey(control, ways)
        now = time.monotonic()
        for way in ways:
            if way.source in readable:
                way.receive(now)


def obey(control: socket.socket, ways: list[Direction]) -> None:
    """Carry out one message: settings by direction (0, 1), and answer with what both directions say."""
    message, sender = control.recvfrom(65536)
    for number, wanted in json.loads(message).items():
        ways[int(number)].change(wanted)
    answer = json.dumps([way.told() for way in ways]).encode()
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # who asked has gone
        control.sendto(answer, sender)
