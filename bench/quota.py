"""Processes with a share of a core each: CPU quotas of Linux's control groups (version 1 or 2).

They need the right to make a control group, so root's, or a container's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.rig import NotHere

_MOUNTS: Final = Path("/proc/self/mountinfo")
_PERIOD_US: Final = 50_000
"""Long enough for a stretch of work with warm caches, short enough for many of them in a second."""
_EMPTY_S: Final = 5.0


@contextmanager
def quotas(pids: Sequence[int], share: float) -> Iterator[None]:
    """Each process, with its threads, gets at most `share` of a core. Raises NotHere where that cannot be."""
    with ExitStack() as stack:
        for pid in pids:
            group = stack.enter_context(_group(f"dlconsole-bench-{pid}"))
            quota_us = int(share * _PERIOD_US)
            try:
                if (group / "cpu.max").exists():
                    (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
                else:
                    (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                    (group / "cpu.cfs_quota_us").write_text(str(quota_us))
                (group / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                raise NotHere(f"no CPU quota can be set in {group}: {error.strerror}") from error
        yield


@contextmanager
def _group(name: str) -> Iterator[Path]:
    group = _controller() / name
    try:
        group.mkdir()
    except OSError as error:
        raise NotHere(f"no control group can be made in {group.parent}: {error.strerror}") from error
    try:
        yield group
    finally:
        deadline = time.monotonic() + _EMPTY_S
        while not _removed(group) and time.monotonic() < deadline:  # its process may be about to end
            time.sleep(0.05)


def _removed(group: Path) -> bool:
    try:
        os.rmdir(group)
    except OSError:
        return False
    return True


def _controller() -> Path:
    """The topmost group that rations CPU time."""
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        before, _, behind = line.partition(" - ")
        kind, _source, options = behind.split(" ", 2)
        place = Path(before.split(" ")[4])
        if kind == "cgroup" and "cpu" in options.split(","):
            return place
        if kind == "cgroup2" and "cpu" in _controllers(place):
            return place
    raise NotHere("no control group here rations CPU time")


def _controllers(place: Path) -> list[str]:
    try:
        return (place / "cgroup.subtree_control").read_text(encoding="utf-8").split()
    except OSError:  # of a group that is no root, and not ours to read
        return []
