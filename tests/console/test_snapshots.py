"""How the console looks, held as pictures. After a deliberate change: `make snapshots`, then look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fleets import AT_MS, console, empty_fleet, legacy_fleet, settled, shown, until, usual_fleet
from textual.pilot import Pilot

from dlconsole.app import DlconsoleApp
from dlconsole.errors import RedisUnavailable
from dlconsole.model import Pause

GONE = RedisUnavailable("Redis at redis://10.20.0.5:6379/0 cannot be reached: Connection refused")
Compare = Callable[..., bool]


async def ready(pilot: Pilot[None]) -> None:
    await settled(pilot)


def long_lost(app: DlconsoleApp) -> None:
    """From the next failure on, the next try is always due in 4 s."""
    app._poller._failures = 9
    app._poller._chance = lambda: 0.0


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 15)], ids=lambda size: "x".join(map(str, size)))
def test_overview(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = console(usual_fleet(), context="prod", colour="red")
    assert snap_compare(app, terminal_size=size, run_before=ready)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda size: "x".join(map(str, size)))
def test_stale(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = console(usual_fleet())

    async def lose(pilot: Pilot[None]) -> None:
        await settled(pilot)
        assert isinstance(pilot.app, DlconsoleApp)
        poller = pilot.app._poller
        poller._reader.answer = GONE  # type: ignore[attr-defined]
        await until(pilot, lambda: "stale 0 s" in shown(pilot.app))
        poller._since_s -= 12
        long_lost(pilot.app)
        await until(pilot, lambda: "stale 12 s, next try in 4 s" in shown(pilot.app))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=lose)


def test_never_connected(snap_compare: Compare) -> None:
    app = console(GONE)
    long_lost(app)
    assert snap_compare(app, run_before=ready)


def test_empty_redis(snap_compare: Compare) -> None:
    assert snap_compare(console(empty_fleet()), run_before=ready)


def test_legacy_fleet(snap_compare: Compare) -> None:
    assert snap_compare(console(legacy_fleet()), run_before=ready)


def test_paused_read_only_and_frozen(snap_compare: Compare) -> None:
    paused = replace(usual_fleet(), pause=Pause("alice@dl-01", "swapping a disk", AT_MS))
    app = console(paused, read_only=True, context="staging", colour="green")

    async def freeze(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await pilot.press("space", "j", "j")

    assert snap_compare(app, run_before=freeze)


def test_help(snap_compare: Compare) -> None:
    assert snap_compare(console(usual_fleet()), run_before=ready, press=["question_mark"])


def test_a_thousand_hosts(snap_compare: Compare) -> None:
    async def end(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await pilot.press("G")

    assert snap_compare(console(usual_fleet(hosts=998)), run_before=end)


def test_without_colour(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(console(usual_fleet(), colour="red"), run_before=ready)
