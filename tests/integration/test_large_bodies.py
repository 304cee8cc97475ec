"""Bodies that are larger than their share of memory: in files while they come, in place when they are whole."""

from __future__ import annotations

import gc
import hashlib
import io
import random
import resource
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import redis
from integration_support import KEYS, Running, changed, errors_of, stored_files, task, until
from PIL import Image

from dlconsole.settings import Settings
from dlconsole.workers.files import PARTIAL

MIB = 2**20
SHARE_BYTES = 64 * 2**10
"""The least that there is: what is larger is in a file."""


def noise(seed: int, side: int = 500) -> bytes:
    """A JPEG of some 300 KB."""
    file = io.BytesIO()
    pixels = random.Random(seed).randbytes(side * side * 3)
    Image.frombytes("RGB", (side, side), pixels).save(file, "JPEG", quality=92)
    assert len(file.getvalue()) > 3 * SHARE_BYTES
    return file.getvalue()


PICTURE = noise(0)


def padded(size: int, seed: int) -> bytes:
    """A body of that size with a JPEG's beginning and end, unlike any other."""
    return PICTURE[:-2] + random.Random(seed).randbytes(32) + bytes(size - len(PICTURE) - 32) + b"\xff\xd9"


class Web:
    """Serves bodies by name; of those in `held_at` so many bytes at first, the rest when `gate` is open."""

    def __init__(self) -> None:
        web = self
        self.bodies: dict[str, bytes] = {}
        self.held_at: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        """What the Content-Length says, where that is not the truth; 0: there is none."""
        self.gate = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                name = self.path[1:]
                body = web.bodies[name]
                length = web.lengths.get(name, len(body))
                self.send_response(200)
                if length:
                    self.send_header("Content-Length", str(length))
                self.close_connection = length != len(body)
                self.end_headers()
                held_at = web.held_at.get(name, 0)
                try:
                    self.wfile.write(memoryview(body)[:held_at])
                    if held_at:
                        web.gate.wait(60)
                    self.wfile.write(memoryview(body)[held_at:])
                except OSError:  # cancelled
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is no matter."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def task(self, name: str, body: bytes, held_at: int = 0, **more: object) -> bytes:
        """A task for this body, to be stored as `/ds/<name>`."""
        self.bodies[name] = body
        self.held_at[name] = held_at
        return task(f"http://127.0.0.1:{self._server.server_port}/{name}", f"/ds/{name}", **more)

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def shelf() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture(params=["curl", "requests"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    settings = changed(settings, "fetch", deadline_s=60, max_bytes="16MiB", per_host=64)
    settings = changed(settings, "guard", check_s=0.2)
    return changed(settings, "worker", engine=request.param, buffer_bytes="1MiB", concurrency=16)


def unfinished(settings: Settings) -> list[Path]:
    return [path for path in (settings.worker.store_dir / PARTIAL).rglob("*") if path.is_file()]


def in_files(settings: Settings) -> int:
    """How many bytes of bodies are in unfinished files."""
    total = 0
    for path in unfinished(settings):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


def in_place(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stored_files(settings) if PARTIAL not in path.parts}


def test_many_large_bodies_at_once_take_little_memory_and_are_written_once(
    settings: Settings, redis_client: redis.Redis, shelf: Web
) -> None:
    """All of them wait just before their end. What is in place then is the same file, not a copy."""
    count, size = 16, 8 * MIB
    whole = padded(size, 0)
    for i in range(count):
        redis_client.lpush(KEYS.task, shelf.task(f"{i}.jpg", whole, held_at=size - 1000))
    gc.collect()
    before = psutil.Process().memory_info().rss
    worker = Running(settings)
    until(lambda: in_files(settings) >= count * (size - SHARE_BYTES - 1000 - 2**16), within_s=60)
    assert psutil.Process().memory_info().rss - before < 40 * MIB
    inodes = {path.stat().st_ino for path in unfinished(settings)}
    assert len(inodes) == count
    shelf.gate.set()
    until(lambda: int(redis_client.get(KEYS.stored) or 0) == count, within_s=60)
    assert worker.stop() is True
    assert in_place(settings) == {f"{i}.jpg": whole for i in range(count)}
    assert {path.stat().st_ino for path in stored_files(settings)} == inodes
    assert unfinished(settings) == []


def test_a_large_body_that_comes_to_nothing_leaves_nothing(
    settings: Settings, redis_client: redis.Redis, shelf: Web
) -> None:
    """All that the worker is told to keep is kept byte for byte."""
    settings = changed(settings, "fetch", max_bytes=MIB, deadline_s=5)
    settings = changed(settings, "worker", verify_hash="sha256", keep_mismatched=True)
    good = padded(700_000, 1)
    wanted = {"truncated": 2, "too_large": 1, "timeout": 1, "hash_mismatch": 1}
    shelf.lengths |= {"cut": 800_000, "endless": 0}
    tasks = [
        shelf.task("torn", good[:-2]),
        shelf.task("cut", good),
        shelf.task("endless", padded(2 * MIB, 2)),
        shelf.task("late", good, held_at=600_000),
        shelf.task("other", good, hash="0" * 64),
        shelf.task("good", good, hash=hashlib.sha256(good).hexdigest()),
    ]
    redis_client.lpush(KEYS.task, *tasks)
    worker = Running(settings)
    until(lambda: redis_client.llen(KEYS.error) == 5 and redis_client.get(KEYS.stored) == b"1", within_s=60)
    until(lambda: unfinished(settings) == [])
    assert worker.stop() is True
    kinds = [error["error_msg"].partition(":")[0] for error in errors_of(redis_client)]
    assert {kind: kinds.count(kind) for kind in kinds} == wanted
    assert in_place(settings) == {"good": good, "other": good}


def test_a_stop_and_a_fence_leave_nothing_of_what_was_coming(
    settings: Settings, redis_client: redis.Redis, shelf: Web
) -> None:
    settings = changed(settings, "worker", drain_s=0)
    whole = padded(2 * MIB, 3)
    for i in range(4):
        redis_client.lpush(KEYS.task, shelf.task(f"{i}.jpg", whole, held_at=MIB))
    worker = Running(settings)
    until(lambda: in_files(settings) > 3 * MIB)
    first = set(unfinished(settings))
    (session,) = redis_client.zrange(KEYS.lease, 0, -1)
    redis_client.zadd(KEYS.lease, {session: 1})
    until(lambda: not first & set(unfinished(settings)))
    until(lambda: in_files(settings) > 3 * MIB)  # the next session's
    assert worker.stop() is True
    assert stored_files(settings) == []
    assert redis_client.llen(KEYS.task) == 4
    assert redis_client.exists(KEYS.error) == 0


@pytest.fixture
def no_room() -> Iterator[Callable[[bool], None]]:
    """Make every write to a file fail, as a full disk does: the kernel's limit on a file's size is 0."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_store_that_fails_under_large_bodies_has_them_again_later(
    settings: Settings, redis_client: redis.Redis, shelf: Web, no_room: Callable[[bool], None]
) -> None:
    """Those that were in files already, and those that were about to be."""
    wanted = {f"{i}.jpg": padded(MIB + i, i) for i in range(8)}
    for i, (name, body) in enumerate(wanted.items()):
        redis_client.lpush(KEYS.task, shelf.task(name, body, held_at=MIB // 2 if i % 2 else 1000))
    worker = Running(settings)
    until(lambda: len(unfinished(settings)) == 4 and in_files(settings) > MIB)
    no_room(True)
    shelf.gate.set()
    until(lambda: "downloads wait for the store" in worker.log.getvalue())
    until(lambda: redis_client.llen(KEYS.task) == 8)  # given back, for others to take
    assert redis_client.exists(KEYS.error) == 0
    assert stored_files(settings) == []
    no_room(False)
    until(lambda: redis_client.get(KEYS.stored) == b"8", within_s=60)
    assert worker.stop() is True
    assert redis_client.exists(KEYS.error) == 0
    assert in_place(settings) == wanted


def test_bodies_that_were_lost_with_the_store_do_not_hold_it_up_again(
    settings: Settings, redis_client: redis.Redis, shelf: Web
) -> None:
    """The store was closed and is well again before they go on: they are fetched again, nobody waits."""
    wanted = {f"{i}.jpg": padded(MIB, i) for i in range(4)}
    redis_client.lpush(KEYS.task, *(shelf.task(name, body, MIB // 2) for name, body in wanted.items()))
    worker = Running(settings)
    until(lambda: len(unfinished(settings)) == 4)
    away = settings.worker.store_dir.with_name("away")
    settings.worker.store_dir.rename(away)
    until(lambda: "downloads wait for the store" in worker.log.getvalue())
    away.rename(settings.worker.store_dir)
    until(lambda: "the store is well again" in worker.log.getvalue(), within_s=60)
    shelf.gate.set()
    until(lambda: redis_client.get(KEYS.stored) == b"4", within_s=60)
    assert worker.stop() is True
    assert worker.log.getvalue().count("downloads wait for the store") == 1
    assert redis_client.exists(KEYS.error) == 0
    assert in_place(settings) == wanted
    assert unfinished(settings) == []


def test_large_pictures_are_decoded_from_their_files(
    settings: Settings, redis_client: redis.Redis, shelf: Web
) -> None:
    settings = changed(settings, "worker", verify="decode", verify_timeout_s=60, verify_processes=1)
    good = {f"{i}.jpg": noise(i) for i in range(12)}
    png = io.BytesIO()
    Image.frombytes("RGB", (400, 400), random.Random(7).randbytes(480_000)).save(png, "PNG")
    broken = bytearray(png.getvalue())
    broken[200_000:200_100] = bytes(100)  # whole by its structure, and no decoder likes it
    redis_client.lpush(KEYS.task, *(shelf.task(name, body) for name, body in good.items()))
    redis_client.lpush(KEYS.task, shelf.task("broken.png", bytes(broken)))
    worker = Running(settings, until_empty=True)
    worker.thread.join(120)
    assert worker.outcome is True
    (error,) = errors_of(redis_client)
    assert error["img_path"] == "/ds/broken.png"
    assert error["error_msg"].startswith("not_image: decoding failed")
    assert in_place(settings) == good
    assert unfinished(settings) == []
