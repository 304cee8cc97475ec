"""`--verify decode` and `--verify-hash`: hostile pictures end their own task, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from integration_support import KEYS, errors_of, stored_files, task, until
from PIL import Image

from dlconsole import log
from dlconsole.demo.web import SimulatedWeb
from dlconsole.errors import ConfigError
from dlconsole.settings import Settings
from dlconsole.workers.downloader import Downloader


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Decoding is on, with more time than a busy machine needs for a sound picture."""
    return with_worker(settings, verify="decode", verify_timeout_s=120, verify_memory_bytes="1GiB")


def with_worker(settings: Settings, **values: object) -> Settings:
    merged = settings.model_dump() | {"worker": settings.model_dump()["worker"] | values}
    merged["fetch"] = merged["fetch"] | {"deadline_s": 30}
    return Settings.model_validate(merged)


class Shelf:
    """A web server of bodies by name."""

    def __init__(self) -> None:
        bodies: dict[str, bytes] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = bodies[self.path[1:]]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.bodies = bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def task(self, name: str, body: bytes, **more: object) -> bytes:
        """A task for this body, to be stored as `/ds/<name>`."""
        self.bodies[name] = body
        return task(f"http://127.0.0.1:{self._server.server_port}/{name}", f"/ds/{name}", **more)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.close()


class Worker:
    """A downloader in a thread, until the queue is empty or it is stopped."""

    def __init__(self, settings: Settings, *, until_empty: bool = True) -> None:
        self.log = io.StringIO()
        self.downloader = Downloader(settings, log.configure(settings.log, self.log), until_empty=until_empty)
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.downloader.run()
        except Exception as error:
            self.outcome = error

    def end(self, within_s: float = 150) -> None:
        self.thread.join(within_s)
        assert not self.thread.is_alive()
        assert self.outcome is True, self.outcome
        assert decoders() == []

    def stop(self) -> None:
        self.downloader.request_stop()
        self.thread.join(60)


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[Worker] = []

    def run(settings: Settings, **options: bool) -> Worker:
        started.append(Worker(settings, **options))
        return started[-1]

    yield run
    for worker in started:
        worker.stop()
        assert not worker.thread.is_alive()


def decoders(of: int | None = None) -> list[psutil.Process]:
    """The decoding processes below this process, or below another."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if "dlconsole.workers.decoder" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def busy_decoder(of: int | None = None) -> psutil.Process:
    """A decoding process that is at work: it has used more time than its start takes."""

    def find() -> psutil.Process | None:
        for decoder in decoders(of):
            try:
                at_first = sum(decoder.cpu_times()[:2])
                time.sleep(0.1)  # measures; the condition is waited for
                if sum(decoder.cpu_times()[:2]) - at_first > 0.02 and prepared(decoder):
                    return decoder
            except psutil.NoSuchProcess:
                pass
        return None

    found = until(find, within_s=60)
    assert isinstance(found, psutil.Process)
    return found


def prepared(decoder: psutil.Process) -> bool:
    """Whether it is past its start: its limit on memory is the last thing that it sets."""
    return "unlimited" not in next(
        line
        for line in Path(f"/proc/{decoder.pid}/limits").read_text().splitlines()
        if "address space" in line
    )


def kinds(client: redis.Redis) -> dict[str, str]:
    """The failures: name of the file → kind."""
    return {Path(e["img_path"]).name: e["error_msg"].partition(":")[0] for e in errors_of(client)}


def stored(client: redis.Redis) -> int:
    return int(client.get(KEYS.stored) or 0)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def many_scans(count: int, side: int = 4000) -> bytes:
    """A progressive JPEG with `count` scans too many: 31 bytes and about 5 ms each at this side."""
    body = encoded(Image.new("L", (side, side), 9), "JPEG", progressive=True)
    last = body.rfind(b"\xff\xda")
    return body[:last] + body[last:-2] * count + b"\xff\xd9"


SLOW = 300
ENDLESS = 12_000

# -- hostile files ------------------------------------------------------------------------------------

BROKEN = {"broken.png": "truncated", "broken_data_stream.png": "truncated"} | {
    f"crash-{digest}.tif": "not_image"
    for digest in ("1185209cf7655b5aed8ae5e77784dfdd18ab59e9", "63b1dffefc8c075ddc606c0a2f5fdc15ece78863",
                   "f46f5b2f43c370fe65706c11449f567ecc345e74")
}  # fmt: skip
WEB_FORMATS = {".jpg", ".mpo", ".png", ".gif", ".webp", ".tif", ".tiff", ".ico", ".cur"}


@pytest.mark.parametrize("engine", ["curl", "requests"])
def test_every_hostile_file_gets_its_kind_and_harms_no_neighbour(
    engine: str,
    settings: Settings,
    redis_client: redis.Redis,
    web: SimulatedWeb,
    shelf: Shelf,
    shared_data: Path,
    start: Any,
) -> None:
    files = sorted(path for path in (shared_data / "hostile-images").iterdir() if path.is_file())
    assert len(files) >= 96
    for number, path in enumerate(files):
        redis_client.lpush(KEYS.task, shelf.task(path.name, path.read_bytes()))
        redis_client.lpush(KEYS.task, task(f"http://{web.address}/as/good/{number}", f"/good/{number}.jpg"))
    began = time.monotonic()
    start(with_worker(settings, engine=engine)).end()
    assert time.monotonic() - began < 60
    images = {path.name for path in files if path.suffix in WEB_FORMATS}
    assert kinds(redis_client) == {p.name: "not_image" for p in files if p.name not in images} | BROKEN
    assert {p.name for p in stored_files(settings) if p.parent.name == "ds"} == images - BROKEN.keys()
    assert len(list((settings.worker.store_dir / "good").iterdir())) == len(files)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of zeros, black and white: compressed to a thousandth and less."""
    rows = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    pieces = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in pieces]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_bombs_are_refused_before_they_are_decoded(
    settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    gif = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    frame = gif.rfind(b",\0\0\0\0\1\0\1\0")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)  # its canvas says 1 by 1
    redis_client.lpush(
        KEYS.task,
        shelf.task("header.png", png_bomb(40_000, 40_000)),
        shelf.task("frame.gif", bytes(gif)),
        shelf.task("good.png", png_bomb(4000, 4000)),
    )
    start(settings).end()
    messages = {Path(e["img_path"]).name: e["error_msg"] for e in errors_of(redis_client)}
    assert messages == {
        "header.png": "not_image: 40000 by 40000 pixels, above the limit of 64000000",
        "frame.gif": "not_image: it holds more than 64000000 pixels",
    }
    assert stored(redis_client) == 1


def test_what_needs_too_much_memory_is_not_an_image(
    settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    greedy = encoded(Image.new("RGB", (7900, 8000)), "PNG")  # 250 MB as pixels
    redis_client.lpush(
        KEYS.task, shelf.task("greedy.png", greedy), shelf.task("good.png", png_bomb(800, 800))
    )
    start(with_worker(settings, verify_memory_bytes="256MiB")).end()
    assert kinds(redis_client) == {"greedy.png": "not_image"}
    assert "memory" in errors_of(redis_client)[0]["error_msg"]
    assert stored(redis_client) == 1


# -- hangs, crashes, kills ----------------------------------------------------------------------------


def test_a_picture_that_takes_too_long_fails_alone(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, shelf: Shelf, start: Any
) -> None:
    redis_client.lpush(KEYS.task, shelf.task("scans.jpg", many_scans(ENDLESS)))
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/good/{i}.jpg") for i in range(40))
    )
    began = time.monotonic()
    start(with_worker(settings, verify_timeout_s=3)).end()
    assert time.monotonic() - began < 40
    assert kinds(redis_client) == {"scans.jpg": "not_image"}
    assert errors_of(redis_client)[0]["error_msg"].endswith("took more than 3 s")
    assert stored(redis_client) == 40


def test_while_one_picture_hangs_others_are_decoded_and_the_loop_moves(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, shelf: Shelf, start: Any
) -> None:
    redis_client.lpush(KEYS.task, shelf.task("scans.jpg", many_scans(ENDLESS)))
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/good/{i}.jpg") for i in range(40))
    )
    worker = start(settings)
    hanging = busy_decoder()
    until(lambda: stored(redis_client) == 40)
    beat = json.loads(redis_client.hvals(KEYS.workers)[0])["at_ms"]
    until(lambda: json.loads(redis_client.hvals(KEYS.workers)[0])["at_ms"] > beat)
    assert hanging.is_running() and kinds(redis_client) == {}
    worker.stop()
    assert worker.outcome is True
    assert redis_client.llen(KEYS.task) == 1  # given back: the deadline of the drain is 2 s
    assert decoders() == []


def test_a_decoder_that_is_killed_is_replaced_and_its_picture_tried_again(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, shelf: Shelf, start: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("DLCONSOLE_REDIS", "redis://:secret@127.0.0.1/0")
    redis_client.lpush(KEYS.task, shelf.task("slow.jpg", many_scans(SLOW)))
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/good/{i}.jpg") for i in range(10))
    )
    worker = start(settings)
    until(
        lambda: stored(redis_client) == 10
    )  # so that only the slow one is left for a decoder to be busy with
    decoder = busy_decoder()
    assert not [name for name in decoder.environ() if name.startswith("DLCONSOLE_")]
    decoder.kill()
    worker.end()
    assert errors_of(redis_client) == []
    assert stored(redis_client) == 11
    assert "signal 9" in worker.log.getvalue()


def test_a_picture_that_crashes_two_decoders_is_at_fault(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, shelf: Shelf, start: Any
) -> None:
    redis_client.lpush(KEYS.task, shelf.task("crash.jpg", many_scans(ENDLESS)))
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/good/{i}", f"/good/{i}.jpg") for i in range(10))
    )
    worker = start(settings)
    until(lambda: stored(redis_client) == 10)
    for _ in range(2):
        victim = busy_decoder()
        victim.send_signal(signal.SIGSEGV)
        until(lambda old=victim: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)
    worker.end()
    assert kinds(redis_client) == {"crash.jpg": "not_image"}
    assert "signal 11" in errors_of(redis_client)[0]["error_msg"]
    assert stored(redis_client) == 10


def test_a_decoder_that_was_stopped_runs_out_of_its_time(
    settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    """Also where the picture does not get to it: it is larger than what a socket holds."""
    settings = with_worker(settings, verify_timeout_s=2, verify_processes=1)
    worker = start(settings, until_empty=False)
    redis_client.lpush(KEYS.task, shelf.task("first.png", png_bomb(800, 800)))
    until(lambda: stored(redis_client) == 1)
    (decoder,) = decoders()
    decoder.suspend()
    redis_client.lpush(KEYS.task, shelf.task("large.jpg", many_scans(ENDLESS)))
    until(lambda: kinds(redis_client) == {"large.jpg": "not_image"})
    redis_client.lpush(KEYS.task, shelf.task("last.png", png_bomb(800, 800)))
    until(lambda: stored(redis_client) == 2)
    worker.stop()
    assert worker.outcome is True


def test_a_session_that_is_replaced_while_decoding_counts_nothing_twice(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, shelf: Shelf, start: Any
) -> None:
    raws = [shelf.task(f"{i}.jpg", many_scans(20 + i, 1000)) for i in range(12)]
    raws += [task(f"http://{web.address}/as/good/{i}", f"/ds/good-{i}.jpg") for i in range(40)]
    redis_client.lpush(KEYS.task, *raws)
    worker = start(settings)
    for _ in range(3):
        (session,) = until(lambda: redis_client.zrange(KEYS.lease, 0, -1))
        until(lambda: worker.downloader._engine.backlog or not worker.thread.is_alive())
        redis_client.zadd(KEYS.lease, {session: 1}, xx=True)
        until(lambda old=session: redis_client.zscore(KEYS.lease, old) is None)
    worker.end()
    assert "session replaced" in worker.log.getvalue()
    assert stored(redis_client) == 52 == len(stored_files(settings))
    assert redis_client.llen(KEYS.task) == 0
    assert redis_client.exists(KEYS.sessions, KEYS.lease, KEYS.error) == 0


def test_where_decoding_is_slower_than_the_web_fetching_waits(
    settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    redis_client.lpush(KEYS.task, *(shelf.task(f"{i}.jpg", many_scans(100, 1000)) for i in range(40)))
    worker = start(with_worker(settings, concurrency=4, verify_processes=1))
    most = 0
    while worker.thread.is_alive():
        most = max(most, worker.downloader._engine.backlog)
        worker.thread.join(0.002)
    worker.end()
    assert 1 < most <= 8  # those that were under way when the slots were taken come on top
    assert stored(redis_client) == 40


def test_a_decoder_that_cannot_start_ends_the_worker_with_a_plain_error(
    settings: Settings, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken/PIL").mkdir(parents=True)
    (tmp_path / "broken/PIL/__init__.py").write_text("raise ImportError('no libjpeg here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "broken"), os.getcwd()]))
    worker = start(settings)
    worker.thread.join(60)
    assert isinstance(worker.outcome, ConfigError)
    assert "no libjpeg here" in str(worker.outcome)


def test_decoders_end_with_a_worker_that_is_killed(
    redis_url: str, redis_client: redis.Redis, shelf: Shelf, tmp_path: Path
) -> None:
    redis_client.lpush(KEYS.task, shelf.task("scans.jpg", many_scans(ENDLESS)))
    flags = [
        "--dataset",
        "ds",
        "--store",
        str(tmp_path / "s"),
        "--allow-network",
        "127.0.0.0/8",
        "--verify",
        "decode",
    ]
    command = [sys.executable, "-m", "dlconsole", "--worker", *flags, "--verify-timeout", "4s"]
    environment = {**os.environ, "DLCONSOLE_REDIS": redis_url}
    supervisor = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    family: list[psutil.Process] = []
    try:
        decoder = busy_decoder(supervisor.pid)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        worker = decoder.parent()
        assert worker is not None
        supervisor.kill()  # soon the worker ends by itself, and its decoders
        worker.kill()
        until(lambda: not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE, within_s=60)
    finally:
        supervisor.kill()
        supervisor.wait()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.mark.parametrize("told", ["right", "wrong"])
def test_a_store_that_fails_loses_neither_what_was_decoded_nor_what_is_to_be_kept(
    told: str, settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    body = png_bomb(100, 100)
    digest = hashlib.md5(body if told == "right" else b"").hexdigest()
    raws = [shelf.task(f"{i}.png", body, hash=digest) for i in range(20)]
    redis_client.lpush(KEYS.task, *raws)
    settings = with_worker(settings, verify_hash="md5", keep_mismatched=True)
    settings = settings.model_copy(update={"guard": settings.guard.model_copy(update={"check_s": 0.2})})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as a full disk
    try:
        worker = start(settings)
        until(lambda: "downloads wait for the store" in worker.log.getvalue())
        until(lambda: redis_client.llen(KEYS.task) == 20)
        assert stored(redis_client) == 0 and kinds(redis_client) == {}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    worker.end()
    assert (stored(redis_client), len(kinds(redis_client))) == ((20, 0) if told == "right" else (0, 20))
    assert len(list(settings.worker.store_dir.rglob("*.png"))) == 20


def test_without_decoding_no_process_is_started(
    settings: Settings, redis_client: redis.Redis, web: SimulatedWeb, start: Any
) -> None:
    redis_client.lpush(
        KEYS.task, *(task(f"http://{web.address}/as/slow/{i}", f"/{i}.jpg") for i in range(30))
    )
    worker = start(with_worker(settings, verify="off"))
    seen = 0
    while worker.thread.is_alive():
        seen += len(psutil.Process().children(recursive=True)) if decoders() else 0
        worker.thread.join(0.01)
    assert seen == 0 and stored(redis_client) == 30


# -- hashes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize("verify", ["off", "decode"])
def test_a_body_with_another_hash_is_a_failure_that_no_retry_heals(
    algorithm: str, verify: str, settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    body = png_bomb(100, 100)
    right = hashlib.new(algorithm, body).hexdigest()
    wrong = hashlib.new(algorithm, b"another").hexdigest()
    redis_client.lpush(
        KEYS.task,
        shelf.task("lower.png", body, hash=right),
        shelf.task("upper.png", body, hash=right.upper()),
        shelf.task("wrong.png", body, hash=wrong),
    )
    settings = settings.model_copy(update={"retry": settings.retry.model_copy(update={"max_attempts": 3})})
    start(with_worker(settings, verify=verify, verify_hash=algorithm)).end()
    (error,) = errors_of(redis_client)
    assert error["error_msg"] == f"hash_mismatch: its {algorithm} is {right}"
    assert error["hash"] == wrong and "_retry" not in error
    files = {
        p.relative_to(settings.worker.store_dir).as_posix() for p in settings.worker.store_dir.rglob("*.png")
    }
    assert files == {"ds/lower.png", "ds/upper.png"}


def test_a_body_with_another_hash_is_kept_on_request(
    settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    body = png_bomb(100, 100)
    redis_client.lpush(KEYS.task, shelf.task("wrong.png", body, hash="0" * 64))
    start(with_worker(settings, verify_hash="sha256", keep_mismatched=True)).end()
    (error,) = errors_of(redis_client)
    assert error["error_msg"].endswith("; kept as .dlconsole-mismatched/ds/wrong.png")
    store = settings.worker.store_dir
    assert (store / ".dlconsole-mismatched/ds/wrong.png").read_bytes() == body
    assert [path.parent.parent.name for path in stored_files(settings)] == [".dlconsole-mismatched"]


@pytest.mark.parametrize(
    "told", [None, "", "0" * 31, "x" * 32, 7, 2**70, -1.5, ["a"], {"a": 1}, True, "٣" * 32]
)
def test_a_task_without_a_hash_is_taken_as_it_is(
    told: object, settings: Settings, redis_client: redis.Redis, shelf: Shelf, start: Any
) -> None:
    redis_client.lpush(KEYS.task, shelf.task("a.png", png_bomb(100, 100), hash=told))
    redis_client.lpush(KEYS.task, shelf.task("b.png", png_bomb(100, 100)))
    worker = start(with_worker(settings, verify="off", verify_hash="md5"))
    worker.end()
    assert stored(redis_client) == 2
