"""The guard over the store's filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlconsole.services.disk import DiskGuard, DiskUsage, existing, usage_of
from dlconsole.settings import GuardSettings

GIB = 2**30


def usage(used_gib: float, *, total_gib: float = 1000, inodes_free: int = 5) -> DiskUsage:
    used = int(used_gib * GIB)
    return DiskUsage(int(total_gib * GIB), used, int(total_gib * GIB) - used, 10, inodes_free)


@pytest.mark.parametrize(
    ("settings", "well", "full", "still_full", "well_again"),
    [
        (GuardSettings(max_used_bytes=500 * GIB), 494, 501, 497, 494),
        (GuardSettings(max_used_percent=90), 899, 901, 895, 889),
        (GuardSettings(min_free_bytes=100 * GIB), 898, 901, 899.5, 898),
    ],
)
def test_past_a_limit_it_waits_and_goes_on_only_below_the_margin(
    settings: GuardSettings, well: float, full: float, still_full: float, well_again: float
) -> None:
    guard = DiskGuard(settings)
    assert guard.look(usage(well)) == ""
    assert "guard." in guard.look(usage(full))
    assert guard.look(usage(still_full)) != ""
    assert guard.look(usage(well_again)) == ""
    assert guard.look(usage(well)) == ""


@pytest.mark.parametrize(
    "settings", [GuardSettings(max_used_bytes=GIB), GuardSettings(max_used_bytes=GIB, margin_percent=50)]
)
def test_a_low_limit_on_a_large_disk_can_be_met_again(settings: GuardSettings) -> None:
    guard = DiskGuard(settings)
    assert guard.look(usage(2, total_gib=16_000))
    assert guard.look(usage(0.4, total_gib=16_000)) == ""


def inodes(free: int, total: int) -> DiskUsage:
    return DiskUsage(GIB, 0, GIB, total, free)


@pytest.mark.parametrize(("total", "spare"), [(1000, 10), (1_000_000, 64)])
def test_without_inodes_it_waits_and_goes_on_only_with_a_margin_of_them(total: int, spare: int) -> None:
    guard = DiskGuard(GuardSettings())
    assert guard.look(inodes(spare + 1, total)) == ""
    assert guard.look(inodes(spare, total)).startswith(f"{spare} of {total:,} inodes free")
    assert guard.look(inodes(spare + 1, total))
    assert guard.look(inodes(spare + total // 100, total))
    assert guard.look(inodes(spare + total // 100 + 1, total)) == ""
    assert guard.look(inodes(spare + 1, total)) == ""


def test_a_filesystem_that_counts_no_inodes_is_not_without() -> None:
    assert DiskGuard(GuardSettings()).look(inodes(0, 0)) == ""


def test_the_margin_is_of_the_limit_that_was_passed() -> None:
    """Else a disk that stands close below another limit would wait for that one too."""
    guard = DiskGuard(GuardSettings(max_used_bytes=500 * GIB, max_used_percent=50.2, margin_percent=1))
    assert "max_used_bytes" in guard.look(usage(501))
    assert guard.look(usage(494.9, total_gib=990)) == ""


def test_a_low_limit_in_percent_can_be_met_again() -> None:
    guard = DiskGuard(GuardSettings(max_used_percent=10, margin_percent=20))
    assert guard.look(usage(101))
    assert guard.look(usage(81))
    assert guard.look(usage(79)) == ""


def test_a_folder_that_does_not_exist_yet_is_on_the_filesystem_above_it(tmp_path: Path) -> None:
    assert existing(tmp_path / "a/b/c") == tmp_path
    assert usage_of(tmp_path).total_bytes > 0
    assert 0 <= usage_of(tmp_path).used_percent <= 100
