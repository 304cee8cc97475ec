"""Writes docs/overview.svg, the picture in the README: python scripts/screenshots.py

The fleet is the one that the tests look at, its clock stands still: the same code gives the same file.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "overview.svg"
SIZE = (110, 36)

sys.path.insert(0, str(ROOT / "tests" / "console"))


async def picture() -> str:
    """The overview as SVG."""
    from fleets import console, settled, usual_fleet  # noqa: PLC0415  (needs the path above)

    app = console(usual_fleet(), context="prod", console={"refresh_s": 2})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        svg = app.export_screenshot(title="dlconsole")
    # One name for the classes instead of a checksum, and spaces that every viewer keeps.
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    return svg.replace("<text ", '<text xml:space="preserve" ')


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(asyncio.run(picture()))
