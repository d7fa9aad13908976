"""The cores that a process may use: affinity and quotas, real ones and trees of files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cllm.engine.machine.processors import (
    ProcessorWatch,
    allowed_cpus,
    cpu_quota,
    physical_cores,
    within_quota,
)

ASK = "from cllm.engine.machine.processors import *; print(hardware_threads(), physical_cores())"


def ask(before: str = "") -> list[int]:
    """hardware_threads() and physical_cores() in a child, after some code of its own."""
    code = f"import os\n{before}\n{ASK}"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(word) for word in child.stdout.split()]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_affinity_is_respected() -> None:
    one = min(allowed_cpus())
    assert ask(f"os.sched_setaffinity(0, {{{one}}})") == [1, 1]


@pytest.mark.parametrize(
    ("count", "quota", "threads"),
    [(8, None, 8), (8, 0.2, 1), (8, 1.0, 1), (8, 1.4, 1), (8, 1.5, 2), (8, 2.5, 3), (2, 16.0, 2)],
)
def test_a_quota_is_rounded_to_whole_threads(count: int, quota: float, threads: int) -> None:
    assert within_quota(count, quota) == threads


class Tree:
    """Files as /proc and control groups show them, in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        self._mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
        self.groups("")

    def groups(self, lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text(lines)

    def mount(self, point: str, kind: str, options: str = "rw", top: str = "/") -> None:
        escaped = point.replace(" ", "\\040")
        self._mounts += f"30 22 0:26 {top} {escaped} rw,nosuid shared:4 - {kind} none {options}\n"
        (self.root / "proc/self/mountinfo").write_text(self._mounts)

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def quota(self) -> float | None:
        return cpu_quota(self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_control_groups_there_is_no_quota(tree: Tree) -> None:
    assert tree.quota() is None
    assert cpu_quota(tree.root / "nowhere") is None


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000\n", 0.5), ("damaged", None)],
)
def test_version_2(tree: Tree, text: str, quota: float | None) -> None:
    tree.groups("0::/user.slice/app.service\n")
    tree.mount("/sys/fs/cgroup", "cgroup2")
    tree.write("/sys/fs/cgroup/user.slice/app.service/cpu.max", text)
    assert tree.quota() == quota


def test_the_least_quota_of_nested_groups_counts(tree: Tree) -> None:
    tree.groups("0::/a/b/c\n")
    tree.mount("/sys/fs/cgroup", "cgroup2")
    tree.write("/sys/fs/cgroup/a/cpu.max", "200000 100000\n")
    tree.write("/sys/fs/cgroup/a/b/cpu.max", "300000 100000\n")
    tree.write("/sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n")
    tree.write("/sys/fs/cgroup/other/cpu.max", "10000 100000\n")
    assert tree.quota() == 2.0


def test_a_container_with_a_namespace_sees_its_own_limit_at_the_top(tree: Tree) -> None:
    tree.groups("0::/\n")
    tree.mount("/sys/fs/cgroup", "cgroup2")
    tree.write("/sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert tree.quota() == 4.0


def test_a_group_of_another_namespace_is_looked_up_at_the_top(tree: Tree) -> None:
    tree.groups("0::/../../other\n")
    tree.mount("/sys/fs/cgroup", "cgroup2")
    tree.write("/sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert tree.quota() == 4.0


@pytest.mark.parametrize(("quota", "found"), [("-1", None), ("150000", 1.5)])
def test_version_1(tree: Tree, quota: str, found: float | None) -> None:
    tree.groups("5:cpuacct,cpu:/jobs/7\n3:cpuset:/jobs/8\n0::/\n")
    tree.mount("/sys/fs/cgroup/cpu set", "cgroup", "rw,cpuset")
    tree.mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    tree.write("/sys/fs/cgroup/cpu,cpuacct/jobs/7/cpu.cfs_quota_us", f"{quota}\n")
    tree.write("/sys/fs/cgroup/cpu,cpuacct/jobs/7/cpu.cfs_period_us", "100000\n")
    tree.write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    tree.write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert tree.quota() == found


def test_version_1_where_a_container_mounts_its_group_alone(tree: Tree) -> None:
    tree.groups("5:cpu:/docker/ab12\n")
    tree.mount("/sys/fs/cgroup/my cpu", "cgroup", "rw,cpu", top="/docker/ab12")
    tree.write("/sys/fs/cgroup/my cpu/cpu.cfs_quota_us", "250000\n")
    tree.write("/sys/fs/cgroup/my cpu/cpu.cfs_period_us", "100000\n")
    assert tree.quota() == 2.5


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A new control group of this machine, with a quota of half a CPU."""
    found = [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")]
    top = next((f for f in found if (f / "cgroup.procs").exists()), None)
    if top is None or not os.access(top / "cgroup.procs", os.W_OK):
        pytest.skip("no control group can be made here")
    group = top / f"cllm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text("50000")
        elif (group / "cpu.max").exists():
            (group / "cpu.max").write_text("50000 100000")
        else:
            pytest.skip("the cpu controller is not in use here")
        yield group
    finally:
        group.rmdir()


def test_the_quota_of_a_real_control_group(real_group: Path) -> None:
    join = f"open({str(real_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    assert ask(join) == [1, 1]


def test_other_programs_leave_less_of_the_cores() -> None:
    watch = ProcessorWatch()
    if watch.spare() is None and not Path("/proc/stat").exists():
        pytest.skip("needs /proc/stat")
    assert watch.cpus == len(allowed_cpus())
    cpu = min(allowed_cpus())
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            watch.spare()
            used = os.times()
            while os.times().elapsed - used.elapsed < 0.5:
                time.process_time()  # this process computes as well, which counts as left
            spare = watch.spare()
        finally:
            child.kill()
    assert spare is not None
    assert 0.0 <= spare < watch.cpus - 0.2


def test_cores_are_found_here() -> None:
    assert 1 <= physical_cores() <= len(allowed_cpus())
