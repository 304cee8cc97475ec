"""Fleets to look at, a reader that answers with them, and a console whose clock stands still."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

from textual.pilot import Pilot

from dlconsole.app import DlconsoleApp
from dlconsole.model import (
    Counts,
    FleetSnapshot,
    HistoryPoint,
    HostStats,
    HostView,
    Rates,
    RedisInfo,
    SessionStats,
    SessionView,
)
from dlconsole.settings import Settings
from dlconsole.widgets.sheet import Sheet

AT_MS = 1_760_000_000_000
NOW_S = 5_000.0
TIB = 2**40
REDIS = RedisInfo("7.2.4", 3 * 2**30, 16 * 2**30, "noeviction", aof=True, clients=14)


class FakeReader:
    """Answers with what it was last told to: a snapshot, or an error to raise."""

    def __init__(self, answer: FleetSnapshot | Exception) -> None:
        self.answer = answer
        self.asked = 0
        self.closed = False

    async def read_snapshot(self) -> FleetSnapshot:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.closed = True


def console(
    answer: FleetSnapshot | Exception, on_quit_note: Callable[[], str] = str, **settings: object
) -> DlconsoleApp:
    """A console on a fake reader; it asks every quarter of a second, the least the settings allow."""
    values = {"dataset": "laion5b", "console": {"refresh_s": 0.25}, **settings}
    return DlconsoleApp(
        Settings(**values),
        FakeReader(answer),
        redis_name="redis://10.20.0.5:6379/0",
        on_quit_note=on_quit_note,
        now=lambda: NOW_S,
    )


def host(number: int, **changes: object) -> HostView:
    """One of our hosts, always the same for a number."""
    dice = random.Random(number)
    share = (0.41, 0.93, 0.58, 0.62, 0.97, 0.36, 0.71, 0.44)[number % 8]
    total = (4 if number % 3 else 8) * TIB
    ip = f"10.20.{number // 250}.{10 + number % 250}"
    view = HostView(
        name=f"dl-{number:02}.eu-west",
        ip=ip,
        disk_used_bytes=int(total * share),
        disk_total_bytes=total,
        seen_ms=AT_MS - 2_400,
        sessions=4,
        stored_per_s=118 + 40 * dice.random(),
        bytes_per_s=(9 + 4 * dice.random()) * 2**20,
        stats=HostStats(ip, AT_MS - 2_400, disk_total_bytes=total),
    )
    return replace(view, **changes)


def legacy_host(number: int) -> HostView:
    """A host that only the legacy disk hash knows."""
    ip = f"10.9.0.{number}"
    return HostView(ip, ip, (300 + 41 * number) * 2**30, None, None, 0, 0.0, 0.0)


def history(hours: float, stored: int, at_ms: int = AT_MS) -> tuple[HistoryPoint, ...]:
    """Points every 10 s that end at `stored`: hosts that join, a night's dip, a stop of ten minutes."""
    count, dice = int(hours * 360), random.Random(5)
    points, total = [], 0.0
    for i in range(count):
        rate = 420 if i < count * 0.14 else 860 if i < count * 0.33 else 1180
        rate *= 1 - 0.28 * math.exp(-(((i / count - 0.62) / 0.1) ** 2))
        if 0.455 < i / count < 0.485:
            rate = 0
        total += 10 * rate * (0.96 + 0.08 * dice.random())
        points.append(total)
    first_ms = at_ms - count * 10_000
    return tuple(
        HistoryPoint(first_ms + i * 10_000, stored - int(total - value), 0, 0)
        for i, value in enumerate(points)
    )


def usual_fleet(hosts: int = 8) -> FleetSnapshot:
    """A fleet at work: our hosts and two legacy ones, one disk nearly full, one host slow to report."""
    views = [host(i) for i in range(1, hosts + 1)]
    if hosts > 5:
        views[5] = replace(views[5], seen_ms=AT_MS - 75_000, sessions=3)
    sessions = tuple(
        SessionView(f"{view.name}-{i}", SessionStats(view.name, 100 + i, AT_MS - 9_000_000), 21_000)
        for view in views
        for i in range(view.sessions)
    )
    stored, failed, queued = 21_480_316, 2_906_158, 4_317_905
    return FleetSnapshot(
        dataset="laion5b",
        at_ms=AT_MS,
        counts=Counts(queued, 2_048, 18_230, stored, failed, 28_724_657, failed),
        rates=Rates(1_164.0, 158.0, 101.4 * 2**20, 0.8805, 3_281.0),
        hosts=(*views, legacy_host(7), legacy_host(12)),
        sessions=sessions,
        history=history(5.2, stored - 11_640),
        redis=REDIS,
    )


def legacy_fleet() -> FleetSnapshot:
    """A fleet that runs the old scripts only: counters and the disk hash."""
    return FleetSnapshot(
        dataset="laion5b",
        at_ms=AT_MS,
        counts=Counts(queued=912_400, stored=188_020, failed=24_113, error_list=24_113),
        rates=Rates(412.0, 57.0, None, 0.878, 1_945.0),
        hosts=tuple(legacy_host(i) for i in (3, 21, 100)),
        sessions=(),
        history=(),
        redis=replace(REDIS, aof=False, policy="allkeys-lru"),
    )


def empty_fleet() -> FleetSnapshot:
    """A Redis that nobody has used yet."""
    return FleetSnapshot("laion5b", AT_MS, Counts(), Rates(), (), (), (), REDIS)


async def until(pilot: Pilot[None], condition: Callable[[], object]) -> None:
    """Let the console run until the condition holds; the test's own time limit ends a vain wait."""
    while not condition():
        await pilot.pause(0.01)


async def settled(pilot: Pilot[None]) -> None:
    """Until the first answer, of whatever kind, is on the screen."""
    await until(pilot, lambda: "connecting" not in shown(pilot.app))
    await pilot.pause()


def sheets(app: object) -> list[Sheet]:
    """The visible parts of the console's base screen, from top to bottom."""
    assert isinstance(app, DlconsoleApp)
    found = app.screen_stack[0].query(Sheet)
    return sorted((s for s in found if s.display and s.size.height), key=lambda sheet: sheet.region.y)


def lines_of(sheet: Sheet) -> list[str]:
    """What a part shows, line by line, as Textual would paint it."""
    return [sheet.render_line(y).text for y in range(sheet.content_size.height)]


def shown(app: object) -> str:
    """Everything on the base screen."""
    return "\n".join(line.rstrip() for sheet in sheets(app) for line in lines_of(sheet))
