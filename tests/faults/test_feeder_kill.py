"""Feeders, Redis and the wire between them die at random moments; each task is fed exactly once, in order.

The short forms run always; `-m chaos` runs the long ones.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
import redis
from faults_support import aof
from redis.exceptions import RedisError

from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import Settings

KEYS = Keys("ds")
LINES = 40_000
BLOCK = 50
"""Lines in a block: it is blocks that a death comes between, so there are many, and small ones."""

chaos = pytest.mark.chaos


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of rejects are written where feeding was started."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list with a bad and a blank line now and then, so that lines and tasks are not the same."""
    path = tmp_path_factory.mktemp("lists") / "urls.txt"
    path.write_bytes(b"".join(line(i) + b"\n" for i in range(LINES)))
    return path


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as server:
        yield server


def line(i: int) -> bytes:
    if i % 997 == 5:
        return b"bad \xff"
    return b"" if i % 1009 == 7 else b"https://host-%d.example/%d/%d.jpg" % (i % 977, i, i)


@cache
def expected() -> list[bytes]:
    """The queue, first to be taken first."""
    form = b'{"img_path": "/ds/images/%s/%s/%s.jpg", "img_url": "%s"}'
    lines = (text for i in range(LINES) if (text := line(i)).startswith(b"https"))
    named = ((hashlib.sha256(text).hexdigest().encode(), text) for text in lines)
    return [form % (name[:2], name[2:4], name, text) for name, text in named]


def assert_each_task_was_fed_once(client: redis.Redis) -> None:
    queued = client.lrange(KEYS.task, 0, -1)[::-1]
    wanted = expected()
    assert int(client.get(KEYS.fed) or 0) == len(queued) == len(wanted)
    assert queued == wanted


def depth(client: redis.Redis) -> int:
    """How much is queued; -1 while Redis is away."""
    try:
        return client.llen(KEYS.task)
    except (RedisError, OSError):
        return -1


class Feeder:
    """`dlconsole feed` as a process."""

    def __init__(
        self,
        url: str,
        urls: Path | list[Path],
        folder: Path,
        *,
        block: int = BLOCK,
        options: Collection[str] = (),
    ) -> None:
        lists = map(str, urls if isinstance(urls, list) else [urls])
        words = ["feed", *lists, "--redis", url, "--dataset", "ds", "--block", str(block), *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dlconsole", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def runs_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for the condition; False when the feeder came to its end before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)  # less than a few blocks take
        return True

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def end(self) -> str:
        out, _ = self.process.communicate(timeout=80)
        assert self.process.returncode == 0, out
        return out


@pytest.mark.parametrize(
    ("kills", "seed"), [(6, 1), pytest.param(60, 2, marks=[chaos, pytest.mark.timeout(300)])]
)
def test_a_feeder_that_is_killed_again_and_again_feeds_each_task_once(
    kills: int, seed: int, urls: Path, server: PrivateRedis, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    total = len(expected())
    with connect(server.url, name="test") as client:
        # The last one dies when everything is queued, before the list is written down as done.
        targets = [*sorted(chance.sample(range(1, total), kills - 1)), total]
        for target in targets:
            feeder = Feeder(server.url, urls, tmp_path)
            assert feeder.runs_until(lambda target=target: client.llen(KEYS.task) >= target), feeder.end()
            feeder.kill()
        assert not (tmp_path / "done_part.txt").exists()
        Feeder(server.url, urls, tmp_path).end()
        assert_each_task_was_fed_once(client)
    assert (tmp_path / "done_part.txt").read_text() == f"{urls}\n"


ROWS = 3000


def caption(i: int) -> str:
    return f'"{i}", said\r\nthe 猫' * (i % 3)


def is_bad(i: int) -> bool:
    return i % 97 == 5


@pytest.fixture
def lists(tmp_path: Path) -> list[Path]:
    """The same rows in three formats, a bad one now and then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [("" if is_bad(i) else f"https://host-{i % 97}.example/{i}.jpg", caption(i)) for i in range(ROWS)]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([("URL", "TEXT"), *rows])
    data = out.getvalue().encode()
    (tmp_path / "l.csv").write_bytes(data)
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(data[:30_000], 1) + gzip.compress(data[30_000:], 1))
    columns = dict(zip(("URL", "TEXT"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "n.parquet", row_group_size=700)
    return [tmp_path / name for name in ("l.csv", "m.csv.gz", "n.parquet")]


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 8), pytest.param(20, 9, marks=[chaos, pytest.mark.timeout(300)])]
)
def test_lists_with_columns_survive_their_feeders_row_by_row(
    kills: int, seed: int, lists: list[Path], server: PrivateRedis, tmp_path: Path
) -> None:
    """Killed in each of them: behind a record of many lines, packed text, a row group."""
    chance = random.Random(seed)
    good = [i for i in range(ROWS) if not is_bad(i)]
    with connect(server.url, name="test") as client:
        for number in range(len(lists)):
            first = number * len(good)
            for target in sorted(chance.sample(range(first + 1, first + len(good) - 200), kills)):
                feeder = Feeder(server.url, lists, tmp_path)
                assert feeder.runs_until(lambda target=target: client.llen(KEYS.task) >= target), feeder.end()
                feeder.kill()
        Feeder(server.url, lists, tmp_path).end()
        items = [json.loads(item) for item in reversed(client.lrange(KEYS.task, 0, -1))]
        assert int(client.get(KEYS.fed)) == len(items)
    wanted = [(f"https://host-{i % 97}.example/{i}.jpg", caption(i), str(i + 1)) for i in good] * 3
    found = [(item["img_url"], item.get("caption"), item["key"].partition("-")[2]) for item in items]
    assert found == wanted
    rejects = sorted((tmp_path / "feed_rejects").iterdir())
    assert [path.name.partition("-")[0] for path in rejects] == ["l.csv", "m.csv.gz", "n.parquet"]
    for path in rejects:
        rows = [json.loads(line)["row"] for line in path.read_bytes().splitlines()]
        assert rows == [i + 1 for i in range(ROWS) if is_bad(i)]


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(4, 3), *(pytest.param(40, seed, marks=[chaos, pytest.mark.timeout(300)]) for seed in (4, 5, 6))],
)
@pytest.mark.parametrize("lost_bytes", [0, 80_000], ids=["killed", "lost its last second"])
def test_a_redis_that_dies_under_the_feeder_gets_each_task_once(
    kills: int, seed: int, lost_bytes: int, urls: Path, server: PrivateRedis, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    total = len(expected())
    with connect(server.url, name="test") as client:
        feeder = Feeder(server.url, urls, tmp_path, block=20)
        begun = aof(server).stat().st_size
        # The last time everything is queued, and the feeder waits for it to be on disk.
        for target in [*sorted(chance.sample(range(1, total), kills - 1)), total]:
            assert feeder.runs_until(lambda target=target: depth(client) >= target), feeder.end()
            server.kill()
            if lost_bytes:  # the end goes with its machine, in the middle of a transaction
                left = aof(server).stat().st_size - chance.randrange(1, lost_bytes)
                os.truncate(aof(server), max(begun, left))
            server.restart()
            begun = aof(server).stat().st_size
        feeder.end()
        assert_each_task_was_fed_once(client)
    assert (tmp_path / "done_part.txt").read_text() == f"{urls}\n"


DIFFERENT = 10_000


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list sorted by host, each URL of which stands in it twice."""
    path = tmp_path_factory.mktemp("lists") / "repeated.txt"
    lines = sorted(b"https://host-%d.example/%d\n" % (i % 97, i) for i in range(DIFFERENT))
    path.write_bytes(b"".join(lines) + b"".join(lines[::-1]))
    return path


OPTIONS = {
    "spread": (["--shuffle-hosts"], 2 * DIFFERENT),
    "limited": (["--limit", "15617", "--shuffle-hosts"], 15_617),
    "each once": (["--dedupe", "file"], DIFFERENT),
    "each once, spread": (["--dedupe", "file", "--shuffle-hosts"], DIFFERENT),
}


@pytest.mark.parametrize("seed", [8, *(pytest.param(seed, marks=chaos) for seed in range(30, 36))])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_feeder_with_options_that_is_killed_feeds_each_task_once(
    name: str, seed: int, repeated: Path, server: PrivateRedis, tmp_path: Path
) -> None:
    """A window is shorter in every run, so its position has to say what it was begun with."""
    options, total = OPTIONS[name]
    chance = random.Random(seed)
    with connect(server.url, name="test") as client:
        for number, target in enumerate(sorted(chance.sample(range(1, total), 2))):
            window = {"DLCONSOLE_FEED__SHUFFLE_WINDOW": str(4000 - 1000 * number)}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(*window.popitem())
                feeder = Feeder(server.url, repeated, tmp_path, block=100, options=options)
            assert feeder.runs_until(lambda target=target: client.llen(KEYS.task) >= target), feeder.end()
            feeder.kill()
        Feeder(server.url, repeated, tmp_path, block=100, options=options).end()
        found = Counter(client.lrange(KEYS.task, 0, -1))
    assert found.total() == total
    assert max(found.values()) == (1 if total == DIFFERENT else 2)
    assert len(found) == DIFFERENT or name == "limited"


@pytest.mark.parametrize("lost_bytes", [0, 150_000], ids=["killed", "and Redis lost its last second"])
@pytest.mark.parametrize("seed", [9, *(pytest.param(seed, marks=chaos) for seed in range(40, 46))])
def test_with_a_bloom_filter_no_kill_makes_a_task_vanish(
    seed: int, lost_bytes: int, repeated: Path, server: PrivateRedis, tmp_path: Path
) -> None:
    """Whether it errs is not the question: it is made for far more, so that it hardly does."""
    options, chance = ["--dedupe", "bloom", "--shuffle-hosts"], random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, connect(server.url, name="test") as client:
        patch.setenv("DLCONSOLE_STATE_DIR", str(tmp_path / "state"))
        patch.setenv("DLCONSOLE_FEED__BLOOM_ITEMS", "1000000")
        patch.setenv("DLCONSOLE_FEED__BLOOM_ERROR", "0.0000001")
        patch.setenv("DLCONSOLE_FEED__SHUFFLE_WINDOW", "3000")
        for target in sorted(chance.sample(range(1000, DIFFERENT), 2)):
            feeder = Feeder(server.url, repeated, tmp_path, block=100, options=options)
            assert feeder.runs_until(lambda target=target: client.llen(KEYS.task) >= target), feeder.end()
            feeder.kill()
            if lost_bytes:
                server.kill()
                left = aof(server).stat().st_size - chance.randrange(1, lost_bytes)
                os.truncate(aof(server), max(0, left))
                server.restart()
        Feeder(server.url, repeated, tmp_path, block=100, options=options).end()
        found = Counter(client.lrange(KEYS.task, 0, -1))
    assert len(found) == DIFFERENT
    assert found.total() < DIFFERENT * 1.5


class Wire:
    """A TCP proxy in front of a Unix socket that now and then swallows an answer and hangs up."""

    def __init__(self, target: str, swallow: Callable[[], bool]) -> None:
        self._target = target
        self._swallow = swallow
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.swallowed = 0
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._start(self._accept)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            back = threading.Thread(target=self._answers, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        while data := received(server):
            if self._swallow():
                self.swallowed += 1
                break
            try:
                client.sendall(data)
            except OSError:
                break
        hang_up(client, server)


def received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""


def hang_up(*sockets: socket.socket) -> None:
    for end in sockets:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := received(source):
        try:
            target.sendall(data)
        except OSError:
            break
    hang_up(source, target)


@contextmanager
def wire(server: PrivateRedis, swallow: Callable[[], bool]) -> Iterator[Wire]:
    proxy = Wire(server.url.removeprefix("unix://"), swallow)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("share", "seed"), [(0.02, 5), pytest.param(0.1, 6, marks=[chaos, pytest.mark.timeout(300)])]
)
def test_answers_that_never_come_feed_each_task_once(
    share: float, seed: int, urls: Path, server: PrivateRedis
) -> None:
    chance = random.Random(seed)
    with ExitStack() as stack:
        proxy = stack.enter_context(wire(server, lambda: chance.random() < share))
        settings = Settings.model_validate(
            {"redis": proxy.url, "dataset": "ds", "feed": {"block": 4 * BLOCK}}
        )
        report = feed(urls, settings)
        client = stack.enter_context(connect(server.url, name="test"))
        assert proxy.swallowed >= 2
        assert report.fed == len(expected())
        assert_each_task_was_fed_once(client)


def test_a_stream_survives_answers_that_never_come(server: PrivateRedis, tmp_path: Path) -> None:
    """It cannot be read twice, so what has no answer yet is kept until it has one."""
    chance = random.Random(7)
    os.mkfifo(tmp_path / "pipe")
    content = b"".join(line(i) + b"\n" for i in range(LINES))
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    with wire(server, lambda: chance.random() < 0.05) as proxy:
        values = {"redis": proxy.url, "dataset": "ds", "feed": {"block": 4 * BLOCK}}
        feed(tmp_path / "pipe", Settings.model_validate(values))
        writer.join()
        assert proxy.swallowed >= 1
    with connect(server.url, name="test") as client:
        assert_each_task_was_fed_once(client)
        assert client.exists(KEYS.feed) == 0
