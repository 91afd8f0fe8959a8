"""Test hosts: what each has of its own, what their links do, and that nothing of them is left."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from experiments.testbed import Hosts, why_not, wide_area
from experiments.testbed.stream import stream_s

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]
REGIONS = {"hq": ["head"], "eu": ["a", "b"]}
ASK = "import socket, sys; s = socket.create_connection((sys.argv[1], 22), timeout={}); print(s.recv(3))"


@pytest.fixture(scope="module")
def hosts():
    links = {("hq", "eu"): wide_area(rtt_s=0.08, bits_per_s=100e6)}
    with Hosts(REGIONS, links=links, network={"ipv4/tcp_retries2": "7"}) as made:
        yield made


@pytest.fixture
def link(hosts):
    found = hosts.link("hq", "eu")
    yield found
    found.set(is_cut=False, loss=0.0, doubled=0.0, latency_s=0.04, bits_per_s=100e6)


def reaches(hosts, source, target, patience_s=2.0):
    words = ("-c", ASK.format(patience_s), hosts[target].address)
    return "SSH" in hosts[source].run(sys.executable, *words, check=False)


def spaces_of(pids):
    """Return the network, pid and mount namespaces of processes; those that ended have none."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "pid", "mnt")}
    return found


def spaces_below(pid):
    """Return the namespaces that a process and what it started have of their own."""
    mine = spaces_of([os.getpid()])
    children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return spaces_of([pid, *children]) - mine


def in_use(spaces):
    """Return which of these namespaces a process of this machine is in."""
    return spaces & spaces_of(entry.name for entry in Path("/proc").glob("[0-9]*"))


def traces():
    """Return what hosts could leave behind in this machine's own namespaces: mounts and interfaces."""
    return Path("/proc/self/mounts").read_text(), set(os.listdir("/sys/class/net"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_each_host_has_its_own_name_processes_memory_and_folders(hosts):
    hosts["a"].write("/tmp/mine", "a")
    hosts["a"].write("/dev/shm/mine", "a")
    assert [host.run("hostname").strip() for host in hosts] == ["head", "a", "b"]
    assert hosts["a"].read("/tmp/mine") == "a"
    assert hosts["b"].run("ls", "/tmp/mine", "/dev/shm/mine", check=False) == ""
    assert not Path("/tmp/mine").exists() and not Path("/dev/shm/mine").exists()
    seen = hosts["b"].run("ps", "-A", "-o", "pid=").split()
    assert len(seen) < 6 and seen[0] == "1"


def test_root_logs_in_on_every_host_by_name_and_finds_this_python(hosts):
    answers = [hosts.ssh("head", name, "hostname; command -v python; cd; pwd") for name in ("a", "b")]
    python = str(Path(sys.executable).parent / "python")
    assert [answer.split() for answer in answers] == [[name, python, "/tmp/home"] for name in ("a", "b")]


def test_hosts_of_one_region_do_not_cross_the_link(hosts, link):
    before = link.traffic("in").bytes + link.traffic("out").bytes
    stream_s(hosts["a"], hosts["b"], 10**6)
    assert link.traffic("in").bytes + link.traffic("out").bytes < before + 2000  # what others had under way


def test_a_link_has_its_latency_and_rate_and_counts_what_passes(hosts, link):
    before = link.traffic("out"), link.traffic("in")
    seconds = stream_s(hosts["head"], hosts["a"], 4 * 10**6)
    after = link.traffic("out"), link.traffic("in")
    # three times 40 ms to connect and to let the first bytes through, 320 ms for 4 MB at 100 Mbit
    assert 0.44 < seconds < 10
    assert 4.1e6 < after[0].bytes - before[0].bytes < 4.6e6  # 66 bytes of headers in each 1514
    assert after[1].bytes - before[1].bytes < 0.5e6


def test_a_changed_latency_holds_from_now_on(hosts, link):
    link.set(latency_s=0.3)
    began = time.monotonic()
    assert reaches(hosts, "head", "a", 5.0)
    assert time.monotonic() - began > 0.9  # connecting takes one round trip, the first bytes half of one


@pytest.mark.parametrize("direction", ["both", "out", "in"])
def test_a_cut_lets_nothing_through_and_says_so_until_it_heals(hosts, link, direction):
    lost = "in" if direction == "both" else direction
    link.cut(direction)
    before = {way: link.traffic(way) for way in ("out", "in")}
    assert not reaches(hosts, "head" if lost == "out" else "a", "a" if lost == "out" else "head", 0.5)
    after = {way: link.traffic(way) for way in ("out", "in")}
    assert after[lost].cut_frames > before[lost].cut_frames and after[lost].bytes == before[lost].bytes
    if direction != "both":
        other = "in" if lost == "out" else "out"
        assert after[other].cut_frames == before[other].cut_frames
    link.heal()
    assert reaches(hosts, "head", "a", 10.0)


def test_frames_that_come_twice_are_counted_and_tcp_takes_each_once(hosts, link):
    link.set(doubled=0.5)
    assert hosts.ssh("head", "a", "seq", "20000").split() == [str(number) for number in range(1, 20001)]
    assert link.traffic("out").doubled_frames > 0 and link.traffic("in").doubled_frames > 0


def test_settings_of_the_network_are_those_of_the_hosts_alone(hosts):
    path = "/proc/sys/net/ipv4/tcp_retries2"
    assert hosts["a"].run("cat", path).strip() == "7" != Path(path).read_text().strip()


def test_loss_is_drawn_by_frame_and_tcp_still_gets_through(hosts, link):
    link.set(loss=0.05)
    before = link.traffic("out").lost_frames
    stream_s(hosts["head"], hosts["a"], 10**6)
    assert link.traffic("out").lost_frames > before


def test_a_restarted_host_has_its_address_again_and_nothing_else(hosts):
    hosts["b"].write("/tmp/mine", "b")
    hosts.restart("b")
    assert hosts["b"].run("ls", "/tmp/mine", check=False) == ""
    assert reaches(hosts, "a", "b")


def test_processes_of_a_host_are_found_and_killed_by_their_words(hosts):
    marker = f"sleep 6{os.getpid()}"
    started = hosts["a"].start(*marker.split())
    while not hosts["a"].pids(marker):
        assert started.poll() is None
    assert hosts["b"].pids(marker) == {}
    assert len(hosts["a"].kill(marker)) == 1
    assert started.wait(10) != 0


def test_unknown_settings_and_regions_are_refused(hosts, link):
    with pytest.raises(ValueError, match="a link has no jitter"):
        link.set(jitter=1)
    with pytest.raises(ValueError, match="name two of the regions hq, eu"):
        Hosts(REGIONS, links={("hq", "moon"): {}})
    with pytest.raises(ValueError, match="different names"):
        Hosts({"hq": ["a"], "eu": ["a"]})


def test_nothing_is_left_when_the_block_ends_in_an_error(folder):
    left, spaces = traces(), set()
    with contextlib.suppress(KeyError), Hosts(REGIONS) as made:
        made["a"].start("sleep", "300")
        spaces |= spaces_below(made.pid)
        assert len(spaces) == 1 + 3 * 3 and len(list(folder.iterdir())) == 1  # a network, and three a host
        raise KeyError("on purpose")
    assert in_use(spaces) == set()
    assert traces() == left and list(folder.iterdir()) == []


def test_nothing_is_left_when_a_host_cannot_start(folder):
    left = traces()
    made = Hosts(REGIONS, environment={"BROKEN": 'a"b'})  # sshd cannot read such a line
    with pytest.raises(RuntimeError, match="host .* did not start: RuntimeError: sshd does not listen"):
        made.__enter__()
    assert not psutil.pid_exists(made.pid)
    assert traces() == left and list(folder.iterdir()) == []


def test_nothing_is_left_when_the_creator_is_killed(folder):
    left = traces()
    program = (
        "import time\nfrom experiments.testbed import Hosts\n"
        f"with Hosts({REGIONS!r}) as hosts:\n    hosts['a'].start('sleep', '300')\n"
        "    print(hosts.pid, flush=True)\n    time.sleep(300)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    words = [sys.executable, "-c", program]
    creator = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert creator.stdout is not None
    spaces = spaces_below(int(creator.stdout.readline()))
    assert len(spaces) == 1 + 3 * 3 and len(list(folder.iterdir())) == 1
    creator.send_signal(signal.SIGKILL)
    creator.wait()
    limit = time.monotonic() + 20
    while (in_use(spaces) or list(folder.iterdir())) and time.monotonic() < limit:
        time.sleep(0.1)
    assert in_use(spaces) == set()
    assert traces() == left and list(folder.iterdir()) == []
