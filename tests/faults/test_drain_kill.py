"""Exports and requeues that die or fail at each of their steps: every error once, in files or in Redis."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from drains import Do, error, leftovers, until, written
from redis.connection import parse_url
from wire import Fault, Strikes, Wire

from dlconsole.services import error_export, error_requeue
from dlconsole.services.connection import connect
from dlconsole.services.error_items import Filter, parse, task_again
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import Settings

KEYS = Keys("ds")
ITEMS = [error(i) for i in range(7)]
SEED = 20240131


def refill(client: redis.Redis, folder: Path) -> None:
    client.flushall()
    client.lpush(KEYS.error, *ITEMS)
    client.set(KEYS.failed, len(ITEMS))
    client.set(KEYS.fed, len(ITEMS))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def _killer() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("step_killer.py")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        yield process
        process.stdin.close()


@pytest.fixture
def drain_settings(redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """Settings of an export in small batches."""
    return {"redis": redis_url, "dataset": "ds", "errors": {"dir": str(tmp_path / "out"), "batch": 3}}


@pytest.fixture
def do(_killer: subprocess.Popen[str], drain_settings: dict[str, Any]) -> Do:
    """Run one order to its end, or to the child's."""

    def run(what: str, **order: Any) -> dict[str, Any]:
        _killer.stdin.write(json.dumps({"do": what, "settings": drain_settings} | order) + "\n")
        _killer.stdin.flush()
        return json.loads(_killer.stdout.readline())

    return run


@pytest.fixture
def folder(drain_settings: dict[str, Any]) -> Path:
    return Path(drain_settings["errors"]["dir"])


def steps_of(do: Do, client: redis.Redis, folder: Path) -> list[str]:
    """The steps of an undisturbed export, on a server that knows the scripts already."""
    for _ in range(2):
        refill(client, folder)
        steps = do("export")["steps"]
    return steps


def test_an_export_killed_before_any_of_its_steps_writes_every_error_once(
    do: Do, redis_client: redis.Redis, folder: Path
) -> None:
    steps = steps_of(do, redis_client, folder)
    assert {"write", "fsync", "rename", "redis"} <= set(steps) and len(steps) > 30
    for at, name in enumerate(steps, 1):
        for how in ("kill", "half") if name == "write" else ("kill",):
            refill(redis_client, folder)
            assert do("export", at=at, how=how)["status"] == -signal.SIGKILL, (at, name)
            assert do("export")["status"] == 0
            assert sorted(written(folder)) == sorted(ITEMS), (at, name, how)
            assert leftovers(redis_client) == set()
            assert len(list((folder / ".dlconsole").glob("*.drainer"))) <= 2


def test_an_export_killed_again_while_it_recovers_writes_every_error_once(
    do: Do, redis_client: redis.Redis, folder: Path
) -> None:
    draw = random.Random(SEED)
    steps = len(steps_of(do, redis_client, folder))
    for _ in range(20):
        refill(redis_client, folder)
        deaths = [draw.randint(1, steps) for _ in range(4)]
        for at in deaths:
            do("export", at=at, how=draw.choice(["kill", "half"]), limit=draw.choice([None, 2]))
        assert do("export")["status"] == 0
        assert sorted(written(folder)) == sorted(ITEMS), deaths
        assert leftovers(redis_client) == set()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_pair_of_deaths(do: Do, redis_client: redis.Redis, folder: Path) -> None:
    steps = len(steps_of(do, redis_client, folder))
    for first, second in itertools.product(range(1, steps + 1), repeat=2):
        refill(redis_client, folder)
        do("export", at=first, how="half")
        do("export", at=second, how="half")
        assert do("export")["status"] == 0
        assert sorted(written(folder)) == sorted(ITEMS), (first, second)
        assert leftovers(redis_client) == set()


def test_a_disk_that_fails_at_any_step_costs_nothing_and_leaves_no_half_line(
    do: Do, redis_client: redis.Redis, folder: Path
) -> None:
    for at, name in enumerate(steps_of(do, redis_client, folder), 1):
        if name == "redis":
            continue
        refill(redis_client, folder)
        failed = do("export", at=at, how="fail")
        assert failed["status"] == 1 and "Input/output error" in failed["error"], (at, name)
        written(folder)
        assert do("export")["status"] == 0
        assert sorted(written(folder)) == sorted(ITEMS), (at, name)


def test_a_full_disk_is_cut_back_and_the_spool_kept(do: Do, redis_client: redis.Redis, folder: Path) -> None:
    refill(redis_client, folder)
    failed = do("export", file_size=500)
    assert failed["status"] == 1 and "stays in Redis" in failed["error"]
    held = redis_client.llen(KEYS.error) + sum(
        redis_client.llen(key) for key in redis_client.keys(KEYS.spool_prefix("*") + "*")
    )
    assert len(written(folder)) + held == len(ITEMS)
    assert set(written(folder)) < set(ITEMS) and len(set(written(folder))) == len(written(folder))
    again = do("export")
    assert again["report"]["finished"] == 3
    assert sorted(written(folder)) == sorted(ITEMS)
    assert leftovers(redis_client) == set()


@pytest.mark.parametrize("how", ["kill", "half"])
def test_a_neighbour_finishes_what_a_dead_drainer_began_in_the_same_file(
    how: str, do: Do, redis_client: redis.Redis, folder: Path, drain_settings: dict[str, Any]
) -> None:
    """Two drainers live in the folder; the second one dies while the first one lives on."""
    steps = steps_of(do, redis_client, folder)
    for at, name in enumerate(steps, 1):
        if (name == "write") != (how == "half"):
            continue
        refill(redis_client, folder)
        with Neighbour(drain_settings) as first:
            do("export", at=at, how=how)
            redis_client.lpush(KEYS.error, *(error(i) for i in range(100, 104)))
            first.say_go()
        assert do("export")["status"] == 0
        expected = ITEMS + [error(i) for i in range(100, 104)]
        assert sorted(written(folder)) == sorted(expected), (at, how)


class Neighbour:
    """An export of this process that takes its home first, and works when told to."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = Settings.model_validate(settings)
        self._go = threading.Event()
        self._home = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        assert self._home.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self._go.set()
        self._thread.join()

    def say_go(self) -> None:
        self._go.set()

    def _work(self) -> None:
        settings = self._settings
        watcher = error_export.Watcher(threading.Event(), lambda _t: None, lambda _r: None)
        with connect(settings.redis, name="tests") as client:
            source = error_export._source(client, KEYS, settings.redis)
            with error_export.drain_folder.open_home(settings.errors.dir, source, "first") as home:
                run = error_export._Export(settings, watcher, client, home, source, follow=False)
                self._home.set()
                self._go.wait(20)
                run.start(None)
                run.loop()
                run.leave()


# -- requeue --------------------------------------------------------------------------------------


def test_a_requeue_killed_before_any_of_its_steps_loses_and_doubles_nothing(
    do: Do, redis_client: redis.Redis, folder: Path
) -> None:
    refill(redis_client, folder)
    chosen = {"filter": {"hosts": ["h1.example", "h2.example"]}}
    moved = sorted(task_again(parse(i)) for i in ITEMS if parse(i).host != "h0.example")
    stay = [i for i in ITEMS if parse(i).host == "h0.example"]
    do("requeue", **chosen)
    refill(redis_client, folder)
    steps = do("requeue", **chosen)["steps"]
    for at in range(1, len(steps) + 1):
        refill(redis_client, folder)
        assert do("requeue", at=at, **chosen)["status"] == -signal.SIGKILL
        counted = int(redis_client.get(KEYS.failed)) + redis_client.llen(KEYS.task)
        assert counted == int(redis_client.get(KEYS.fed)) == len(ITEMS)
        assert do("requeue", silent_ms=0, **chosen)["status"] == 0
        assert sorted(redis_client.lrange(KEYS.task, 0, -1)) == moved, at
        assert sorted(redis_client.lrange(KEYS.error, 0, -1)) == sorted(stay), at
        assert leftovers(redis_client) == set()


def test_a_requeue_from_files_killed_at_any_step_doubles_no_line(
    do: Do, redis_client: redis.Redis, folder: Path
) -> None:
    refill(redis_client, folder)
    do("export")
    paths = [str(path) for path in folder.glob("*.txt")]
    alike = folder / "begins_alike"
    others = [error(i) for i in range(10, 15)]
    alike.write_bytes(b"".join(line + b"\n" for line in [*ITEMS[:2], *others]))
    paths.append(str(alike))
    do("requeue", paths=paths)
    expected = sorted(task_again(parse(i)) for i in ITEMS + others)
    assert sorted(redis_client.lrange(KEYS.task, 0, -1)) == expected
    redis_client.flushall()
    steps = do("requeue", paths=paths)["steps"]
    for at in range(1, len(steps) + 1):
        redis_client.delete(KEYS.task, *redis_client.keys(KEYS.requeued("*")))
        redis_client.set(KEYS.failed, len(expected))
        do("requeue", at=at, paths=paths)
        again = do("requeue", paths=paths)["report"]
        assert again["requeued"] + again["already"] == len(ITEMS) + 2 + len(others)
        assert sorted(redis_client.lrange(KEYS.task, 0, -1)) == expected, at
        assert redis_client.get(KEYS.failed) == b"0"


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
def test_a_requeue_from_files_whose_call_or_reply_is_lost_requeues_no_more_than_it_may(
    fault: Fault, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "errors"
    path.write_bytes(b"".join(error(i) + b"\n" for i in range(2500)))
    strikes = Strikes("requeue_lines", fault, {1, 3})
    said: list[str] = []
    order = error_requeue.Order(Filter(), threading.Event(), said.append, lambda _report: None, 1500)
    with Wire(parse_url(redis_url)["path"], strikes) as wire:
        settings = Settings.model_validate({"redis": wire.url, "dataset": "ds"})
        report = error_requeue.requeue(settings, order, [path])
    assert not strikes.left and said.count("Redis is back") == 2
    assert report.requeued == redis_client.llen(KEYS.task) == 1500


# -- several at once ------------------------------------------------------------------------------


class Crowd:
    """Drainers as users start them, in processes of their own; and a legacy one beside them."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        self._legacy = threading.Thread(target=self._drain_as_legacy)

    def start(self, folder: Path) -> None:
        words = [sys.executable, "-m", "dlconsole", "errors", "export", "--follow", "--dir", str(folder)]
        words += ["--redis", self._url, "--dataset", "ds"]
        environment = os.environ | {"DLCONSOLE_ERRORS__BATCH": "40"}
        self._running.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def kill(self, index: int) -> None:
        victim = self._running.pop(index)
        victim.kill()
        victim.wait()

    def start_legacy(self) -> None:
        self._legacy.start()

    def end(self) -> list[int]:
        self._stop.set()
        if self._legacy.is_alive():
            self._legacy.join()
        for process in self._running:
            process.terminate()
        return [process.wait(20) for process in self._running]

    def _drain_as_legacy(self) -> None:
        """As the legacy script: pop one, append it to a file of the same name as ours."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with connect(self._url, name="legacy") as client:
            while not self._stop.is_set():
                item = client.rpop(KEYS.error)
                if item is None:
                    self._stop.wait(0.01)
                    continue
                name = error_export.file_name(time.localtime())
                with (self._folder / name).open("a") as file:
                    file.write(item.decode() + "\n")


@pytest.fixture
def crowd(redis_url: str, tmp_path: Path) -> Iterator[Crowd]:
    crowd = Crowd(redis_url, tmp_path / "shared")
    yield crowd
    crowd.end()


def drain_in_a_crowd(crowd: Crowd, client: redis.Redis, tmp_path: Path, *, errors: int, kills: int) -> None:
    draw = random.Random(SEED)
    folders = [tmp_path / "shared", tmp_path / "shared", tmp_path / "own"]
    for folder in folders:
        crowd.start(folder)
    crowd.start_legacy()
    expected = [error(i) for i in range(errors)]

    def lines() -> list[bytes]:
        # An empty one ends a line that looked torn: a legacy drainer was in the middle of writing it.
        return [line for folder in set(folders) for line in raw_lines(folder) if line]

    marks = sorted(draw.randrange(errors // 10, errors) for _ in range(kills))
    fed = 0
    for mark in marks:
        while fed < min(errors, mark + 200):
            client.lpush(KEYS.error, *expected[fed : fed + 100])
            fed += len(expected[fed : fed + 100])
        until(lambda goal=mark - 100: len(lines()) >= goal)
        victim = draw.randrange(3)
        crowd.kill(victim)
        folders.append(folders.pop(victim))
        crowd.start(folders[-1])
    if fed < errors:
        client.lpush(KEYS.error, *expected[fed:])
    until(lambda: len(lines()) >= errors and not client.llen(KEYS.error))
    assert set(crowd.end()) <= {130, -signal.SIGTERM}  # the latter where it had not begun yet
    for folder in set(folders):
        crowd.start(folder)
    until(lambda: not client.keys(KEYS.spool_prefix("*") + "*"))
    crowd.end()
    assert Counter(lines()) == Counter(expected)


def raw_lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("*.txt")) for line in path.read_bytes().splitlines()]


def test_two_drainers_in_one_folder_one_in_another_and_a_legacy_one_share_the_list(
    crowd: Crowd, redis_client: redis.Redis, tmp_path: Path
) -> None:
    drain_in_a_crowd(crowd, redis_client, tmp_path, errors=4000, kills=4)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_crowd_of_drainers_under_many_kills(
    crowd: Crowd, redis_client: redis.Redis, tmp_path: Path
) -> None:
    drain_in_a_crowd(crowd, redis_client, tmp_path, errors=60_000, kills=60)


def test_an_export_waits_out_a_redis_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """One that writes before it answers: another may lose what it said last, and an export then has it twice."""
    with PrivateRedis() as server, connect(server.url, name="tests") as client:
        client.config_set("appendfsync", "always")
        crowd = Crowd(server.url, tmp_path / "out")
        expected = [error(i) for i in range(3000)]
        crowd.start(tmp_path / "out")
        try:
            for from_ in range(0, 3000, 1000):
                client.lpush(KEYS.error, *expected[from_ : from_ + 1000])
                until(lambda goal=from_ + 200: len(raw_lines(tmp_path / "out")) >= goal)
                server.kill()
                server.restart()
                client.config_set("appendfsync", "always")
            until(lambda: len(raw_lines(tmp_path / "out")) >= 3000 and not client.llen(KEYS.error))
        finally:
            assert crowd.end() == [130]
        assert Counter(raw_lines(tmp_path / "out")) == Counter(expected)
        assert json.loads(expected[0])["status"] == 900
