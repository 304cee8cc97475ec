"""What every test may use: a real Redis of its own, the shared data, and a home of its own."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dlconsole.services.connection import connect
from dlconsole.services.embedded import EmbeddedRedis
from dlconsole.services.private_redis import PrivateRedis


def pytest_configure() -> None:
    """Processes that tests start hear signals, also where the test run itself was told not to (nohup, `&`)."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


QUICK = ["integration", "console", "unit"]
"""The folders whose tests take less time each than the others', the quickest last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for leases and deadlines begin first: one that is left for the end of a run over several
    processes is waited for by all others.
    """

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return QUICK.index(folder) if folder in QUICK else -1

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What was collected stays: each search for garbage would go through thousands of tests' objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home directory, and no setting from the environment. What a test starts there is stopped."""
    home = tmp_path_factory.mktemp("home")
    for name in os.environ:
        if name.startswith(("DLCONSOLE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    yield home
    EmbeddedRedis(home / ".local/state/dlconsole/redis").stop()


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def redis_url(_redis_server: PrivateRedis) -> str:
    """The URL of an empty real Redis; the tests of one process share the server, one after the other."""
    with connect(_redis_server.url, name="tests") as client:
        client.flushall()
    return _redis_server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A blocking client of that Redis: bytes in, bytes out."""
    with connect(redis_url, name="tests") as client:
        yield client


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real inputs that are kept beside the project; without them their tests skip."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real inputs: {folder} does not exist")
    return folder
