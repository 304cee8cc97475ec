"""What the rows of feed.py share: lists to feed, a queue to feed them into, and contenders in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import redis

from bench.rig import RigError, progress
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.settings import Settings

DATASET: Final = "bench"
KEYS: Final = Keys(DATASET)
BLOCK: Final = 2000
"""Tasks in a push, ours and the others'."""
REAL_URLS: Final = Path(__file__).parents[2] / "shared/data/urls/laion-10k.txt"


def feeder(path: Path, settings: Settings) -> int:
    """Ours; how many tasks it fed."""
    return feed(path, settings).fed


def write_urls(path: Path, count: int, real: Path) -> str:
    """A list of `count` different URLs that look like real ones; what they were made of."""
    lines, made_of = urls_like(real)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, len(lines)):
            block = lines[: count - start]
            file.write("".join(f"{url}{'&' if '?' in url else '?'}n={start}\n" for url in block))
    return made_of


def urls_like(real: Path) -> tuple[list[str], str]:
    """Some thousand URLs to make lists of, and where they come from."""
    if real.is_file():
        lines = [line for line in real.read_text(encoding="utf-8").splitlines() if line]
        return lines, f"{len(lines):,} real URLs, each with a suffix of its own"
    return list(_made_up(10_000)), "made-up URLs"


def _made_up(count: int) -> Iterator[str]:
    for number in range(count):
        digest = sha256(str(number).encode()).hexdigest()
        host = f"{('images', 'cdn', 'static', 'i')[number % 4]}{number % 977}.example-{digest[:6]}.com"
        yield f"http{'s' if number % 3 else ''}://{host}/wp-content/uploads/{digest[6 : 6 + number % 40]}/{number}.jpg"


def image_path(digest: str) -> str:
    """Where the feeder puts an image, by default."""
    return f"/{DATASET}/images/{digest[:2]}/{digest[2:4]}/{digest}.jpg"


def empty(client: redis.Redis) -> None:
    """The queue, and what the feeder remembers of its lists."""
    client.delete(KEYS.task, KEYS.fed, KEYS.feed)


def same_items(contenders: dict[str, Callable[[], int]], client: redis.Redis) -> None:
    """Raises RigError where the first and the last item of one are other ones than those of another."""
    found = {}
    for name, contender in contenders.items():
        contender()
        found[name] = client.lrange(KEYS.task, -1, -1) + client.lrange(KEYS.task, 0, 0)
        empty(client)
    if len({tuple(items) for items in found.values()}) > 1:
        raise RigError(f"the contenders do not push the same: {found}")


def in_turns(
    contenders: dict[str, Callable[[], int]], client: redis.Redis, rounds: int
) -> dict[str, list[float]]:
    """Tasks a second of every contender, once a round, in turns: A B C, C B A, …"""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(_speed(contenders[name], client))
        said = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items())
        progress(f"  round {number + 1} of {rounds}: {said} tasks/s")
    return found


def _speed(contender: Callable[[], int], client: redis.Redis) -> float:
    """On an empty queue; that all tasks lie there is checked."""
    gc.collect()
    started = time.perf_counter()
    fed = contender()
    seconds = time.perf_counter() - started
    queued = client.llen(KEYS.task)
    empty(client)
    if queued != fed:
        raise RigError(f"fed {fed:,} tasks, but {queued:,} are queued")
    return fed / seconds
