"""What is fed, in which order, and when: limit, threshold, hosts that are spread, duplicates."""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count as numbers, pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from integration_support import KEYS

from dlconsole.cli import main
from dlconsole.errors import FeedError
from dlconsole.services import feeder
from dlconsole.services.bloom import Bloom, open_bloom
from dlconsole.services.feed_report import FeedReport, Position, parse_position
from dlconsole.services.feed_run import FeedRun
from dlconsole.settings import Settings


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(redis_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings with these options of feeding."""

    def make(**feed: object) -> Settings:
        options = {"block": 100, "done_file": tmp_path / "done.txt", "bloom_items": 100_000} | feed
        return Settings.model_validate(
            {"redis": redis_url, "dataset": "ds", "state_dir": tmp_path / "state", "feed": options}
        )

    return make


def queued(client: redis.Redis) -> list[str]:
    """The URLs in the queue, in the order in which workers take them."""
    return [json.loads(item)["img_url"] for item in reversed(client.lrange(KEYS.task, 0, -1))]


def urls(first: int, end: int, hosts: int = 7) -> list[str]:
    """Sorted by host."""
    return sorted(f"http://h{i % hosts}.example/{i}" for i in range(first, end))


def written(path: Path, lines: list[str]) -> Path:
    """As plain text or, by its name, as a table in which each URL has a caption."""
    if path.suffix == ".csv":
        path.write_text("url,caption\n" + "".join(f'{line},"c ""of"" it"\n' for line in lines))
    else:
        path.write_text("".join(f"{line}\n" for line in lines))
    return path


def stop_after(blocks: int) -> Callable[[FeedReport], bool]:
    seen = numbers(1)
    return lambda report: bool(report.waiting) or next(seen) < blocks


def position(client: redis.Redis) -> Position:
    (text,) = client.hvals(KEYS.feed)
    found = parse_position(text)
    assert found is not None
    return found


# -- --limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
@pytest.mark.parametrize("options", [{}, {"shuffle_hosts": True, "shuffle_window": 130}])
def test_a_limit_is_exact_and_a_larger_one_goes_on_there(
    name: str,
    options: dict[str, Any],
    made: Callable[..., Settings],
    redis_client: redis.Redis,
    tmp_path: Path,
) -> None:
    lines = urls(0, 500)
    path = written(tmp_path / name, [*lines[:40], "", *lines[40:]])
    settings, total = made(**options), 0
    for limit in (0, 1, 50, 50, 100, 237, 499):
        run = FeedRun(settings, limit=limit)
        assert run.run([path]) and run.is_limited
        assert len(queued(redis_client)) == int(redis_client.get(KEYS.fed) or 0) == limit
        assert not settings.feed.done_file.exists()
        total += sum(report.fed for report in run.reports.values())
    assert total == 499
    run = FeedRun(settings, limit=501)
    assert run.run([path]) and not run.is_limited
    assert Counter(queued(redis_client)) == Counter(lines)
    assert settings.feed.done_file.read_text() == f"{path}\n"
    assert position(redis_client).blank + position(redis_client).bad == 1


def test_a_limit_is_of_all_lists_whatever_their_order(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    a, b = written(tmp_path / "a", urls(0, 150)), written(tmp_path / "b", urls(150, 300))
    copy = written(tmp_path / "copy", urls(0, 150))
    runs = [([a, b], 180), ([b, a], 180), ([copy, a, b], 180), ([a, b], 150), ([b, a], 200)]
    for paths, limit in runs:
        assert FeedRun(made(), limit=limit).run(list(paths))
        assert len(queued(redis_client)) == max(180, limit)
    assert made().feed.done_file.read_text() == f"{a}\n"


def test_a_limit_on_standard_input_says_where_to_go_on(
    redis_url: str,
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = urls(0, 300)
    path = written(tmp_path / "a.csv", ["", *lines])
    words = ["feed", "-", "--format", "csv", "--redis", redis_url, "--dataset", "ds"]
    for skip, limit in ((0, 130), (131, 200)):
        with path.open("rb") as file:
            monkeypatch.setattr("sys.stdin", type("In", (), {"buffer": file})())
            assert main([*words, "--skip", str(skip), "--limit", str(limit)]) == 0
        if not skip:
            assert "go on with --skip 131" in capsys.readouterr().out
    assert queued(redis_client) == lines
    assert main([*words, "--limit", "5", "--shuffle-hosts"]) == 2
    assert main([*words, "--dedupe", "bloom"]) == 2


def test_the_command_says_that_the_limit_is_reached(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a", urls(0, 300))
    words = ["feed", str(path), "--redis", redis_url, "--dataset", "ds", "--limit", "120"]
    assert main([*words, "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["tasks"], result["limit_reached"]) == (120, True)
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "fed 120 tasks" in captured.out and "a larger one goes on exactly there" in captured.out
    assert "the limit of 120 tasks is reached" in captured.err
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fed"], result["limit_reached"], redis_client.llen(KEYS.task)) == (0, True, 120)
    assert main([*words[:-1], "-1"]) == 2


# -- --threshold -----------------------------------------------------------------------------------


def test_feeding_stops_above_the_threshold_and_goes_on_below(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "_ASK_DEPTH_S", 0.01)
    path = written(tmp_path / "a", urls(0, 3000))
    waited, deepest, taken = 0, 0, list[bytes]()

    def on_progress(report: FeedReport) -> bool:
        nonlocal waited, deepest
        deepest = max(deepest, redis_client.llen(KEYS.task))
        if report.waiting:
            waited += 1
            assert "more than 500" in report.waiting
            taken.extend(redis_client.rpop(KEYS.task, 150))
        return True

    report = feeder.feed(path, made(threshold=500), on_progress=on_progress)
    assert report.fed == 3000 and waited >= 10
    assert 500 < deepest <= 600
    assert len(taken) + redis_client.llen(KEYS.task) == 3000


def test_waiting_for_room_ends_when_asked_to_and_survives_a_lost_connection(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "_ASK_DEPTH_S", 0.01)
    path = written(tmp_path / "a", urls(0, 300))
    asked = numbers()

    def on_progress(report: FeedReport) -> bool:
        if "--threshold" not in report.waiting:
            return True
        step = next(asked)
        if step == 3:
            redis_client.client_kill_filter(_type="normal", skipme=True)
        return step < 30

    report = feeder.feed(path, made(threshold=120), on_progress=on_progress)
    assert report.stopped and report.fed == redis_client.llen(KEYS.task) == 200
    redis_client.delete(KEYS.task)
    assert feeder.feed(path, made(threshold=120)).fed == 100


# -- --shuffle-hosts -------------------------------------------------------------------------------


def test_neighbours_are_of_different_hosts(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    lines = urls(0, 2000)
    report = feeder.feed(written(tmp_path / "a", lines), made(shuffle_hosts=True, shuffle_window=2000))
    found = queued(redis_client)
    assert sorted(found) == lines and report.fed == 2000
    assert not any(a.split("/")[2] == b.split("/")[2] for a, b in pairwise(found))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(2, 20))]
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_whoever_goes_on_inside_a_window_goes_on_exactly_whatever_its_options(
    seed: int, name: str, made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    lines = urls(0, 3000, hosts=chance.choice([1, 5, 300]))
    broken = [*lines]
    for _ in range(20):  # blank, too long
        broken.insert(chance.randrange(3000), chance.choice(["", "http://h/" + "x" * 9000]))
    path = written(tmp_path / name, broken)
    reports = []
    for _ in range(25):
        options = {
            "block": chance.choice([1, 7, 100, 999]),
            "shuffle_hosts": chance.random() < 0.7,
            "shuffle_window": chance.choice([2, 50, 700, 5000]),
            "dedupe": chance.choice(["off", "off", "file"]),
        }
        limit = chance.choice([None, len(queued(redis_client)) + 10])
        reports.append(
            feeder.feed(
                path,
                made(**options),
                on_progress=stop_after(chance.randint(1, 6)),
                most=lambda _id, n=limit: n,
            )
        )
    reports.append(feeder.feed(path, made()))
    assert sorted(queued(redis_client)) == lines
    assert sum(report.fed for report in reports) == int(redis_client.get(KEYS.fed)) == 3000
    assert position(redis_client).bad + position(redis_client).blank == 20
    assert sum(report.bad + report.blank for report in reports) == 20


def test_a_stream_that_is_stopped_ends_behind_a_window(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Inside one there is no line to go on from."""
    os.mkfifo(tmp_path / "pipe")
    lines = urls(0, 3000)
    content = "".join(f"{line}\n" for line in lines)
    skip = 0
    for stop in (stop_after(2), lambda _report: True):
        writer = threading.Thread(target=written_to, args=(tmp_path / "pipe", content))
        writer.start()
        settings = made(shuffle_hosts=True, shuffle_window=500)
        report = feeder.feed(tmp_path / "pipe", settings, skip=skip, on_progress=stop)
        writer.join()
        skip = report.lines
        assert report.inside == 0 and sorted(queued(redis_client)) == lines[:skip]
    assert skip == 3000


def written_to(path: Path, content: str) -> None:
    """Whether its reader wants all of it or not."""
    with suppress(BrokenPipeError):
        path.write_text(content)


def test_a_position_of_an_older_version_is_gone_on_from(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", [f"http://a.example/{i:04}" for i in range(300)])
    report = feeder.feed(path, made(), on_progress=stop_after(1))
    old = {
        "path": str(path),
        "turn": 1,
        "line": 100,
        "offset": 2200,
        "fed": 100,
        "not_http": 0,
        "blank": 0,
        "bad": 0,
    }
    assert position(redis_client) == Position(**old)
    redis_client.hset(KEYS.feed, report.list_id, json.dumps(old))
    assert feeder.feed(path, made(shuffle_hosts=True, dedupe="file")).fed == 200
    assert len(set(queued(redis_client))) == 300


def test_going_on_inside_a_window_with_other_columns_is_refused(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", urls(0, 300))
    feeder.feed(path, made(shuffle_hosts=True), on_progress=stop_after(1))
    with pytest.raises(FeedError, match="with those that it had"):
        feeder.feed(path, made(max_url_bytes=16))


# -- --dedupe file ---------------------------------------------------------------------------------


def with_duplicates(seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"http://h{i % 11}.example/{i}" for i in (chance.randrange(1500) for _ in range(3000))]


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_of_equal_urls_the_first_is_fed(
    name: str, made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    lines = with_duplicates(1)
    path = written(tmp_path / name, lines)
    report = feeder.feed(path, made(dedupe="file"))
    assert queued(redis_client) == list(dict.fromkeys(lines))
    assert (report.fed, report.fed + report.duplicates) == (len(set(lines)), 3000)
    assert position(redis_client).duplicates == report.duplicates
    other = written(tmp_path / "other.txt", lines[:100])  # within each list
    assert feeder.feed(other, made(dedupe="file")).fed == len(set(lines[:100]))
    assert list((tmp_path / "state/feed").iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"shuffle_hosts": True, "shuffle_window": 700}])
def test_a_run_that_goes_on_knows_what_was_fed_before(
    options: dict[str, Any], made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", lines := with_duplicates(2))
    settings = made(dedupe="file", **options)
    said: list[str] = []
    reports = [feeder.feed(path, settings, on_progress=stop_after(4), say=said.append) for _ in range(20)]
    assert Counter(queued(redis_client)) == Counter(set(lines))
    assert sum(report.duplicates for report in reports) == 3000 - len(set(lines))
    assert any("rows that were fed before" in words for words in said)


class Rollback:
    """Takes Redis back, once, to how it was some blocks before, as when it loses its last second."""

    def __init__(self, client: redis.Redis, kept_at: int, back_at: int) -> None:
        self._client = client
        self._kept_at, self._back_at = kept_at, back_at
        self._calls = 0
        self._dumps: dict[bytes, bytes] = {}

    def __call__(self, _report: FeedReport) -> bool:
        self._calls += 1
        if self._calls == self._kept_at:
            self.keep()
        if self._calls == self._back_at:
            self.back()
        return True

    def keep(self) -> None:
        self._dumps = {key: self._client.dump(key) for key in self._client.scan_iter()}

    def back(self) -> None:
        self._client.flushdb()
        for key, dump in self._dumps.items():
            self._client.restore(key, 0, dump)


@pytest.mark.parametrize("options", [{}, {"shuffle_hosts": True, "shuffle_window": 700}])
@pytest.mark.parametrize(("kept_at", "back_at"), [(1, 2), (3, 12), (9, 24)])
def test_what_redis_lost_is_no_duplicate(
    kept_at: int,
    back_at: int,
    options: dict[str, Any],
    made: Callable[..., Settings],
    redis_client: redis.Redis,
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "a", lines := with_duplicates(3))
    feeder.feed(path, made(dedupe="file", **options), on_progress=Rollback(redis_client, kept_at, back_at))
    assert Counter(queued(redis_client)) == Counter(set(lines))
    assert int(redis_client.get(KEYS.fed)) == len(set(lines))


def test_two_feeders_of_one_list_feed_each_url_once(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = written(tmp_path / "a", lines := with_duplicates(4))
    turns = numbers()

    def other(_report: FeedReport) -> bool:
        if next(turns) % 5 == 4:
            feeder.feed(path, made(dedupe="file", block=70), on_progress=stop_after(2))
        return True

    feeder.feed(path, made(dedupe="file"), on_progress=other)
    assert Counter(queued(redis_client)) == Counter(set(lines))


# -- --dedupe bloom --------------------------------------------------------------------------------


@pytest.fixture
def opened(made: Callable[..., Settings]) -> Iterator[Callable[[], Bloom]]:
    """Opens the dataset's filter; what was open before is closed, as when its feeder was killed."""
    last: list[Bloom] = []

    def open_it() -> Bloom:
        if last:
            last.pop().close()
        last.append(open_bloom(made(), lambda _text: None))
        return last[0]

    yield open_it
    last.pop().close()


def test_across_lists_and_runs_each_url_is_fed_once(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = with_duplicates(5)
    a, b = written(tmp_path / "a", lines[:2000]), written(tmp_path / "b.csv", lines[1000:])
    words = ["--redis", redis_url, "--dataset", "ds", "--dedupe", "bloom", "--json"]
    assert main(["feed", str(a), *words]) == main(["feed", str(b), *words]) == 0
    assert Counter(queued(redis_client)) == Counter(set(lines))
    captured = capsys.readouterr()
    fed = [json.loads(line) for line in captured.out.splitlines()]
    assert sum(result["duplicates"] for result in fed) == 4000 - len(set(lines))
    assert captured.err.count("would be taken for duplicates") == 4  # before and after
    assert f"about {len(set(lines)):,} URLs of at most 100,000,000, 171 MiB" in captured.err
    assert main(["feed", str(a), *words, "--again"]) == 2
    bloom = open_bloom(Settings(dataset="ds", redis=redis_url), lambda _text: None)
    assert not bloom._frontiers[:, 0].any()  # both lists are on the server's disk
    bloom.close()


@pytest.mark.parametrize("options", [{}, {"shuffle_hosts": True, "shuffle_window": 700}])
@pytest.mark.parametrize(("kept_at", "back_at"), [(1, 2), (3, 12), (9, 24)])
@pytest.mark.parametrize("is_killed", [False, True])
def test_what_redis_lost_is_fed_again_also_by_another_feeder(
    is_killed: bool,
    kept_at: int,
    back_at: int,
    options: dict[str, Any],
    made: Callable[..., Settings],
    opened: Callable[[], Bloom],
    redis_client: redis.Redis,
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "a", lines := with_duplicates(6))
    settings, rollback = made(dedupe="bloom", **options), Rollback(redis_client, kept_at, back_at)
    stop = stop_after(back_at)
    feeder.feed(
        path, settings, on_progress=lambda r: rollback(r) and (stop(r) or not is_killed), bloom=opened()
    )
    if is_killed:
        other = made(dedupe="bloom", **({} if options else {"shuffle_hosts": True}))
        feeder.feed(path, other, bloom=opened())
    found = Counter(queued(redis_client))
    assert set(found) == set(lines)
    assert sum(found.values()) < len(set(lines)) + 300 + 100 * (back_at - kept_at)


def test_a_filter_that_is_over_full_is_said(
    made: Callable[..., Settings], redis_client: redis.Redis, tmp_path: Path
) -> None:
    said: list[str] = []
    path = written(tmp_path / "a", urls(0, 3000))
    settings = made(dedupe="bloom", bloom_items=1000, bloom_error=0.01)
    assert FeedRun(settings, say=said.append).run([path])
    (warning,) = [words for words in said if "over-full" in words]
    assert "1,000" in warning and "%" in warning
    assert len(queued(redis_client)) < 3000
