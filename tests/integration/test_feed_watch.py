"""`dlconsole feed --watch`: folders that lists appear in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import redis
from integration_support import KEYS, until

from dlconsole.cli import main
from dlconsole.services.feed_run import FeedRun
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.watch import Folders, Watch
from dlconsole.settings import Settings


class Watching:
    """A watch in a thread."""

    def __init__(self, url: str, root: Path, **feed: object) -> None:
        feed = {"done_file": root.parent / "done.txt", "reject_dir": root.parent / "rejects"} | feed
        self.settings = Settings.model_validate({"redis": url, "dataset": "ds", "feed": feed})
        self.said: list[str] = []
        self.waiting: set[str] = set()
        self.run = FeedRun(self.settings, on_progress=self._on_progress, say=self.said.append)
        self.watch = Watch(self.run, Folders([root], [], 0.1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.watch.feed)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopped.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _on_progress(self, waiting: str) -> bool:
        self.waiting.add(waiting)
        return not self._stopped.is_set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lists").mkdir()
    return tmp_path / "lists"


def lines(first: int, end: int) -> str:
    return "".join(f"http://a.example/{i}\n" for i in range(first, end))


def urls(client: redis.Redis) -> list[str]:
    return [json.loads(item)["img_url"] for item in reversed(client.lrange(KEYS.task, 0, -1))]


def test_lists_are_fed_as_they_appear_and_those_that_cannot_be_read_are_left_out(
    redis_url: str, redis_client: redis.Redis, root: Path
) -> None:
    (root / "b.txt").write_text(lines(10, 20))
    (root / "a.txt").write_text(lines(0, 10))
    bad = root / "bad.csv"
    bad.write_text("nothing,of use\n1,2\n")
    with Watching(redis_url, root) as watching:
        until(lambda: watching.watch.done == 2 and watching.watch.failed == 1)
        assert urls(redis_client) == lines(0, 20).split()
        assert sum("bad.csv" in words and "left out" in words for words in watching.said) == 1
        (root / "c").mkdir()
        (root / "c/c.csv").write_text("url,text\nhttp://a.example/20,x\n")
        until(lambda: watching.watch.done == 3)
        bad.write_text(f"url\n{lines(21, 30)}")
        until(lambda: watching.watch.done == 4)
        assert watching.run.reports == {}
        assert any("4 done, 1 cannot be read" in words for words in watching.waiting)
    assert urls(redis_client) == lines(0, 30).split()
    assert len((root.parent / "done.txt").read_text().splitlines()) == 4
    with Watching(redis_url, root) as watching:  # done lists are not fed again
        until(lambda: watching.watch.done == 4)
    assert redis_client.llen(KEYS.task) == 30


def test_a_redis_that_goes_away_meanwhile_is_waited_for(root: Path) -> None:
    with PrivateRedis() as server, Watching(server.url, root) as watching:
        (root / "a.txt").write_text(lines(0, 10))
        until(lambda: watching.watch.done == 1)
        server.kill()
        (root / "b.txt").write_text(lines(10, 20))
        until(lambda: any("waiting for it" in words for words in watching.said))
        server.restart()
        until(lambda: watching.watch.done == 2)


@pytest.fixture
def process(redis_url: str, root: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = ["feed", str(root), "--watch", "--redis", redis_url, "--dataset", "ds"]
    with subprocess.Popen(
        [sys.executable, "-m", "dlconsole", *words],
        cwd=tmp_path,
        env={
            "DLCONSOLE_FEED__WATCH_S": "0.1",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_the_command_says_what_it_fed_and_ends_when_asked_to(
    process: subprocess.Popen[str], redis_client: redis.Redis, root: Path
) -> None:
    (root / "a.txt").write_text(lines(0, 10))
    assert process.stdout is not None
    assert process.stdout.readline() == f"{root}/a.txt: fed 10 tasks to 'ds'\n"
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert said.splitlines()[0] == f"dlconsole: watching {root} (Ctrl-C stops)"
    assert said.splitlines()[-1] == "dlconsole: 1 lists are done, 0 could not be read"


@pytest.mark.parametrize("words", [["--limit", "5"], ["--again"], ["--dry-run"], ["--skip", "1"]])
def test_what_does_not_go_with_watching_is_said(words: list[str], root: Path) -> None:
    assert main(["feed", str(root), "--watch", *words]) == 2
    assert main(["feed", str(root / "none"), "--watch"]) == 2
