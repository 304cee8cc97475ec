"""What the benchmarks stand on: cores, folders, pictures, servers, children, ratios and the machine's name.

Everything is started as a context manager and ends with it, also on Ctrl-C and on SIGTERM.
"""

from __future__ import annotations

import io
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pycurl
from PIL import Image

from dlconsole.demo.web import Shares, SimulatedWeb, WebConfig, demo_urls

SHARED_MEMORY: Final = Path("/dev/shm")
PICTURES: Final = 100
PICTURE_BYTES: Final = 41_000
EXIT_FAIL: Final = 1
EXIT_CANNOT: Final = 2
_START_S: Final = 10.0


class RigError(Exception):
    """The benchmark cannot be run, or what was measured did not do its work."""


# -- output --------------------------------------------------------------------------------------


def progress(text: str) -> None:
    """One line on standard error; standard output has the results only."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of paired rounds, what they must reach, and whether their median does.

    A ratio is `ours / theirs`; with `at_most` it must stay below the bound instead of above it.
    """

    name: str
    values: tuple[float, ...]
    bound: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        """The figure that counts."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """PASS or FAIL; empty where there is no bound."""
        if self.bound is None:
            return ""
        good = self.median <= self.bound if self.at_most else self.median >= self.bound
        return "PASS" if good else "FAIL"

    def line(self) -> str:
        """For people."""
        text = f"{self.name:<42} {self.median:8.2f}  [{min(self.values):.2f}-{max(self.values):.2f}]"
        if self.bound is None:
            return f"{text}  for information"
        return f"{text}  {self.verdict}: {'at most' if self.at_most else 'at least'} {self.bound:g}"

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "median": round(self.median, 3),
            "min": round(min(self.values), 3),
            "max": round(max(self.values), 3),
            "bound": self.bound,
            "verdict": self.verdict or None,
        }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """The ratio of each round: what disturbs the machine disturbs both sides of it."""
    return tuple(a / b for a, b in zip(ours, theirs, strict=True))


def speeds(name: str, values: Sequence[float], unit: str) -> str:
    """One contender's line: median and range."""
    return f"{name:<42} {statistics.median(values):8,.0f}  [{min(values):,.0f}-{max(values):,.0f}] {unit}"


def run(main: Callable[[], int]) -> int:
    """Run a benchmark's `main`: SIGTERM unwinds like Ctrl-C, and what cannot be run is said in a line."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    try:
        return main()
    except KeyboardInterrupt:
        progress("Interrupted; everything that was started has ended.")
        return 130
    except RigError as error:
        progress(f"Cannot measure: {error}")
        return EXIT_CANNOT


# -- the machine ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the servers, one for the client; the same one where there is no other."""

    server: int
    client: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first and the last core that this process may use."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[-1])

    @property
    def note(self) -> str:
        """Where who runs."""
        if self.server == self.client:
            return "ONE core for servers and client: the ratios say little"
        return f"servers on core {self.server}, client on core {self.client}"


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Whatever is started within runs on `core`, and so does this thread until it leaves."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine(redis_version: str) -> dict[str, str]:
    """What the figures depend on."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libcurl": " ".join(pycurl.version.split()[:2]),  # the rest names its libraries
        "redis": redis_version,
        "nginx": nginx_version() or "not installed",
        "load": load,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def nginx_version() -> str | None:
    """The installed nginx, or None."""
    binary = nginx_binary()
    if binary is None:
        return None
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=False)
    return (said.stderr or said.stdout).strip().removeprefix("nginx version: ")


def nginx_binary() -> str | None:
    """Where nginx is; Debian has it in a folder that is not on everyone's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def folder(*, in_memory: bool, needs_bytes: int) -> Iterator[tuple[Path, str]]:
    """A temporary folder and what it is on: memory where that was asked for and has the room."""
    place, kind = Path(tempfile.gettempdir()), "disk"
    if in_memory:
        if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
            if shutil.disk_usage(SHARED_MEMORY).free > needs_bytes:
                place, kind = SHARED_MEMORY, "tmpfs"
            else:
                kind = f"{place} ({SHARED_MEMORY} has no {needs_bytes >> 20} MiB free)"
        else:
            kind = f"{place} (no {SHARED_MEMORY} here)"
    elif filesystem(place) in {"tmpfs", "ramfs"}:
        kind = f"{place}, which is no disk but {filesystem(place)}: set TMPDIR"
    if shutil.disk_usage(place).free <= needs_bytes:
        raise RigError(
            f"{place} has not the {needs_bytes >> 20} MiB free that this needs; ask for fewer tasks"
        )
    with tempfile.TemporaryDirectory(
        prefix="dlconsole-bench-", dir=place, ignore_cleanup_errors=True
    ) as name:
        yield Path(name), kind


def filesystem(path: Path) -> str:
    """The type of the filesystem that a folder is on."""
    real = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


# -- child processes -----------------------------------------------------------------------------


@contextmanager
def child(arguments: Sequence[str | Path], core: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process on a core; ended, and waited for, on the way out. Ctrl-C reaches it through us only."""
    with on_core(core):
        process = subprocess.Popen([str(a) for a in arguments], text=True, process_group=0, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_for(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Ask until the condition holds. Raises RigError when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise RigError(f"{what} took more than {within_s:.0f} s")
        time.sleep(0.005)


# -- pictures and the servers they come from -----------------------------------------------------


def make_pictures(place: Path, seed: int = 0) -> None:
    """A hundred JPEGs of about 41 KB: noise over a colour, at the quality that gives the size."""
    place.mkdir()
    chance = random.Random(seed)
    for number in range(PICTURES):
        picture = _picture(chance, PICTURE_BYTES + chance.randint(-6000, 6000))
        (place / f"{number:02}.jpg").write_bytes(picture)


def _picture(chance: random.Random, wanted_bytes: int) -> bytes:
    size = (384, 288)
    noise = Image.frombytes("RGB", (96, 72), chance.randbytes(96 * 72 * 3)).resize(size)
    hue = Image.new("RGB", size, tuple(chance.randint(0, 255) for _ in range(3)))
    image = Image.blend(hue, noise, 0.6)
    low, high = 5, 97
    while low < high:
        quality = (low + high + 1) // 2
        if len(_jpeg(image, quality)) <= wanted_bytes:
            low = quality
        else:
            high = quality - 1
    return _jpeg(image, low)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Web:
    """A server that runs: its name for the output, and `count` URLs of it, all different."""

    name: str
    is_nginx: bool
    urls: Callable[[int], list[str]]


@contextmanager
def web(place: Path, core: int) -> Iterator[Web]:
    """nginx with its pictures below `place`; where it is not installed, the project's simulated web."""
    if nginx_binary() is None:
        config = WebConfig(latency_s=0.0, shares=Shares(*[0.0] * len(Shares.__dataclass_fields__)), tls=False)
        with on_core(core):
            simulated = SimulatedWeb(config)
            simulated.__enter__()
        try:
            base = f"http://{simulated.address}"
            yield Web("the simulated web", False, lambda count: list(demo_urls(base, count)))
        finally:
            simulated.close()
        return
    with _nginx(place, core) as port:
        base = f"http://127.0.0.1:{port}/img"
        yield Web(
            nginx_version() or "nginx", True, lambda count: [f"{base}/{i:06}.jpg" for i in range(count)]
        )


_NGINX: Final = """\
daemon off;
worker_processes 1;
pid {root}/nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    open_file_cache max=1000;
    types {{ image/jpeg jpg; }}
    client_body_temp_path {root}/t1;
    proxy_temp_path {root}/t2;
    fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4;
    scgi_temp_path {root}/t5;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
        location /img/ {{ rewrite ^/img/\\d*(\\d\\d)\\.jpg$ /img/$1.jpg break; }}
    }}
}}
"""


@contextmanager
def _nginx(place: Path, core: int) -> Iterator[int]:
    root = place / "web"
    root.mkdir()
    make_pictures(root / "img")
    for readable in (place, root):  # nginx's workers are another user when we are root
        readable.chmod(0o755)
    port = free_port()
    (root / "nginx.conf").write_text(_NGINX.format(root=root, port=port), encoding="utf-8")
    binary = nginx_binary() or "nginx"
    arguments = [binary, "-p", root, "-e", "stderr", "-c", root / "nginx.conf"]
    with (
        (root / "errors").open("w+") as errors,
        child(arguments, core, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors) as server,
    ):
        wait_for(lambda: server.poll() is not None or _answers(port), within_s=_START_S, what="nginx's start")
        if server.poll() is not None:
            errors.seek(0)
            raise RigError(f"nginx ended at once: {errors.read().strip()}")
        yield port


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
