"""The row of the ledger: the whole worker with it and without it, on pictures that come at once.

The list has captions and columns, so that a line of the ledger is as long as in earnest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench.contenders import Result
from bench.fetch_rig import LOOPBACK, Bench, Errand, by_cpu, by_speed, compared, in_turns, timed
from bench.rig import Ratio, RigError
from bench.rows import Row
from bench.webs import make_pictures, nginx, picture_path
from dlconsole.settings import FetchSettings

_FLOOR: Final = 0.95
_WHAT: Final = "worker with ledger / without, on tmpfs"
_CONCURRENCY: Final = 64


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    count = bench.args.pictures
    if not bench.pictures.exists():
        make_pictures(bench.pictures)
    with ExitStack() as stack:
        port = stack.enter_context(nginx(bench.pictures, bench.cores.server))
        urls = bench.url_file("ledger", [f"http://127.0.0.1:{port}{picture_path(i)}" for i in range(count)])
        fetch = FetchSettings(allow_networks=LOOPBACK, per_host=_CONCURRENCY)
        listing = _listing(urls)
        errands = {
            who: Errand(urls, count, _CONCURRENCY, fetch, fed=listing, sections={"ledger": {"enabled": on}})
            for who, on in (("on", True), ("off", False))
        }
        _run(bench, errands["on"])  # the warm-up
        contenders = {who: partial(_run, bench, errand) for who, errand in errands.items()}
        runs = in_turns(contenders, bench.args.rounds)
    ratio = Ratio(_WHAT, by_speed(runs, "on", "off"), _FLOOR)
    cpu = Ratio("CPU an image, off / on", by_cpu(runs, "off", "on")).line()
    yield compared("ledger", ratio, runs, [cpu])


def _listing(urls: Path) -> Path:
    """The same URLs, as jsonl with a caption, an id and six more columns."""
    listing = urls.with_suffix(".jsonl")
    with listing.open("w", encoding="utf-8") as file:
        for number, url in enumerate(urls.read_text("utf-8").splitlines()):
            row = {
                "url": url,
                "caption": f"A red house by the sea, 日本, view {number} of 20 000",
                "id": number,
            }
            row |= {"width": 384, "height": 288, "license": "?", "nsfw": "UNLIKELY", "similarity": number / 7}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return listing


def _run(bench: Bench, errand: Errand) -> Result:
    """As `bench.worker`; and that the ledger has a line for each picture, or is not there."""
    with bench.running(errand, bench.memory, bench.cores.client) as running:
        result = timed(running, errand.count, errand.count, 0)
        bench.finish(running, errand)
        lines = [line for path in running.folder.rglob("ledger/*.jsonl") for line in path.open("rb")]
    wanted = errand.count if errand.sections["ledger"]["enabled"] else 0
    if len(lines) != wanted or any(b'"caption"' not in line for line in lines):
        raise RigError(f"the ledger has {len(lines):,} lines, not {wanted:,} with captions")
    return result
