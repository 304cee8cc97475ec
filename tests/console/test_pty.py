"""The real program on a real terminal and a real Redis."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte
import pytest
import redis

from dlconsole.services.connection import connect
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis

KEYS = Keys("ds")
LIMIT_S = 30.0


class Terminal:
    """A program in a pseudo terminal of its own, and what stands on its screen."""

    def __init__(self, argv: list[str], columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.modes_before = termios.tcgetattr(slave)
        # The sizes that a test runner puts there would count more than the terminal's own.
        inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        self._slave = slave
        self.written = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def until(self, condition: Callable[[], object]) -> None:
        """Take in what the program writes until the condition holds."""
        ends_s = time.monotonic() + LIMIT_S
        while not condition():
            self.read(0.05)
            if time.monotonic() > ends_s:
                pytest.fail(f"not within {LIMIT_S:.0f} s; the screen:\n{self.text}")

    def shows(self, *words: str) -> None:
        self.until(lambda: all(word in self.text for word in words))

    def read(self, timeout_s: float) -> None:
        if select.select([self.master], [], [], timeout_s)[0]:
            data = os.read(self.master, 1 << 16)
            self.written += data
            self._stream.feed(data)

    def ends(self) -> int:
        """Until the program has ended and all it wrote is read; its exit status."""
        self.until(lambda: self.process.poll() is not None)
        while select.select([self.master], [], [], 0)[0]:
            self.read(0)
        return self.process.returncode

    def is_restored(self) -> bool:
        """Whether the terminal was left as it was found: modes, screen, cursor, mouse."""
        last = {
            mode: self.written.rfind(mode)
            for mode in (b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?25l")
        }
        return (
            termios.tcgetattr(self._slave) == self.modes_before
            and last[b"\x1b[?1049l"] > last[b"\x1b[?1049h"] >= 0
            and last[b"\x1b[?25h"] > last[b"\x1b[?25l"]
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self.master)


@contextmanager
def running(url: str, *arguments: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    argv = [
        sys.executable,
        "-m",
        "dlconsole",
        "--redis",
        url,
        "--dataset",
        "ds",
        "--refresh",
        "0.25",
        *arguments,
    ]
    terminal = Terminal(argv, columns, lines)
    try:
        yield terminal
    finally:
        terminal.close()


def fill(client: redis.Redis) -> None:
    client.mset({KEYS.stored: 8_812, KEYS.failed: 1_201})
    client.lpush(KEYS.task, *(f'{{"img_url":"http://a.example/{i}"}}' for i in range(512)))
    client.hset("tongji_worker_disk", mapping={"10_0_0_7": 812, "10_0_0_12": 431})


def polls_of(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40)])
def test_the_console_lives_in_a_terminal(
    redis_client: redis.Redis, redis_url: str, columns: int, lines: int
) -> None:
    fill(redis_client)
    with running(redis_url, columns=columns, lines=lines) as terminal:
        terminal.shows("QUEUED", "8,812", "1,201", "512", "10.0.0.7", "812 GiB", "● live", "refresh 0.25 s")
        redis_client.incrby(KEYS.stored, 100_000)
        terminal.shows("108,812")
        terminal.press("?")
        terminal.shows("Keys of the overview", "To the last row")  # all of it: a paint can come in parts
        terminal.press("\x1b")
        terminal.until(lambda: not any(w in terminal.text for w in ("Keys of the", "To the last row")))
        terminal.press("\x10")
        terminal.shows("Show every key", "Renew the picture more often")
        terminal.press("\x1b")
        terminal.until(lambda: not any(w in terminal.text for w in ("Show every key", "Renew the picture")))
        terminal.press(" ")
        terminal.shows("FROZEN")
        terminal.press(" ")
        terminal.until(lambda: "FROZEN" not in terminal.text)
        terminal.press("+")
        terminal.shows("refresh 0.5 s")
        terminal.press("q")
        assert terminal.ends() == 0
        assert terminal.is_restored()


def test_a_fleet_at_rest_writes_not_one_byte(redis_client: redis.Redis, redis_url: str) -> None:
    fill(redis_client)
    with running(redis_url, "--read-only") as terminal:
        terminal.shows("8,812", "● live")
        asked = polls_of(redis_client)
        terminal.until(lambda: polls_of(redis_client) > asked + 3)  # speeds are known, and are 0
        before, asked = len(terminal.written), polls_of(redis_client)
        terminal.until(lambda: polls_of(redis_client) > asked + 5)
        assert terminal.written[before:] == b""
        terminal.press("q")
        assert terminal.ends() == 0


@pytest.mark.parametrize("ending", ["ctrl+c", "SIGTERM", "SIGHUP"])
def test_however_it_ends_the_terminal_is_restored(redis_url: str, ending: str) -> None:
    with running(redis_url) as terminal:
        terminal.shows("Nothing in the dataset 'ds' yet")
        if ending == "ctrl+c":
            terminal.press("\x03")
        else:
            terminal.process.send_signal(signal.Signals[ending])
        assert terminal.ends() == 0
        assert terminal.is_restored()


def test_redis_goes_away_and_comes_back() -> None:
    with PrivateRedis() as server:
        with connect(server.url, name="tests") as client:
            fill(client)
        with running(server.url, columns=120, lines=40) as terminal:
            terminal.shows("8,812", "● live")
            server.kill()
            terminal.shows("✕ stale", "next try in", "8,812")
            terminal.press("?")
            terminal.shows("Keys of the overview", "To the last row")
            terminal.press("q")
            terminal.until(lambda: "To the last row" not in terminal.text)
            server.restart()
            terminal.shows("● live")
            terminal.resize(60, 18)
            terminal.shows("● live", "STORED")
            terminal.press("q")
            assert terminal.ends() == 0
            assert terminal.is_restored()
