"""Limits on memory and CPU time in this process's container, from its cgroups.

Neither `os.sched_getaffinity` nor psutil reports them. Source: Documentation/admin-guide/cgroup-v2
and cgroup-v1 of the Linux kernel.
"""

import math
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The limit file, the usage file and the key of reclaimable cache, in cgroups versions 2 and 1.
MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes() -> int:
    """Return the available memory in bytes: the minimum over the machine and its cgroups."""
    return min([psutil.virtual_memory().available, *_left_in_cgroups()])


def cores() -> list[int]:
    """Return the CPU cores that this process may use, within the CPU quota of its cgroups."""
    if hasattr(os, "sched_getaffinity"):
        mine = sorted(os.sched_getaffinity(0))
    else:
        mine = list(range(os.cpu_count() or 1))
    most = math.floor(min(_quotas(), default=len(mine)))
    if most >= len(mine):
        return mine
    # Containers share the cores. A random choice prevents them from all using the first ones.
    return sorted(random.SystemRandom().sample(mine, max(1, most)))


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of their parents."""
    yield from (CGROUPS, CGROUPS / controller)
    for line in _read(OWN).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has one tree per set of controllers.
        root = CGROUPS / controller if controllers else CGROUPS
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(1, len(parts) + 1):
            yield root.joinpath(*parts[:depth])


def _left_in_cgroups() -> Iterator[int]:
    for folder in _folders("memory"):
        for limit, use, cache in MEMORY:
            most = _number(_read(folder / limit))
            if most is not None:
                # The kernel frees file pages when memory runs short.
                found = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat"), re.M)
                used = (_number(_read(folder / use)) or 0) - int(found[1] if found else 0)
                yield max(0, int(most - max(0, used)))


def _quotas() -> Iterator[float]:
    """Yield the CPU quota of each cgroup, in cores."""
    for folder in _folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        time, each = _number(quota), _number(period)
        if time is not None and each and time > 0:
            yield time / each


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # the system may have no such cgroup, or none at all
        return ""


def _number(text: str) -> int | None:
    """Parse a whole number; return None for "max", "-1" and empty text."""
    return int(text) if text.isdigit() else None
