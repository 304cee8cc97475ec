"""A private, real Redis: what dlconsole runs on when no server is configured.

It listens on a Unix socket only, keeps an append-only file in its data directory, and outlives
whoever started it. One lock file decides everything: whoever starts the server takes the lock and
hands the open descriptor on to it, so the kernel holds the lock exactly as long as the server lives.
That makes starting race-free, keeps a second server off the same append-only file, and tells a
running server from stale socket and pid files, however it ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from platform import node
from typing import Any, Final, Literal
from urllib.parse import quote

import psutil
from redis.exceptions import BusyLoadingError, RedisError as LibraryError

from dlconsole.errors import RedisUnavailable, RedisUnusable
from dlconsole.services import connection, torn_aof
from dlconsole.services.redis_binary import find_server
from dlconsole.settings import Settings
from dlconsole.units import format_bytes

START_TIMEOUT_S: Final = 15.0
LOADING_TIMEOUT_S: Final = 600.0
"""How long a large append-only file may take to load."""
_POLL_S: Final = 0.02
MAX_SOCKET_BYTES: Final = 100
"""`sun_path` holds 108 bytes on Linux and 104 elsewhere; Redis cuts longer ones off silently."""
_MAX_LOG_BYTES: Final = 2**20
_CLIENT_NAME: Final = "dlconsole-redis"


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """A running server of ours. `client_names` has one name for each other connection, '' for none."""

    pid: int
    version: str
    binary: str
    socket: str
    directory: str
    used_bytes: int
    keys: int
    client_names: tuple[str, ...]
    uptime_s: int
    loading: bool
    aof: bool
    aof_bytes: int
    aof_ok: bool
    policy: str

    @property
    def clients(self) -> int:
        """Connections other than the one that asked."""
        return len(self.client_names)


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """The own Redis of one data directory; the directory is made when it is first started."""

    directory: Path

    @classmethod
    def of(cls, settings: Settings) -> EmbeddedRedis:
        """The own Redis that these settings name, in `state_dir`/redis."""
        return cls(Path(os.path.abspath(settings.state_dir)) / "redis")

    @property
    def socket(self) -> Path:
        """Where the server listens, or would: a long directory gets a short place for its socket."""
        recorded = self._record().get("socket")
        return Path(recorded) if recorded and self.is_running() else self._socket_place()

    @property
    def url(self) -> str:
        """`unix:///…`, as in the settings."""
        return "unix://" + quote(str(self.socket))

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "redis.log"

    def is_running(self) -> bool:
        """Whether a server (or somebody who is starting one) holds the lock."""
        try:
            lock = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def ensure_running(self) -> str:
        """Start the server unless it runs; its URL, once it answers with its data loaded.

        Raises RedisUnusable when there is no binary or it dies (with the end of its log), and
        RedisUnavailable when it runs and does not answer.
        """
        _make_private(self.directory.resolve())
        launched = healed = False
        log_start = 0
        deadline = time.monotonic() + START_TIMEOUT_S
        load_deadline = deadline + LOADING_TIMEOUT_S
        while True:
            answer = self._ping()
            if answer == "ready":
                if launched and torn_aof.was_cut(self.log, log_start):
                    torn_aof.mend(self.url)
                return self.url
            if answer == "loading":
                deadline = min(time.monotonic() + START_TIMEOUT_S, load_deadline)
            lock = self._take_lock()
            if lock is not None:
                try:
                    if launched:
                        raise self._died(log_start)
                    log_start = self._launch(lock)
                finally:
                    os.close(lock)  # the server has its own copy
                launched = True
            elif time.monotonic() > deadline:
                if healed or not self._restartable():
                    raise self._silent()
                healed, deadline = True, time.monotonic() + START_TIMEOUT_S
            time.sleep(_POLL_S)

    def status(self) -> EmbeddedStatus | None:
        """What runs, or None. Raises RedisUnavailable when it runs and does not answer."""
        if not self.is_running():
            return None
        with connection.translated(self.url), connection.connect(self.url, name=_CLIENT_NAME) as client:
            info = client.info()
            own_id = str(client.client_id())
            clients = client.client_list()
        names = tuple(str(item.get("name", "")) for item in clients if item.get("id") != own_id)
        return EmbeddedStatus(
            pid=int(info["process_id"]),
            version=str(info.get("valkey_version") or info["redis_version"]),
            binary=str(info.get("executable", "")),
            socket=str(self.socket),
            directory=str(self.directory),
            used_bytes=int(info["used_memory"]),
            keys=_count_keys(info),
            client_names=names,
            uptime_s=int(info["uptime_in_seconds"]),
            loading=bool(info["loading"]),
            aof=bool(info["aof_enabled"]),
            aof_bytes=int(info.get("aof_current_size", 0)),
            aof_ok=info.get("aof_last_write_status", "ok") == "ok",
            policy=str(info["maxmemory_policy"]),
        )

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop the server, its data safe on disk; False if none ran.

        Raises RedisUnavailable when it still runs after `timeout_s` seconds.
        """
        if not self.is_running():
            return False
        socket, deadline = self.socket, time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                raise self._silent("does not end")
            self._shut_down()
            time.sleep(_POLL_S)
        if socket.parent != self.directory.resolve():
            with suppress(OSError):  # not empty: someone has started it again
                socket.parent.rmdir()
        return True

    def kill(self, *, timeout_s: float = 10.0) -> None:
        """End the server as `kill -9` would. Raises RedisUnavailable if it still runs after `timeout_s`."""
        self._signal_server("kill")
        deadline = time.monotonic() + timeout_s
        while self.is_running():
            if time.monotonic() > deadline:
                raise self._silent("does not end")
            time.sleep(_POLL_S)

    @property
    def _lock_path(self) -> Path:
        return self.directory / "server.lock"

    @property
    def _pid_path(self) -> Path:
        return self.directory / "redis.pid"

    def _record(self) -> dict[str, str]:
        """What whoever started the server left in the lock file: its socket and its host.

        The socket is not computed anew, because the temporary directory can differ between sessions.
        """
        try:
            record = json.loads(self._lock_path.read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _socket_place(self) -> Path:
        beside = self.directory.resolve() / "redis.sock"
        if len(os.fsencode(beside)) <= MAX_SOCKET_BYTES:
            return beside
        digest = sha256(os.fsencode(beside)).hexdigest()[:12]
        place = Path(f"dlconsole-{os.geteuid()}-{digest}", "redis.sock")
        short = Path(tempfile.gettempdir()).resolve() / place
        return short if len(os.fsencode(short)) <= MAX_SOCKET_BYTES else Path("/tmp") / place  # noqa: S108  (private, see _make_private)

    def _take_lock(self) -> int | None:
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RedisUnusable(f"{self._lock_path}: cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _launch(self, lock: int) -> int:
        """Start the server as a daemon that inherits `lock` and nothing else; the log's size before."""
        server = find_server()
        if server.version[0] < 7 and (self.directory / "appendonlydir").exists():
            # An older server does not see these files: it would start empty, without a word.
            raise RedisUnusable(
                f"{self.directory}: this data was written by Redis 7 or newer (or Valkey), and {server.path} "
                f"is {server.words}: put the newer redis-server first on PATH"
            )
        socket = self._socket_place()
        try:
            log_size = self._prepare(lock, socket)
        except OSError as error:
            raise RedisUnusable(f"{self.directory}: cannot be written: {error.strerror}") from None
        try:
            done = subprocess.run(
                [server.path, *self._arguments(socket)],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                cwd="/",
                umask=0o077,
                start_new_session=True,
                timeout=START_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RedisUnusable(f"{server.path} cannot be started: {error}") from None
        if done.returncode:
            raise self._died(log_size, done.stdout.decode(errors="replace"))
        return log_size

    def _prepare(self, lock: int, socket: Path) -> int:
        if socket.parent != self.directory.resolve():
            _make_private(socket.parent)
        record = json.dumps({"host": node(), "socket": str(socket)}).encode()
        os.pwrite(lock, record, 0)  # over the old one, which a full disk allows
        os.ftruncate(lock, len(record))
        for stale in (self._pid_path, socket):
            stale.unlink(missing_ok=True)
        log_size = self.log.stat().st_size if self.log.exists() else 0
        if log_size <= _MAX_LOG_BYTES:
            return log_size
        self.log.replace(self.log.with_suffix(".log.1"))
        return 0

    def _arguments(self, socket: Path) -> list[str]:
        directory = self.directory.resolve()
        options = {
            "daemonize": "yes",
            "dir": directory,
            "port": 0,
            "unixsocket": socket,
            "unixsocketperm": 600,
            "pidfile": directory / self._pid_path.name,
            "logfile": directory / self.log.name,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def _ping(self) -> Literal["ready", "loading", "silent"]:
        socket = self.socket
        if not socket.exists():
            return "silent"
        try:
            with connection.connect("unix://" + quote(str(socket)), name=_CLIENT_NAME) as client:
                client.ping()
        except BusyLoadingError:
            return "loading"
        except (LibraryError, OSError):
            return "silent"
        return "ready"

    def _signal_server(self, signal: Literal["terminate", "kill"]) -> None:
        try:
            process = psutil.Process(int(self._pid_path.read_text()))
            # A pid that the system has given to another process does not work in our directory.
            if self.is_running() and Path(process.cwd()) == self.directory.resolve():
                getattr(process, signal)()
        except (OSError, ValueError, psutil.Error):
            return

    def _shut_down(self) -> None:
        try:
            with connection.connect(self.url, name=_CLIENT_NAME) as client:
                client.client_id()  # shutdown() itself is silent when there is no connection
                client.shutdown(nosave=True)  # «nosave» is about snapshots: the append-only file is synced
        except (LibraryError, OSError):
            self._signal_server("terminate")

    def _restartable(self) -> bool:
        """Whether a server that lives on without its socket (a cleaned /tmp) was told to end."""
        if self.socket.exists() or self._record().get("host") != node():
            return False
        self._signal_server("terminate")
        return True

    def _silent(self, what: str = "runs but does not answer") -> RedisUnavailable:
        host = self._record().get("host", node())
        if host != node():
            return RedisUnavailable(
                f"the own Redis in {self.directory} is in use on the host {host}: "
                "give both hosts one server with --redis, or this host another state_dir"
            )
        try:
            pid = self._pid_path.read_text().strip()
        except OSError:
            pid = "unknown"
        return RedisUnavailable(
            f"the own Redis in {self.directory} (pid {pid}) {what}; its log is {self.log}"
        )

    def _died(self, log_start: int, said: str = "") -> RedisUnusable:
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(log_start)
            said += "\n" + log.read(_MAX_LOG_BYTES).decode(errors="replace")
        tail = [line for line in said.splitlines() if line.strip() and "WARNING" not in line][-6:]
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < _MAX_LOG_BYTES:
            tail.append(f"(the disk of {self.directory} is full: {format_bytes(free_bytes)} free)")
        return RedisUnusable(
            "\n  ".join([f"the own Redis in {self.directory} did not come up; the end of {self.log}:", *tail])
        )


def resolve(settings: Settings) -> Settings:
    """Settings that name a Redis: as they are, or with the own one, which is started if need be.

    Raises RedisUnusable or RedisUnavailable when the own one cannot be had. Blocks meanwhile.
    """
    if settings.redis:
        return settings
    return settings.model_copy(update={"redis": EmbeddedRedis.of(settings).ensure_running()})


def _count_keys(info: dict[str, Any]) -> int:
    return sum(int(v["keys"]) for k, v in info.items() if k.startswith("db") and isinstance(v, dict))


def _make_private(directory: Path) -> None:
    """Make sure that `directory` exists, is ours and is closed to others. Raises RedisUnusable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RedisUnusable(
            f"{directory}: cannot be used for the own Redis: {error.strerror}; "
            "set state_dir to a folder of yours, or name a server with --redis"
        ) from None
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise RedisUnusable(f"{directory}: belongs to another user; the own Redis does not go there")
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(handle, 0o700)
    finally:
        os.close(handle)
