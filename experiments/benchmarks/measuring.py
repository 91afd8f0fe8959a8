"""What a running program and all that it starts cost: CPU time, memory, and the GEMM rate to compare with.

Linux only: reads /proc. CPU seconds have the kernel's nanosecond clock of each process, not the ticks of
10 ms of /proc/pid/stat, which are too coarse for rounds of 4 ms; only children that have ended and were
waited for are known in ticks.
"""

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.5  # reading smaps of ten processes costs some 10 ms, outside the measured tree
ALREADY_GONE = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)


def end_orderly() -> None:
    """Make being asked to end an exit like any other, so that what was started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def process_cpu_s(pid: int) -> float:
    """Return user and system seconds of a process and all its threads, those that ended included.

    Raises ProcessLookupError where there is no such process.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the clock id of clock_getcpuclockid(3): CPUCLOCK_SCHED
    except OSError as error:
        raise ProcessLookupError(pid) from error


def reaped_children_cpu_s(pid: int) -> float:
    """Return user and system seconds of the children that a process has waited for, in ticks of 10 ms."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[13]) + int(words[14])) / TICKS  # cutime, cstime: fields 16 and 17 of proc(5)


def ignores_children(pid: int) -> bool:
    """Tell whether a process ignores SIGCHLD: the kernel then forgets the times of its ended children."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ALREADY_GONE:
        return False
    ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
    return bool(ignored >> (signal.SIGCHLD - 1) & 1)


@dataclass(frozen=True)
class Memory:
    """Bytes of a process tree. `total` is `private` data and each shared-memory page once.

    `uss` are pages that one process alone has, those of program files included; it counts a page of shared
    memory that only one process has touched, and leaves out one that two have.
    """

    total: int
    uss: int


def memory_of(pid: int) -> Memory:
    """Return the memory of one process, its share of shared pages. Raises FileNotFoundError if it is gone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    if not kib:
        return Memory(0, 0)  # a process that has ended and was not waited for yet
    return Memory(1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"]),
                  1024 * (kib["Private_Clean"] + kib["Private_Dirty"]))


@dataclass
class ProcessTree:
    """A process and all its descendants."""

    root: int
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    _last: dict[int, tuple[int, float, bool]] = field(default_factory=dict)
    _lost_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def processes(self) -> list[psutil.Process]:
        """Return the processes, with those that have ended and were not waited for."""
        root = psutil.Process(self.root)
        found = [root, *root.children(recursive=True)]
        self.seen.update({process.pid: process for process in found})
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds that the tree has used so far, ended processes included.

        What a child used after the last look is missing where its parent ignores SIGCHLD.
        """
        with self._lock:
            seen, total = {}, 0.0
            for process in self.processes():
                try:
                    parent, own = process.ppid(), process_cpu_s(process.pid)
                    total += own + reaped_children_cpu_s(process.pid)
                except ALREADY_GONE:
                    continue
                seen[process.pid] = (parent, own, ignores_children(parent))
            gone = [self._last[pid] for pid in self._last.keys() - seen.keys()]
            self._lost_s += sum(own for _, own, is_forgotten in gone if is_forgotten)
            self._last = seen
            return total + self._lost_s

    def memory(self) -> Memory:
        """Return the memory of the tree now."""
        found = []
        for process in self.processes():
            try:
                found.append(memory_of(process.pid))
            except ALREADY_GONE:
                continue
        return Memory(sum(one.total for one in found), sum(one.uss for one in found))


class PeakMemory(threading.Thread):
    """Look at the memory of a tree every half second, and when asked, until stopped."""

    def __init__(self, tree: ProcessTree) -> None:
        super().__init__(daemon=True)
        self._tree, self._is_over, self._lock = tree, threading.Event(), threading.Lock()
        self.most, self.most_uss = 0, 0

    def look(self) -> None:
        """Take one sample of memory, and of CPU for the sake of processes that end unnoticed."""
        memory = self._tree.memory()
        self._tree.cpu_s()
        with self._lock:
            self.most, self.most_uss = max(self.most, memory.total), max(self.most_uss, memory.uss)

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._is_over.wait(SAMPLE_S):
            self.look()

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self.join()


def end_what_is_left(tree: ProcessTree) -> int:
    """End what a finished program has left behind, by process id, and return how many processes that were."""
    left = [process for pid, process in tree.seen.items() if pid != tree.root and process.is_running()]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
    return len(left)


def gemm_rate(runs: int = 20, size: int = 1024) -> float:
    """Return the FLOP/s of `torch.mm` in float32 on one thread: the median of `runs` after three warm-ups.

    By CPU seconds, like what it is compared with: the wall clock would count what else the machine does.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.full((size, size), 0.5), torch.full((size, size), 0.25)
    seconds = []
    for _ in range(runs + 3):
        began = time.thread_time()
        torch.mm(a, b)
        seconds.append(time.thread_time() - began)
    torch.set_num_threads(before)
    return 2 * size**3 / statistics.median(seconds[3:])


def cpu_s(action: Callable[[], object], repeats: int) -> list[float]:
    """Return CPU seconds of each run of an action in this process, after a warm-up."""
    action()
    found = []
    for _ in range(repeats):
        before = time.process_time()
        action()
        found.append(time.process_time() - before)
    return found
