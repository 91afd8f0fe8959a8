"""A test host from the inside: the first process of its namespaces, its mounts, its sshd.

Everything that the host is hangs on this process: when it ends, the kernel kills the host's processes and
forgets its network, its mounts, its shared memory and its /tmp.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.testbed import kernel

HOME = "/tmp/home"  # of root, on the host's own /tmp: two hosts never write into one home
OWN = "/run/host"  # what only this host sees: its names, its users, the key of its sshd
HIDDEN = ("/tmp", "/run", "/dev/shm")  # each host has its own
OFFLOADS = ("tx", "tso", "gso", "gro")  # with them frames leave with no valid checksum, or too large
SSHD_STARTS_WITHIN_S = 10.0


def live(host: Mapping[str, Any], spec: Mapping[str, Any], told: int, go: int) -> None:
    """Become a host: never returns. `told` and `go` are pipes to and from who wires the network."""
    kernel.unshare(kernel.NEW_NETWORK | kernel.NEW_PIDS | kernel.NEW_MOUNTS | kernel.NEW_UTS | kernel.NEW_IPC)
    outside = os.getpid()
    first = os.fork()
    if first:
        os.write(told, f"{first}\n".encode())
        os.close(told)
        os.waitpid(first, 0)
        os._exit(0)
    kernel.die_with(outside)
    try:
        if os.read(go, 1) != b"g":
            os._exit(1)
        set_up(host, spec)
        if spec["sshd"]:
            start_sshd(spec)
        os.write(told, b"ready\n")
        os.close(told)
        reap()
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}\n".replace("\n", " ").encode())
        raise


def reap() -> None:
    """Wait for what ends on this host, as its init."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)  # no sshd, and nothing else yet


def set_up(host: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Give the host its name, its network, its mounts and its home."""
    socket.sethostname(host["name"])
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{host['address']}/16", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ethtool", "-K", "eth0", *(word for name in OFFLOADS for word in (name, "off")))
    mounts(host, spec["kept"])
    for name, value in spec["network"].items():
        Path("/proc/sys/net", name).write_text(value)
    names(spec)
    home(host, spec["environment"])


def run(*words: str) -> None:
    """Run a command. Raises RuntimeError with what it says where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def mounts(host: Mapping[str, Any], kept: Sequence[str]) -> None:
    """Give the host its own /proc, /tmp, /run and /dev/shm; paths `kept` that lay there stay visible."""
    kernel.mount("none", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)
    held = {path: os.open(path, os.O_PATH) for path in under_hidden(kept)}
    sizes = {"/tmp": host["tmp_mib"], "/run": 64, "/dev/shm": host["shm_mib"]}
    for target in HIDDEN:
        kernel.mount("tmpfs", target, "tmpfs", options=f"size={sizes[target]}m,mode=1777")
    for path, descriptor in held.items():
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
        kernel.mount(f"/proc/self/fd/{descriptor}", path, flags=kernel.BIND | kernel.RECURSIVE)
        os.close(descriptor)
    kernel.mount("proc", "/proc", "proc")


def under_hidden(paths: Sequence[str]) -> Iterator[str]:
    """Yield the paths that an own mount would hide, the outer ones first."""
    for path in sorted({os.path.realpath(path) for path in paths}, key=len):
        if any(path.startswith(f"{hidden}/") for hidden in HIDDEN) and os.path.exists(path):
            yield path


def names(spec: Mapping[str, Any]) -> None:
    """Let every host be found by its name, and root's home lie on the host's own /tmp."""
    os.makedirs(OWN)
    lines = ["127.0.0.1 localhost", *(f"{each['address']} {each['name']}" for each in spec["hosts"])]
    users = [
        ":".join([*line.split(":")[:5], HOME, "/bin/bash"]) if line.startswith("root:") else line
        for line in Path("/etc/passwd").read_text().splitlines()
    ]
    for name, content in (("hosts", lines), ("passwd", users)):
        Path(OWN, name).write_text("\n".join(content) + "\n")
        kernel.mount(f"{OWN}/{name}", f"/etc/{name}", flags=kernel.BIND)


def home(host: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Make root's home with the environment that every shell of the host has."""
    os.makedirs(HOME, mode=0o700)
    exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
    Path(HOME, ".bashrc").write_text(exports)
    Path(HOME, ".profile").write_text('. "$HOME/.bashrc"\n')
    os.environ.clear()
    os.environ.update(environment)
    os.environ["HOSTNAME"] = host["name"]
    os.chdir(HOME)


def start_sshd(spec: Mapping[str, Any]) -> None:
    """Start sshd with a key of this host, for the testbed's key only, and wait until it listens."""
    os.makedirs("/run/sshd", mode=0o755)  # where sshd gives its privileges up
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{OWN}/host_key")
    environment = " ".join(f'"{name}={value}"' for name, value in spec["environment"].items())
    Path(OWN, "sshd_config").write_text(
        f"HostKey {OWN}/host_key\nAuthorizedKeysFile {spec['folder']}/key.pub\nStrictModes no\nUsePAM no\n"
        "PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nPrintMotd no\n"
        "MaxStartups 100\nMaxSessions 100\nSubsystem sftp internal-sftp\n"
        f"SetEnv {environment}\n"
    )
    words = [spec["sshd"], "-D", "-f", f"{OWN}/sshd_config", "-E", f"{OWN}/sshd.log"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    limit = time.monotonic() + SSHD_STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < limit:
        try:
            socket.create_connection(("127.0.0.1", 22), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"sshd does not listen: {Path(OWN, 'sshd.log').read_text()[-500:]}")
