"""How many cores this process may use; importing this loads no torch."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores() -> float:
    """Return the cores that affinity and the limits of control groups (version 2) leave, or part of one."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([float(count), *_quotas()])


def whole_cores() -> int:
    """Return the whole cores of them, at least one."""
    return max(1, int(usable_cores()))


def _quotas() -> Iterator[float]:
    """Yield the limit of each group that this process is in, where there is one."""
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.exists() else []
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    own = _CGROUP / names[0] if names and ".." not in names[0] else _CGROUP
    for group in (own, *own.parents):
        if not group.is_relative_to(_CGROUP):
            return
        file = group / "cpu.max"
        share, _, period = file.read_text().partition(" ") if file.is_file() else ("max", "", "")
        if share != "max":
            yield int(share) / int(period)
