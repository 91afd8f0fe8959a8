"""The process that owns a set of test hosts: it makes them, wires their network, and ends them.

    creator (a test)  <- a socket: what is wanted, what came of it; its end is the life line ->  this process
      this process, in a network namespace of its own with a bridge for each region
        |-- a relay for each link      (relay.py)
        `-- a process for each host    (inside.py) -- the first process of the host's namespaces

When the creator ends, however it ends, the socket closes and all of this goes; when this process is killed,
the kernel kills what hangs on it. No namespace, bridge or interface has a name outside.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.testbed import inside, kernel, relay


def address_of(region: int, number: int) -> str:
    """Return the address of a host: the third number is its region."""
    return f"10.77.{region}.{number}"


class Wiring:
    """The bridges, relays and hosts of one set."""

    def __init__(self, spec: Mapping[str, Any], line: socket.socket) -> None:
        self.spec, self.line = spec, line
        self.hosts = {host["name"]: host for host in spec["hosts"]}
        self.outer: dict[str, int] = {}  # this process's child for each host
        self.firsts: dict[str, int] = {}  # and the first process in its namespaces
        self.relays: list[int] = []

    def start(self) -> dict[str, int]:
        """Make everything; return the first process of each host."""
        kernel.unshare(kernel.NEW_NETWORK)
        with contextlib.suppress(OSError):  # a kernel without IPv6: then nothing announces itself over it
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        regions = sorted({host["region"] for host in self.hosts.values()})
        lines = [f"link add br{region} type bridge stp_state 0 forward_delay 0" for region in regions]
        ip(*lines, *(f"link set br{region} up" for region in regions))
        for number, link in enumerate(self.spec["links"]):
            self._start_relay(number, link)
        return self.start_hosts(list(self.hosts))

    def _start_relay(self, number: int, link: Mapping[str, Any]) -> None:
        ends = []
        for side, region in enumerate(link["regions"]):
            inner, end = f"l{number}b{side}", f"l{number}e{side}"
            ip(f"link add {inner} type veth peer name {end}", f"link set {inner} master br{region} up",
               f"link set {end} up")  # fmt: skip
            plain(inner, end)
            ends.append(end)
        work = (tuple(ends), tuple(link["regions"]), link["setting"], link["seed"], link["door"])
        self.relays.append(self._forked(lambda: relay.relay(*work)))

    def start_hosts(self, names: list[str]) -> dict[str, int]:
        """Make some hosts, side by side; return their first processes. Raises RuntimeError if one fails."""
        pipes = {}
        for name in names:
            told, tell = os.pipe()
            go, send = os.pipe()
            host = self.hosts[name]
            self.outer[name] = self._forked(lambda h=host, t=tell, g=go: inside.live(h, self.spec, t, g))
            os.close(tell)
            os.close(go)
            pipes[name] = (os.fdopen(told), send)
        for name in names:
            self.firsts[name] = int(pipes[name][0].readline() or 0)
            if not self.firsts[name]:
                raise RuntimeError(f"host {name} has no namespaces: its process ended at once")
            self._plug(self.hosts[name], self.firsts[name])
            os.write(pipes[name][1], b"g")
        for name, (told, send) in pipes.items():
            answer = told.readline().strip()
            told.close()
            os.close(send)
            if answer != "ready":
                raise RuntimeError(f"host {name} did not start: {answer or 'its process ended'}")
        return {name: self.firsts[name] for name in names}

    def _plug(self, host: Mapping[str, Any], first: int) -> None:
        plug = f"h{host['number']}"
        card = f"02:77:00:00:{host['region']:02x}:{host['number']:02x}"  # stays when the host starts again
        ip(f"link add {plug} type veth peer name eth0 address {card} netns {first}",
           f"link set {plug} master br{host['region']} up")  # fmt: skip
        plain(plug)

    def restart(self, name: str) -> int:
        """Make a host again whose processes are gone."""
        self._end_host(name)
        with contextlib.suppress(RuntimeError):  # it goes with the host's namespace, some time
            ip(f"link del h{self.hosts[name]['number']}")
        return self.start_hosts([name])[name]

    def _forked(self, work: Callable[[], None]) -> int:
        parent, child = os.getpid(), os.fork()
        if child:
            return child
        try:
            os.close(self.line.fileno())
            kernel.die_with(parent)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
        finally:  # it never returns: what it raises goes to wiring.log
            traceback.print_exc()
            os._exit(1)

    def _end_host(self, name: str) -> None:
        """Kill the first process of a host, and with it all others; wait until the kernel has done so."""
        outer = self.outer.pop(name)
        with contextlib.suppress(ProcessLookupError):  # `outer` ends once all processes of the host have
            os.kill(self.firsts.pop(name, outer), signal.SIGKILL)
        os.waitpid(outer, 0)

    def end(self) -> None:
        """End every process, wait for it, and remove the folder."""
        for name in list(self.outer):
            self._end_host(name)
        for pid in self.relays:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(self.spec["folder"], ignore_errors=True)


def ip(*lines: str) -> None:
    """Run commands of `ip`, one a line. Raises RuntimeError where one fails."""
    text = "\n".join(lines) + "\n"
    done = subprocess.run(["ip", "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()} (of: {'; '.join(lines)})")


def plain(*interfaces: str) -> None:
    """Let frames pass as they are: no interface joins, splits or leaves the checksum of one to another."""
    words = [word for name in inside.OFFLOADS for word in (name, "off")]
    for interface in interfaces:
        inside.run("ethtool", "-K", interface, *words)


def serve(wiring: Wiring, requests: Any, answer: Callable[[Any], None]) -> None:
    """Do what the creator asks until it closes the line."""
    for line in requests:
        name = json.loads(line)["restart"]
        try:
            answer({"first": wiring.restart(name)})
        except (RuntimeError, OSError) as error:
            answer({"error": str(error)})


def main() -> None:
    """Own the hosts that the first line on the socket describes."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    line = socket.socket(fileno=int(sys.argv[1]))
    requests = line.makefile("r")
    wiring = Wiring(json.loads(requests.readline()), line)

    def answer(content: Any) -> None:
        line.sendall(json.dumps(content).encode() + b"\n")

    try:
        firsts = wiring.start()
        answer({"firsts": firsts})
        serve(wiring, requests, answer)
    except (RuntimeError, OSError) as error:
        with contextlib.suppress(OSError):
            answer({"error": f"{error}"})
    finally:
        wiring.end()


if __name__ == "__main__":
    main()
