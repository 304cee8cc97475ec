"""What the benchmarks stand on: cores, folders, children, ratios and the machine's name.

Everything is started as a context manager and ends with it, also on Ctrl-C and on SIGTERM.
"""

from __future__ import annotations

import os
import platform
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

SHARED_MEMORY: Final = Path("/dev/shm")
EXIT_FAIL: Final = 1
EXIT_CANNOT: Final = 2


class RigError(Exception):
    """The benchmark cannot be run, or what was measured did not do its work."""


class NotHere(RigError):
    """Something that a measurement needs is not on this machine."""


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
def on_core(*cores: int) -> Iterator[None]:
    """Whatever is started within runs on these cores, and so does this thread until it leaves."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
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
def child(arguments: Sequence[str | Path], *cores: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process on these cores; ended, and waited for, on the way out. Ctrl-C reaches it through us only."""
    with on_core(*cores):
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


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
