"""Resident memory of a whole worker on a hostile web: how much at most, and whether it stays there.

First comes a wave that fills every slot with a body just below the cap, all slow and all at once; then small
pictures in bulk, with hostile answers among them: more of the large ones, bodies without end, bodies over the
cap, headers without end, answers that trickle. One core has the web and Redis, the other one the worker.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

import redis
from PIL import Image

from bench.rig import EXIT_FAIL, Cores, Ratio, RigError, child, folder, machine, on_core, progress, run
from dlconsole import log
from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.supervisor import WorkerGroup
from dlconsole.settings import FeedSettings, FetchSettings, Settings, WorkerSettings

MOST_MIB: Final = 200.0
MOST_GROWTH: Final = 1.05
TASKS: Final = 200_000
CONCURRENCY: Final = 512
_CAP_BYTES: Final = 10 * 10**6
_LARGE_BYTES: Final = 9_900_000
_PIECE: Final = 64 * 2**10
_PAUSE_S: Final = 0.05
"""Between two pieces of a large body: it takes 8 s at least."""
_STRANGE: Final = ("large", "torn", "endless", "over", "headers", "hanging", "trickle", "chunks")
_STRANGE_EVERY: Final = 50
"""One task in so many is hostile: each kind comes once in 400."""
_HOSTS: Final = 2000
_SAMPLE_S: Final = 0.1
_EARLY, _LATE = (0.2, 0.4), (0.8, 1.0)
"""Parts of the tasks, by how many are done, whose memory is compared."""
_RUN_S: Final = 1800.0
_START_S: Final = 30.0
_BYTES_NEEDED: Final = 12 * 10**9


# -- the hostile web -----------------------------------------------------------------------------


def _small_picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class _Browser(asyncio.Protocol):
    """One connection. A small picture is answered at once; what is hostile has a task of its own."""

    def __init__(self, small: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(small)}\r\n\r\n"
        self._good = head.encode() + small
        self._small = small
        self._asked = b""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        while b"\r\n\r\n" in self._asked:
            head, _, self._asked = self._asked.partition(b"\r\n\r\n")
            kind = head[5 : head.index(b"/", 5)].decode()  # GET /kind/number
            if kind == "small":
                self._transport.write(self._good)
            else:
                self._task = asyncio.get_running_loop().create_task(self._be(kind))

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, _error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _send(self, data: bytes, pause_s: float = 0.0) -> None:
        await self._may_write.wait()
        self._transport.write(data)
        await asyncio.sleep(pause_s)

    async def _be(self, kind: str) -> None:
        """Answer as `kind` says; the connection is closed behind it."""
        image = self._small[:-2]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
        if kind in {"large", "torn"}:
            await self._send(head + b"Content-Length: %d\r\n\r\n" % _LARGE_BYTES + image)
            left = _LARGE_BYTES - len(image) - 2
            while left:
                piece = min(left, _PIECE)
                await self._send(bytes(piece), _PAUSE_S)
                left -= piece
            await self._send(b"\xff\xd9" if kind == "large" else b"\0\0")
        elif kind == "endless":
            await self._send(head + b"\r\n" + image)
            while True:
                await self._send(bytes(_PIECE))
        elif kind == "over":
            await self._send(head + b"Content-Length: %d\r\n\r\n" % (2 * _CAP_BYTES) + image)
            while True:
                await self._send(bytes(_PIECE))
        elif kind == "chunks":
            await self._send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(image) + image)
            while True:
                await self._send(b"\r\n10000\r\n" + bytes(_PIECE))
        elif kind == "headers":
            await self._send(head)
            while True:
                await self._send(b"X-More: " + b"x" * 8000 + b"\r\n")
        elif kind == "hanging":  # as many headers as libcurl takes, then nothing
            await self._send(head + (b"X-More: " + b"x" * 8000 + b"\r\n") * 36)
            await asyncio.sleep(3600)
        else:
            await self._send(head + b"Content-Length: 100000\r\n\r\n" + image)
            while True:
                await self._send(b"\0", 1.0)
        self._transport.close()


async def _serve() -> None:
    """Serve on every address of loopback until standard input ends; the port goes to standard output."""
    small = _small_picture()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Browser(small), "0.0.0.0", 0, backlog=4096)
    over = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 100) or over.set())
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()


def _urls(port: int, tasks: int, concurrency: int) -> Iterator[str]:
    """The wave first, then the rest; a hundred of the wave's bodies are whole, so that some are stored."""
    wave = min(concurrency, tasks // 10)
    for number in range(tasks):
        if number < wave:
            kind = "large" if number % 5 == 0 else "torn"
        elif number % _STRANGE_EVERY == 0:
            kind = _STRANGE[number // _STRANGE_EVERY % len(_STRANGE)]
        else:
            kind = "small"
        host = number % _HOSTS
        yield f"http://127.0.{1 + host // 250}.{1 + host % 250}:{port}/{kind}/{number}"


# -- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """How much memory the worker had when so many tasks were done; MiB."""

    at_s: float
    done: int
    rss: float
    anon: float
    pss: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: memory before the first task, the most there was, and what it was over time; MiB."""

    tasks: int
    seconds: float
    stored: int
    failed: int
    base: float
    peak: float
    samples: tuple[Sample, ...]

    def median(self, part: tuple[float, float]) -> float:
        """Of the resident memory, while that part of the tasks was done."""
        low, high = (fraction * self.tasks for fraction in part)
        found = [sample.rss for sample in self.samples if low <= sample.done < high]
        if not found:
            raise RigError("too few tasks for as many samples as are needed")
        return statistics.median(found)

    @property
    def ratios(self) -> list[Ratio]:
        """What is bounded."""
        growth = self.median(_LATE) / self.median(_EARLY)
        return [
            Ratio(f"peak memory / {MOST_MIB:.0f} MiB", (self.peak / MOST_MIB,), 1.0, at_most=True),
            Ratio("memory, last fifth / second fifth", (growth,), MOST_GROWTH, at_most=True),
        ]


def measure(
    redis_url: str, place: Path, cores: Cores, *, tasks: int = TASKS, concurrency: int = CONCURRENCY,
    engine: str = "curl",
) -> Measured:  # fmt: skip
    """Run a worker on the hostile web; its store is below `place`. Raises RigError."""
    with ExitStack() as stack:
        words = stack.enter_context((place / "memory.log").open("w+"))
        serve = [sys.executable, Path(__file__), "--serve"]
        server = stack.enter_context(
            child(serve, cores.server, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert server.stdout is not None
        port = int(server.stdout.readline())
        urls = place / "memory-urls.txt"
        urls.write_text("".join(f"{url}\n" for url in _urls(port, tasks, concurrency)), encoding="utf-8")
        settings = Settings(
            redis=redis_url,
            dataset="memory",
            worker=WorkerSettings(store_dir=place / "store", concurrency=concurrency, engine=engine),
            fetch=FetchSettings(
                allow_networks=("127.0.0.0/8",), max_bytes=_CAP_BYTES, deadline_s=120, min_rate_window_s=5
            ),
            feed=FeedSettings(layout="flat"),
            retry={"max_attempts": 1},
        )
        client = stack.enter_context(connect(settings.redis, name="bench"))
        client.flushall()
        group = WorkerGroup(settings, log.configure(settings.log, words), stderr=words.buffer)
        stack.callback(_end, group)
        with on_core(cores.client):
            group.tend()
        pid = group.pids[0]
        base = _settled(pid)
        progress(f"worker with {concurrency} slots, nothing to do: {base:.0f} MiB")
        feed(urls, settings)
        samples = tuple(_samples(client, Keys(settings.dataset), group, tasks))
        peak = _memory(pid)["VmHWM"]
        stored, failed = _counts(client, Keys(settings.dataset))
        if group.replaced:
            words.seek(0)
            raise RigError(f"the worker died: {words.read()[-2000:]}")
    return Measured(tasks, samples[-1].at_s, stored, failed, base, peak, samples)


def _settled(pid: int) -> float:
    """The memory of a worker that has started and waits: once it grows no more."""
    until = time.monotonic() + _START_S
    last, same = 0.0, 0
    while same < 10 and time.monotonic() < until:
        now = _memory(pid)["VmRSS"]
        same = same + 1 if now == last else 0
        last = now
        time.sleep(0.2)
    return last


def _samples(client: redis.Redis, keys: Keys, group: WorkerGroup, tasks: int) -> Iterator[Sample]:
    pid, started = group.pids[0], time.monotonic()
    said, done = 0, 0
    while done < tasks:
        time.sleep(_SAMPLE_S)
        group.tend()
        at_s = time.monotonic() - started
        if group.ended or group.replaced or at_s > _RUN_S:
            raise RigError(f"the worker stopped at {done:,} of {tasks:,} tasks")
        done = sum(_counts(client, keys))
        memory = _memory(pid)
        yield Sample(at_s, done, memory["VmRSS"], memory["RssAnon"], _pss(pid))
        if done * 10 // tasks > said:
            said = done * 10 // tasks
            progress(f"  {done:,} tasks, {at_s:.0f} s: {memory['VmRSS']:.0f} MiB")


def _counts(client: redis.Redis, keys: Keys) -> tuple[int, int]:
    stored, failed = client.mget(keys.stored, keys.failed)
    return int(stored or 0), int(failed or 0)


def _memory(pid: int) -> dict[str, float]:
    """What the kernel says of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def _end(group: WorkerGroup) -> None:
    group.stop()
    group.wait(5)


def main() -> int:
    """Measure and print; EXIT_FAIL above a bound."""
    args = _arguments()
    if args.serve:
        asyncio.run(_serve())
        return 0
    cores = Cores.of_this_machine()
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.server))
        place, kind = stack.enter_context(folder(in_memory=False, needs_bytes=_BYTES_NEEDED))
        private = stack.enter_context(PrivateRedis())
        with connect(private.url, name="bench") as client:
            facts = machine(f"{client.info('server')['redis_version']}")
        progress(f"{cores.note}; files on {kind}; {args.tasks:,} tasks, {args.concurrency} at once")
        found = measure(
            private.url, place, cores, tasks=args.tasks, concurrency=args.concurrency, engine=args.engine
        )
        ratios = found.ratios
    if args.json:
        report = {"machine": facts, "run": asdict(found), "ratios": {r.name: r.to_json() for r in ratios}}
        print(json.dumps(report, indent=1))
    else:
        _print_text(facts, found, ratios)
    return EXIT_FAIL if any(ratio.verdict == "FAIL" for ratio in ratios) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", type=int, default=TASKS, metavar="N", help=f"tasks (default: {TASKS})")
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, metavar="N", help=f"slots (default: {CONCURRENCY})"
    )
    parser.add_argument("--engine", choices=("curl", "requests"), default="curl", help="default: curl")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every sample")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tasks < 2000 or args.concurrency < 1:
        parser.error("at least 2000 tasks and 1 slot")
    return args


def _print_text(facts: dict[str, str], found: Measured, ratios: list[Ratio]) -> None:
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    print(
        f"{found.tasks:,} tasks in {found.seconds:.0f} s; {found.stored:,} stored, {found.failed:,} failed\n"
    )
    print(f"{'nothing to do':<42} {found.base:8.1f} MiB")
    for tenth in range(10):
        part = (tenth / 10, (tenth + 1) / 10)
        low, high = (fraction * found.tasks for fraction in part)
        inside = [sample for sample in found.samples if low <= sample.done < high]
        if inside:
            most = max(inside, key=lambda sample: sample.rss)
            print(
                f"{f'{tenth * 10} to {tenth * 10 + 10} % of the tasks':<42} {found.median(part):8.1f} MiB"
                f"  at most {most.rss:.1f} (anonymous {most.anon:.1f}, proportional {most.pss:.1f})"
            )
    print(f"{'peak':<42} {found.peak:8.1f} MiB\n")
    for ratio in ratios:
        print(ratio.line())


if __name__ == "__main__":
    sys.exit(run(main))
