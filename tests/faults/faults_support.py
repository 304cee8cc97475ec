"""A fleet to break: a Redis of its own, a simulated web that always answers, real worker processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import redis

from dlconsole import log
from dlconsole.cli import _parser_for
from dlconsole.commands.common import load_settings
from dlconsole.demo.web import Shares, SimulatedWeb, WebConfig
from dlconsole.model import LedgerLine
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.scripts import script
from dlconsole.workers.downloader import Downloader

KEYS = Keys("ds")
LEASE_S = 2
FULL = [pytest.mark.chaos, pytest.mark.timeout(600)]
"""Marks of a full form: `make chaos` runs it."""


@pytest.fixture(scope="session")
def web() -> Iterator[SimulatedWeb]:
    with SimulatedWeb(WebConfig(latency_s=0.002, shares=Shares.all_good())) as web:
        yield web


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(server.directory / "redis.sock")) as client:
        yield client


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness that a failure can be repeated with: the test's own name is the seed."""
    return random.Random(request.node.name)


class Fleet:
    """Worker processes on one queue; every one is ended with the test."""

    def __init__(self, folder: Path, url: str) -> None:
        self.store = folder / "store"
        self.under: tuple[str, ...] = ()
        """A command that runs the supervisors, such as prlimit(1)."""
        self._url = url
        self._log = folder / "workers.log"
        self._supervisors: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, url: str = "", **settings: str) -> subprocess.Popen[bytes]:
        """One supervisor with its workers; `settings` are environment variables without their prefix."""
        with self._log.open("ab") as lines:
            process = subprocess.Popen(
                [
                    *self.under,
                    sys.executable,
                    "-m",
                    "dlconsole",
                    "--worker",
                    "--store",
                    str(self.store),
                    *arguments,
                ],
                env=os.environ | self._variables(url, settings),
                stdout=lines,
                stderr=lines,
                start_new_session=True,
            )
        self._supervisors.append(process)
        return process

    def worker_here(self, *arguments: str, url: str = "", **settings: str) -> Downloader:
        """A worker of this very process with the same settings, that ends when the queue is empty."""
        parser, words = _parser_for(["--worker", "--store", str(self.store), "--until-empty", *arguments])
        with pytest.MonkeyPatch.context() as environment:
            for name, value in self._variables(url, settings).items():
                environment.setenv(name, value)
            loaded = load_settings(parser.parse_args(words))
        return Downloader(loaded.settings, log.configure(loaded.settings.log, StringIO()), until_empty=True)

    def _variables(self, url: str, settings: dict[str, str]) -> dict[str, str]:
        defaults = {
            "REDIS": url or self._url,
            "DATASET": "ds",
            "WORKER__LEASE_S": str(LEASE_S),
            "WORKER__HEARTBEAT_S": "0.3",
            "WORKER__BATCH": "100",
            "WORKER__DRAIN_S": "2",
            "FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
            "FETCH__DEADLINE_S": "5",
            "FETCH__PER_HOST": "4096",  # the web is one host
            "RETRY__BASE_S": "0.2",
            "GUARD__CHECK_S": "0.2",
        }
        return {f"DLCONSOLE_{name}": value for name, value in (defaults | settings).items()}

    @property
    def workers(self) -> list[psutil.Process]:
        """The worker processes that live now."""
        found = []
        for supervisor in self._supervisors:
            try:
                found += psutil.Process(supervisor.pid).children()
            except psutil.NoSuchProcess:
                continue
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def stop(self) -> list[int]:
        """End all in order; their exit statuses."""
        for supervisor in self._supervisors:
            if supervisor.poll() is None:
                supervisor.terminate()
        return [supervisor.wait(60) for supervisor in self._supervisors]

    def end(self) -> None:
        workers = self.workers
        for supervisor in self._supervisors:
            if supervisor.poll() is None:
                supervisor.kill()
            supervisor.wait()
        for worker in workers:
            try:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            except psutil.NoSuchProcess:
                continue

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log, line by line; lines cut by a kill are left out."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    @property
    def files(self) -> list[Path]:
        """The images in the store; what is unfinished, or the ledger's, is none."""
        files = (p for p in self.store.rglob("*") if p.is_file())
        return [p for p in files if not {".dlconsole-partial", "ledger"} & set(p.parts)]

    @property
    def ledger(self) -> dict[str, LedgerLine]:
        """The last line of each task, by its key."""
        lines: dict[str, LedgerLine] = {}
        for path in sorted((self.store / "ds/ledger").glob("*.jsonl")):
            whole, _, _torn = path.read_bytes().rpartition(b"\n")
            for raw in whole.splitlines():
                line = msgspec.json.decode(raw, type=LedgerLine)
                if line.key not in lines or line.ended_ms >= lines[line.key].ended_ms:
                    lines[line.key] = line
        return lines


@pytest.fixture
def fleet(tmp_path: Path, server: PrivateRedis) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, server.url)
    yield fleet
    fleet.end()


def until(condition: Callable[[], Any], *, within_s: float = 60) -> Any:
    """Wait until `condition` gives something true, and return it. Redis being away is not true."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            value = condition()
        except redis.exceptions.ConnectionError:
            value = None
        if value:
            return value
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def item(web: SimulatedWeb, i: int, behaviour: str = "good") -> bytes:
    path = f"/ds/images/{i % 100:02d}/{i}.jpg"
    return json.dumps(
        {"img_path": path, "img_url": f"http://{web.address}/as/{behaviour}/{i}", "n": i}
    ).encode()


def feed(client: redis.Redis, items: list[bytes]) -> None:
    for start in range(0, len(items), 5000):
        client.lpush(KEYS.task, *items[start : start + 5000])
    client.incrby(KEYS.fed, len(items))
    until_written(client)


def until_written(client: redis.Redis) -> None:
    """Wait until what the server answered is in its file: while an fsync runs it keeps it for up to 2 s, and a
    `kill -9` would undo it.
    """
    until(lambda: client.info("persistence")["aof_buffer_length"] == 0)


def counts(client: redis.Redis) -> dict[str, int]:
    """Where all tasks are, at one moment."""
    names = ("at_ms", "queued", "in_flight", "delayed", "stored", "failed", "fed", "error_list")
    return dict(zip(names, script("counts").run(client, KEYS.counted, KEYS.in_flight_prefix), strict=True))


def is_done(client: redis.Redis) -> bool:
    now = counts(client)
    return now["queued"] == now["in_flight"] == now["delayed"] == 0


def places(client: redis.Redis) -> list[int]:
    """The number of every task that Redis holds: queued, in flight, delayed or failed."""
    held = client.lrange(KEYS.task, 0, -1) + client.lrange(KEYS.error, 0, -1)
    held += [member.partition(b":")[2] for member in client.zrange(KEYS.delayed, 0, -1)]
    for session in client.smembers(KEYS.sessions):
        fields = client.hgetall(KEYS.in_flight(session.decode()))
        held += [raw for field, raw in fields.items() if field != b"_last"]
    return [json.loads(raw)["n"] for raw in held]


def assert_every_task_is_in_one_place(client: redis.Redis, fed: int) -> None:
    """For a Redis that nobody works on: each task is counted as stored, or it is there, once."""
    now = counts(client)
    somewhere = now["queued"] + now["in_flight"] + now["delayed"] + now["stored"] + now["failed"]
    assert somewhere == fed == now["fed"], now
    assert now["error_list"] == now["failed"]
    held = places(client)
    assert len(held) == len(set(held)) == fed - now["stored"], now


def aof(server: PrivateRedis) -> Path:
    """The file that is appended to."""
    (path,) = [*server.directory.glob("appendonly.aof"), *server.directory.glob("appendonlydir/*.incr.aof")]
    return path


def assert_ledger_agrees(client: redis.Redis, fleet: Fleet, fed: int) -> None:
    """Every task's last line says how it ended: failed in the words of its error, or else stored."""
    lines = fleet.ledger
    assert len(lines) == fed, f"{len(lines)} tasks in the ledger, {fed} were fed"
    errors = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    failed = {error["n"]: error for error in errors}
    for line in lines.values():
        assert not isinstance(line.columns, msgspec.UnsetType)
        error = failed.pop(json.loads(bytes(line.columns))["n"], None)
        if error is None:
            assert line.outcome == "stored", line
        else:
            assert (line.outcome, f"{line.kind}: {line.message}") == ("failed", error["error_msg"]), error
    assert not failed


def assert_nothing_lost_or_doubled(client: redis.Redis, fleet: Fleet, fed: int) -> dict[str, int]:
    """Every task has one outcome, counted once, and the ledger says the same; every stored one is a whole
    file.
    """
    now = counts(client)
    assert (now["queued"], now["in_flight"], now["delayed"]) == (0, 0, 0)
    assert now["stored"] + now["failed"] == fed == now["fed"]
    errors = [json.loads(raw) for raw in client.lrange(KEYS.error, 0, -1)]
    assert len(errors) == now["failed"]
    assert len({error["n"] for error in errors}) == len(errors)
    files = fleet.files
    names = {path.name for path in files}
    assert len(names) >= now["stored"], (len(names), now)
    assert len(names) - now["stored"] <= now["failed"]
    for path in files:
        body = path.read_bytes()
        assert body.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")) or body[8:12] == b"WEBP", path
    assert_ledger_agrees(client, fleet, fed)
    return now
