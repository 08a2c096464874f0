"""Limits of containers, in files as the kernel writes them."""

import os

import psutil
import pytest

from jaxmnist.parallel import limits
from jaxmnist.parallel.seed_mapping import choose_mapping, shares_of_cores

GIB = 1 << 30
V2 = {"own": "0::/\n"}
NESTED = {"own": "0::/user.slice/job.scope\n"}
V1 = {"own": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 8 cores and 16 GiB, and files of cgroups."""
    memory = psutil.virtual_memory()._replace(available=16 * GIB)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")

    def write(files):
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return write


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 16 * GIB),
        ({**V2, "memory.max": "max\n"}, 16 * GIB),
        ({**V2, "memory.max": f"{2 * GIB}\n", "memory.current": f"{GIB}\n"}, GIB),
        (
            {
                **V2,
                "memory.max": f"{2 * GIB}",
                "memory.current": f"{GIB}",
                "memory.stat": f"anon 3\ninactive_file {GIB // 2}\n",
            },
            2 * GIB - GIB // 2,
        ),
        ({**NESTED, "user.slice/memory.max": f"{3 * GIB}"}, 3 * GIB),
        ({**NESTED, "user.slice/job.scope/memory.max": f"{GIB}", "memory.max": "max"}, GIB),
        ({**V1, "memory/docker/abc/memory.limit_in_bytes": f"{GIB}"}, GIB),
        ({**V1, "memory/memory.limit_in_bytes": f"{GIB}"}, GIB),  # the container's own view
        ({**V1, "memory/memory.limit_in_bytes": "9223372036854771712"}, 16 * GIB),
    ],
)
def test_memory_is_that_of_the_cgroup(machine, files, left):
    machine(files)
    assert limits.available_bytes() == left


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({**V2, "cpu.max": "max 100000\n"}, 8),
        ({**V2, "cpu.max": "200000 100000\n"}, 2),
        ({**V2, "cpu.max": "50000 100000\n"}, 1),
        ({**V2, "cpu.max": "1600000 100000\n"}, 8),
        ({**NESTED, "user.slice/job.scope/cpu.max": "350000 100000\n"}, 3),
        ({**V1, "cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({**V1, "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_of_the_quota(machine, files, count):
    machine(files)
    found = limits.cores()
    assert len(found) == count
    assert set(found) <= set(range(8))


def test_a_small_container_trains_seeds_in_one_process(machine):
    machine({**V2, "memory.max": f"{900 << 20}"})
    assert shares_of_cores(4) == [list(range(8))]
    assert choose_mapping("auto", 4) == "loop"
