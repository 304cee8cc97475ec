"""The rows of plain text: a list of URLs, named by their SHA-256.

Beside the feeder the legacy way, one LPUSH a task, and the least that could do the work: a loop that hashes,
encodes and pushes blocks, and neither checks nor counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final

from bench.feed_rig import BLOCK, DATASET, KEYS, feeder, image_path, in_turns, same_items, write_urls
from bench.fetch_rig import Bench
from bench.rig import Ratio, on_core, paired, speeds
from bench.rows import Row
from dlconsole.services.connection import connect
from dlconsole.settings import Settings

_FLOORS: Final = {"legacy": 25.0, "bare": 0.7, "rate": 1.0}
_WHAT: Final = {
    "legacy": "feeder / one LPUSH a task",
    "bare": "feeder / bare loop of blocks",
    "rate": "feeder / 100,000 tasks a second",
}
_TASKS_PER_S: Final = 100_000


def legacy(urls: Path, settings: Settings, count: int) -> int:
    """One task, one call."""
    fed = 0
    with connect(settings.redis, name="bench") as client, urls.open(encoding="utf-8") as file:
        for line in islice(file, count):
            url = line.rstrip("\n")
            task = {"img_path": image_path(sha256(url.encode()).hexdigest()), "img_url": url}
            client.lpush(KEYS.task, json.dumps(task))
            fed += 1
    return fed


def bare(urls: Path, settings: Settings) -> int:
    """Nothing checked, nothing counted: hash, encode, push a block."""
    fed = 0
    form = b'{"img_path": "/%s/images/%%b/%%b/%%b.jpg", "img_url": "%%b"}' % DATASET.encode()
    with connect(settings.redis, name="bench") as client, urls.open("rb") as file:
        while block := list(islice(file, BLOCK)):
            items = []
            for line in block:
                url = line[:-1]
                name = sha256(url).hexdigest().encode()
                items.append(form % (name[:2], name[2:4], name, url))
            client.lpush(KEYS.task, *items)
            fed += len(items)
    return fed


def measure(bench: Bench, wanted: set[str]) -> Iterator[Row]:
    """The rows of `_WHAT` that are wanted. Raises RigError."""
    args, settings = bench.args, Settings(redis=bench.redis_url, dataset=DATASET)
    urls, few = bench.memory / "urls.txt", bench.memory / "few.txt"
    made_of = write_urls(urls, args.tasks, args.urls)
    write_urls(few, BLOCK, args.urls)
    with ExitStack() as stack:
        client = stack.enter_context(connect(bench.redis_url, name="bench"))
        stack.enter_context(on_core(bench.cores.client))
        same_items(  # also the warm-up
            {
                "feeder": partial(feeder, few, settings),
                "legacy": partial(legacy, few, settings, BLOCK),
                "bare": partial(bare, few, settings),
            },
            client,
        )
        contenders = {"feeder": partial(feeder, urls, settings)}
        if "legacy" in wanted:
            contenders["legacy"] = partial(legacy, urls, settings, args.legacy_tasks)
        if "bare" in wanted:
            contenders["bare"] = partial(bare, urls, settings)
        found = in_turns(contenders, client, args.rounds)
    urls.unlink()
    for name in _WHAT:
        if name in wanted:
            yield _row(name, found, f"{args.tasks:,} tasks of {made_of}")


def _row(name: str, found: dict[str, list[float]], note: str) -> Row:
    ours, theirs = found["feeder"], found.get(name, [_TASKS_PER_S] * len(found["feeder"]))
    shown = {who: values for who, values in found.items() if who in {"feeder", name}}
    lines = [speeds(who, values, "tasks/s") for who, values in shown.items()]
    ratio = Ratio(_WHAT[name], paired(ours, theirs), _FLOORS[name])
    return Row(name, ratio.name, ratio, lines=(*lines, note), figures={"tasks_per_s": shown})
