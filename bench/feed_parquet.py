"""The row of Parquet: a list with 12 columns as LAION's have them, all of which travel along.

Beside the feeder what one would write with pyarrow at hand: `to_pylist` of a batch, the standard library's
`json.dumps` of each row with the same keys, one LPUSH a batch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from bench.feed_rig import BLOCK, DATASET, KEYS, empty, feeder, image_path, in_turns, urls_like
from bench.fetch_rig import Bench
from bench.rig import NotHere, Ratio, RigError, on_core, paired, speeds
from bench.rows import Row
from dlconsole.services.connection import connect
from dlconsole.settings import Settings

_ROWS_PER_S: Final = 60_000
_WHAT: Final = "Parquet, 12 columns kept / 60,000 rows a second"
_BESIDE: Final = "feeder / to_pylist, json.dumps, LPUSH in blocks"
_WORDS: Final = ("a", "red", "old", "photo", "by", "with", "for", "vintage", "Größe", "日本", "&", "set")
_PIECE: Final = 50_000
"""Rows made, and written, at once."""


def write_parquet(path: Path, count: int, real: Path) -> str:
    """`count` rows of twelve columns; what they were made of."""
    import pyarrow as pa
    from pyarrow import parquet

    urls, made_of = urls_like(real)
    chance, writer = random.Random(5), None
    for start in range(0, count, _PIECE):
        table = pa.table(_columns(range(start, min(count, start + _PIECE)), urls, chance))
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return made_of


def _columns(rows: range, urls: list[str], chance: random.Random) -> dict[str, list[Any]]:
    return {
        "SAMPLE_ID": [n * 1_000_003 for n in rows],
        "URL": [f"{urls[n % len(urls)]}#{n // len(urls)}" for n in rows],
        "TEXT": [" ".join(chance.choices(_WORDS, k=chance.randint(3, 20))) for _ in rows],
        "HEIGHT": [chance.randint(64, 4000) for _ in rows],
        "WIDTH": [chance.randint(64, 4000) for _ in rows],
        "LICENSE": [chance.choice(("?", "CC-BY", None)) for _ in rows],
        "NSFW": [chance.choice(("UNLIKELY", "UNSURE", "NSFW")) for _ in rows],
        "similarity": [chance.random() for _ in rows],
        "hash": [chance.getrandbits(63) for _ in rows],
        "punsafe": [chance.random() for _ in rows],
        "pwatermark": [chance.random() for _ in rows],
        "LANGUAGE": [chance.choice(("en", "fr", "zh")) for _ in rows],
    }


def plain(path: Path, settings: Settings) -> int:
    """The obvious way. Nothing is checked, counted or gone on with."""
    from pyarrow import parquet

    fed = 0
    with connect(settings.redis, name="bench") as client, parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(BLOCK):
            items = [json.dumps(_item(row, fed + i)) for i, row in enumerate(batch.to_pylist(), 1)]
            client.lpush(KEYS.task, *items)
            fed += len(items)
    return fed


def _item(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The same keys as the feeder's."""
    url, caption, identity = row.pop("URL"), row.pop("TEXT"), row.pop("SAMPLE_ID")
    path = image_path(sha256(url.encode()).hexdigest())
    item = {"img_path": path, "img_url": url, "key": f"00000000-{number}", "caption": caption, "id": identity}
    return item | {"columns": row}


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    try:
        import pyarrow as pa
    except ImportError:
        raise NotHere("no pyarrow here: pip install 'dlconsole[parquet]'") from None
    args, path = bench.args, bench.memory / "list.parquet"
    made_of = write_parquet(path, args.rows, args.urls)
    few = bench.memory / "few.parquet"
    write_parquet(few, BLOCK, args.urls)
    settings = Settings.model_validate(
        {"redis": bench.redis_url, "dataset": DATASET, "feed": {"keep": "all"}}
    )
    with ExitStack() as stack:
        client = stack.enter_context(connect(bench.redis_url, name="bench"))
        stack.enter_context(on_core(bench.cores.client))
        _check(few, settings, client)
        contenders = {"feeder": partial(feeder, path, settings), "plain": partial(plain, path, settings)}
        found = in_turns(contenders, client, args.rounds)
    path.unlink()
    ratio = Ratio(_WHAT, tuple(value / _ROWS_PER_S for value in found["feeder"]), 1.0)
    beside = Ratio(_BESIDE, paired(found["feeder"], found["plain"]))
    lines = [speeds(who, values, "rows/s") for who, values in found.items()]
    note = f"{args.rows:,} rows of {made_of}; pyarrow {pa.__version__}"
    figures = {"rows_per_s": found, _BESIDE: beside.to_json()}
    yield Row("parquet", _WHAT, ratio, lines=(*lines, beside.line(), note), figures=figures)


def _check(few: Path, settings: Settings, client: Any) -> None:
    """Raises RigError where the feeder's items say anything else than the others'. Also the warm-up."""
    found = []
    for contender in (feeder, plain):
        contender(few, settings)
        items = [json.loads(raw) for raw in client.lrange(KEYS.task, 0, -1)]
        found.append([item | {"key": item["key"].partition("-")[2]} for item in items])
        empty(client)
    for ours, theirs in zip(*(map(_without_nulls, items) for items in found), strict=True):
        wrong = {name: ours.get(name) for name in ours | theirs if ours.get(name) != theirs.get(name)}
        if wrong:
            wanted = {name: theirs.get(name) for name in wrong}
            raise RigError(f"the feeder's item has {wrong}, and should have {wanted}")


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"columns": {name: value for name, value in item["columns"].items() if value is not None}}
