"""The guard over the store's filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlconsole.services.disk import DiskGuard, DiskUsage, usage_of
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


def test_without_inodes_it_waits() -> None:
    assert DiskGuard(GuardSettings()).look(usage(1, inodes_free=0)) == "no inodes left"


def test_a_folder_that_does_not_exist_yet_is_on_the_filesystem_above_it(tmp_path: Path) -> None:
    assert usage_of(tmp_path / "a/b/c").total_bytes == usage_of(tmp_path).total_bytes > 0
    assert 0 <= usage_of(tmp_path).used_percent <= 100
