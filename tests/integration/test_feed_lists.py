"""Lists with columns → queue, on a real Redis: gone on with, left out, shown, their bad rows written down."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from integration_support import KEYS

from dlconsole.cli import main
from dlconsole.errors import FeedError
from dlconsole.services.feed_report import FeedReport, Position
from dlconsole.services.feed_run import FeedRun
from dlconsole.services.feeder import feed
from dlconsole.settings import Settings

ROWS = 700


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return settings_for(redis_url)


def settings_for(redis_url: str, **more: Any) -> Settings:
    return Settings.model_validate({"redis": redis_url, "dataset": "ds", "feed": {"block": 100, **more}})


def url(number: int) -> str:
    return f"http://h{number % 7}.example/{number}.jpg"


def caption(number: int) -> str:
    return f'caption, "{number}" of\n日本'


def is_bad(number: int) -> bool:
    return number % 50 == 7


def write_list(name: str) -> Path:
    """ROWS rows, some of them without a URL."""
    urls = ["" if is_bad(number) else url(number) for number in range(ROWS)]
    captions = [caption(number) for number in range(ROWS)]
    path = Path(name)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"URL": urls, "TEXT": captions}), path, row_group_size=150)
    elif ".csv" in name:
        quoted = [text.replace('"', '""') for text in captions]
        lines = "".join(f'{u},"{text}"\r\n' for u, text in zip(urls, quoted, strict=True))
        data = f"URL,TEXT\r\n{lines}".encode()
        path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    else:
        rows = [{"URL": u, "TEXT": text} for u, text in zip(urls, captions, strict=True)]
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, "utf-8")
    return path


def queued(client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(item) for item in reversed(client.lrange(KEYS.task, 0, -1))]


def assert_each_row_was_fed_once(client: redis.Redis) -> None:
    items = queued(client)
    numbers = [number for number in range(ROWS) if not is_bad(number)]
    assert [item["img_url"] for item in items] == [url(number) for number in numbers]
    assert [item["caption"] for item in items] == [caption(number) for number in numbers]
    assert [int(item["key"].partition("-")[2]) for item in items] == [number + 1 for number in numbers]
    assert int(client.get(KEYS.fed) or 0) == len(numbers)


def rejected(folder: Path = Path("feed_rejects")) -> list[int]:
    (path,) = folder.iterdir()
    return [json.loads(line)["row"] for line in path.read_bytes().splitlines()]


def stop_after(blocks: int) -> Callable[[FeedReport], bool]:
    seen = 0

    def on_progress(_report: FeedReport) -> bool:
        nonlocal seen
        seen += 1
        return seen < blocks

    return on_progress


NAMES = ["l.csv", "l.csv.gz", "l.json", "l.jsonl", "l.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_list_that_is_stopped_goes_on_exactly_there_and_is_done_once(
    name: str, settings: Settings, redis_client: redis.Redis
) -> None:
    path = write_list(name)
    first = feed(path, settings, on_progress=stop_after(3))
    assert first.stopped and 0 < first.lines < ROWS
    path = path.rename(f"moved-{name}")
    second = feed(path, settings)
    assert (second.lines, second.fed_before + second.fed) == (ROWS, ROWS - ROWS // 50)
    assert first.bad + second.bad == ROWS // 50
    assert_each_row_was_fed_once(redis_client)
    assert rejected() == [number + 1 for number in range(ROWS) if is_bad(number)]
    assert feed(path, settings).fed_as.endswith(name)
    assert feed(path, settings, again=True).fed == ROWS - ROWS // 50
    assert feed(path, settings).fed == 0


@pytest.mark.parametrize("name", ["l.csv.gz", "l.parquet"])
def test_a_list_is_marked_done_and_left_out_where_redis_does_not_know_it(
    name: str, settings: Settings, redis_client: redis.Redis
) -> None:
    path = write_list(name)
    assert FeedRun(settings).run([path])
    assert settings.feed.done_file.read_text() == f"{path.absolute()}\n"
    redis_client.flushall()
    run = FeedRun(settings)
    assert run.run([path]) and run.reports[path].listed


def test_a_list_that_gives_no_row_is_said_and_not_marked_as_done(settings: Settings) -> None:
    path, said = Path("deep.json"), list[str]()
    path.write_bytes(b"[" * 10_000)
    for _ in range(2):
        run = FeedRun(settings, say=said.append)
        assert run.run([path]) and not run.reports[path].fed_as
    assert len([text for text in said if "deep.json: not one row was found" in text]) == 2
    assert not settings.feed.done_file.exists()
    Path("names.csv").write_text("url,caption\n")
    assert FeedRun(settings, say=said.append).run([Path("names.csv")])
    assert settings.feed.done_file.read_text() == f"{Path('names.csv').absolute()}\n"
    assert "names.csv: not" not in "".join(said)


def test_positions_of_older_versions_are_understood(settings: Settings, redis_client: redis.Redis) -> None:
    path = Path("l.txt")
    path.write_text("".join(f"{url(number)}\n" for number in range(5)))
    list_id = feed(path, settings).list_id
    for offset, fed in ((path.stat().st_size, 0), (len(url(0)) + 1, 4)):
        old = {
            "path": "/old",
            "turn": 1,
            "line": 1,
            "offset": offset,
            "fed": 1,
            "not_http": 0,
            "blank": 0,
            "bad": 0,
        }
        redis_client.hset(KEYS.feed, list_id, json.dumps(old))
        assert feed(path, settings).fed == fed
    position = msgspec.json.decode(redis_client.hget(KEYS.feed, list_id), type=Position)
    assert position.is_complete(path.stat().st_size) and not position.is_complete(None)


def test_the_same_bytes_in_another_format_are_another_list(redis_url: str, redis_client: redis.Redis) -> None:
    path = write_list("l.csv")
    assert feed(path, settings_for(redis_url)).fed
    assert feed(path, settings_for(redis_url, format="txt")).fed_before == 0


def test_bad_rows_are_written_down_once_whatever_is_cut_off(
    settings: Settings, redis_client: redis.Redis
) -> None:
    path = write_list("l.csv")
    feed(path, settings, on_progress=stop_after(3))
    (file,) = Path("feed_rejects").iterdir()
    with file.open("a") as written:  # as a feeder leaves it that was killed
        written.write('{"row":699,"why":"x","data":null}\n{"row":6')
    report = feed(path, settings)
    assert rejected() == [number + 1 for number in range(ROWS) if is_bad(number)]
    assert report.rejects == str(file.absolute())
    assert json.loads(file.read_bytes().splitlines()[0]) == {
        "row": 8, "why": "has no URL", "data": {"URL": "", "TEXT": caption(7)}
    }  # fmt: skip
    feed(path, settings, again=True)
    assert len(rejected()) == ROWS // 50


def test_bad_rows_that_cannot_be_written_down_are_a_warning(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_list("l.csv")
    Path("feed_rejects").write_text("")
    assert main(["feed", str(path), "--redis", redis_url, "--dataset", "ds"]) == 0
    assert "warning: bad rows are not written down" in capsys.readouterr().err
    assert_each_row_was_fed_once(redis_client)


# -- the command ----------------------------------------------------------------------------------


def test_a_folder_is_fed_and_its_columns_are_said_once(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lists/deep").mkdir(parents=True)
    for number, name in enumerate(("lists/1.csv", "lists/2.csv", "lists/deep/3.csv")):
        Path(name).write_text(f"url,caption,width\n{url(number)},c{number},7\n")
    Path("lists/README.md").touch()
    words = ["feed", "lists", "--redis", redis_url, "--dataset", "ds"]
    assert main([*words, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("url=url caption=caption, kept width") == 3
    assert url(0) in captured.out and "The first tasks" in captured.out
    assert redis_client.keys() == []
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == "dlconsole: lists/1.csv: url=url caption=caption, kept width\n"
    assert [item["caption"] for item in queued(redis_client)] == ["c0", "c1", "c2"]
    assert main([*words, "--json", "--again", "--keep", "none", "--caption", "width"]) == 0
    found = json.loads(capsys.readouterr().out)["files"][0]["columns"]
    assert (found["caption"], found["kept"], found["left_out"]) == ("width", [], ["caption"])


def test_a_column_that_is_not_there_ends_it_before_anything_is_fed(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_list("l.csv")
    assert main(["feed", str(path), "--id", "uid", "--redis", redis_url, "--dataset", "ds"]) == 1
    assert capsys.readouterr().err == "dlconsole: l.csv: has no column 'uid' (--id); its columns: URL, TEXT\n"
    assert redis_client.keys() == []


def test_standard_input_has_columns_too_and_skips_rows(redis_url: str, redis_client: redis.Redis) -> None:
    words = ["-m", "dlconsole", "feed", "-", "--format", "csv", "--redis", redis_url, "--dataset", "ds"]
    data = "".join(f'{url(number)},"c\n{number}"\n' for number in range(5))
    for skip, fed in (("0", 5), ("3", 2)):
        done = subprocess.run(
            [sys.executable, *words, "--skip", skip],
            input=f"url,caption\n{data}".encode(),
            capture_output=True,
            check=False,
        )
        assert f"fed {fed} tasks" in done.stdout.decode(), done
    assert [item["caption"] for item in queued(redis_client)] == [f"c\n{n}" for n in (0, 1, 2, 3, 4, 3, 4)]
    assert redis_client.exists(KEYS.feed) == 0


def test_too_large_values_are_said_by_column(
    redis_url: str, redis_client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("l.jsonl").write_text(
        "".join(json.dumps({"url": url(n), "html": "x" * 2000}) + "\n" for n in range(3))
    )
    assert main(["feed", "l.jsonl", "--redis", redis_url, "--dataset", "ds"]) == 0
    assert "column html: 3 values left out" in capsys.readouterr().out
    assert "columns" not in queued(redis_client)[0]


def test_a_damaged_list_keeps_what_came_before(settings: Settings, redis_client: redis.Redis) -> None:
    path = write_list("l.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FeedError, match=r"l\.csv\.gz: ends in the middle"):
        feed(path, settings)
    assert redis_client.llen(KEYS.task) > 500
