"""Plain TCP streams between test hosts, to know what their link can do.

python -m experiments.testbed.stream receive PORT            (prints when the last byte was there)
python -m experiments.testbed.stream send ADDRESS PORT BYTES (prints when it began to connect)

All hosts share the clock of this machine, so the two times can be compared.
"""

import socket
import subprocess
import sys
import time
from typing import Any

from experiments.testbed.hosts import Host

PIECE = bytes(2**16)
CONNECTS_WITHIN_S, ENDS_WITHIN_S = 20.0, 300.0


def receive(port: int) -> float:
    """Take one stream and return when it was over."""
    with socket.create_server(("", port)) as door:
        print("listening", flush=True)
        with door.accept()[0] as stream:
            into = bytearray(2**20)
            while stream.recv_into(into):
                pass
            return time.monotonic()


def send(address: str, port: int, num_bytes: int) -> float:
    """Send a stream; return when it began."""
    began = time.monotonic()
    with socket.create_connection((address, port), timeout=CONNECTS_WITHIN_S) as stream:
        stream.settimeout(ENDS_WITHIN_S)
        whole, rest = divmod(num_bytes, len(PIECE))
        for _ in range(whole):
            stream.sendall(PIECE)
        stream.sendall(PIECE[:rest])
    return began


def stream_s(source: Host, target: Host, num_bytes: int, port: int = 5201) -> float:
    """Return the seconds of one plain TCP stream between two hosts, from connecting to the last byte."""
    words: tuple[str, ...] = (sys.executable, "-m", "experiments.testbed.stream")
    receiver: Any = target.start(*words, "receive", str(port), stdout=subprocess.PIPE, text=True)
    if receiver.stdout.readline() != "listening\n":
        raise RuntimeError(f"{target.name}: nothing listens on port {port}")
    words += ("send", target.address, str(port), str(num_bytes))
    began = float(source.run(*words, limit_s=ENDS_WITHIN_S))
    ended = float(receiver.communicate(timeout=ENDS_WITHIN_S)[0])
    return ended - began


def main() -> None:
    """Take or send one stream."""
    kind, *rest = sys.argv[1:]
    print(receive(int(rest[0])) if kind == "receive" else send(rest[0], int(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main()
