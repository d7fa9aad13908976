"""The processors that this process may use: affinity, control group quotas, other load."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def physical_cores() -> int:
    """Cores that this process may run on, two hardware threads of one core counted once."""
    cores = set()
    for cpu in allowed_cpus():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            return hardware_threads()
    return within_quota(len(cores), cpu_quota())


def hardware_threads() -> int:
    """As physical_cores, but counts each hardware thread of a core."""
    return within_quota(len(allowed_cpus()), cpu_quota())


def allowed_cpus() -> set[int]:
    """The numbers of the CPUs that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def within_quota(count: int, quota: float | None) -> int:
    """The number of threads, limited to the quota rounded to the nearest integer; 1.5 gives 2.

    The kernel stops all threads of a group that has used up its time, until the next period.
    Two threads within a quota of 1.5 do 1.5 times the work of one, in spite of the pauses;
    within 1.4 they gain little, and the pauses make the time between tokens uneven.
    """
    return max(1, count if quota is None else min(count, int(quota + 0.5)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPU seconds per second that control groups allow this process; None: no limit.

    The minimum over the process's group and its ancestors, in both versions of Linux's control
    groups. root: where to find /proc and the control groups' file systems.
    """
    quotas = [_quota(folder) for folder in _cpu_groups(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cpu_groups(root: Path) -> Iterator[Path]:
    """The process's group and its ancestors, if mounted here.

    Sources: cgroups(7) for /proc/self/cgroup, proc(5) for mountinfo.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            kind, option = ("cgroup2", None) if number == "0" else ("cgroup", "cpu")
            for mounted, point in _mounts_of(kind, option, mounts):
                top = root / point.lstrip("/")
                inside = path.removeprefix(mounted.rstrip("/")) if path != mounted else ""
                # A path outside the mounts names a group of another namespace; the nearest
                # readable group is then the top of the mount.
                within = path == mounted or path.startswith(mounted.rstrip("/") + "/")
                folder = top / inside.lstrip("/") if within and ".." not in path else top
                yield folder
                while folder != top:
                    folder = folder.parent
                    yield folder


def _mounts_of(kind: str, option: str | None, mounts: list[str]) -> Iterator[tuple[str, str]]:
    """The root within the file system, and the place, of each mount of control groups."""
    for line in mounts:
        own, _, rest = line.partition(" - ")
        fields, described = own.split(), rest.split()
        if len(fields) < 5 or len(described) < 3 or described[0] != kind:
            continue
        if option is None or option in described[-1].split(","):
            yield _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _quota(folder: Path) -> float | None:
    """A group's own limit, in CPUs."""
    try:
        if (folder / "cpu.max").exists():  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()  # -1: no limit
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota.isdigit() and int(quota) else None
    except (OSError, ValueError):
        return None


class ProcessorWatch:
    """How many of this process's CPUs other programs leave to it."""

    __slots__ = ("_cpus", "_own", "_ticks")

    def __init__(self) -> None:
        self._cpus = allowed_cpus()
        self._own = time.process_time()
        self._ticks = self._read()

    @property
    def cpus(self) -> int:
        """CPUs that this process may use."""
        return len(self._cpus)

    @property
    def works(self) -> bool:
        """Whether this system tells what others use."""
        return self._ticks is not None

    def spare(self) -> float | None:
        """CPUs that others left on average since the last call; None: unknown on this system.

        This process's own use counts as left; time that a hypervisor gave to others does not.
        """
        before, self._ticks = self._ticks, self._read()
        own_before, self._own = self._own, time.process_time()
        if before is None or self._ticks is None:
            return None
        total, busy = (now - then for now, then in zip(self._ticks, before, strict=True))
        if total <= 0:
            return None
        own = (self._own - own_before) * _TICKS_PER_SECOND
        others = max(0.0, busy - own) / total * len(self._cpus)
        return max(0.0, len(self._cpus) - others)

    def _read(self) -> tuple[int, int] | None:
        """Clock ticks of all CPUs together, and those in which they were busy."""
        total = busy = 0
        try:
            for line in Path("/proc/stat").read_text().splitlines():
                if line.startswith("cpu") and line[3].isdigit():
                    name, *numbers = line.split()
                    if int(name[3:]) in self._cpus:
                        # user nice system idle iowait irq softirq steal; guest is part of user
                        ticks = [int(number) for number in numbers[:8]]
                        total += sum(ticks)
                        busy += sum(ticks) - sum(ticks[3:5])
        except (OSError, ValueError):
            return None
        return (total, busy) if total else None


_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
