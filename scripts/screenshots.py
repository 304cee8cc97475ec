"""Writes the pictures in the README: python scripts/screenshots.py [--demo]

docs/overview.svg is the fleet that the tests look at, with a clock that stands still: the same code gives
the same file. With --demo, docs/demo.svg as well: a real run of the demo, after a minute of it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from dlconsole.app import DlconsoleApp
from dlconsole.demo.run import Demo, DemoPlan
from dlconsole.services.fleet import FleetReader
from dlconsole.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SIZE = (110, 36)
DEMO_S = 62

sys.path.insert(0, str(ROOT / "tests" / "console"))


def tidy(svg: str) -> str:
    """One name for the classes instead of a checksum, and spaces that every viewer keeps."""
    return re.sub(r"terminal-\d+", "terminal", svg).replace("<text ", '<text xml:space="preserve" ')


async def overview() -> str:
    """The overview of a made-up fleet."""
    from fleets import console, settled, usual_fleet  # noqa: PLC0415  (needs the path above)

    app = console(usual_fleet(), context="prod", console={"refresh_s": 2})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        return tidy(app.export_screenshot(title="dlconsole"))


async def running_demo(demo: Demo) -> str:
    """The console over a demo that runs."""
    app = DlconsoleApp(demo.settings, FleetReader(demo.settings), redis_name="the demo's own Redis")
    async with app.run_test(size=SIZE) as pilot:
        await asyncio.sleep(DEMO_S)
        await pilot.pause()
        return tidy(app.export_screenshot(title="dlconsole demo"))


if __name__ == "__main__":
    (ROOT / "docs" / "overview.svg").write_text(asyncio.run(overview()))
    if "--demo" in sys.argv:
        with Demo(DemoPlan(tasks=12_000, concurrency=16, watched=True), Settings()) as demo, demo.tended():
            (ROOT / "docs" / "demo.svg").write_text(asyncio.run(running_demo(demo)))
