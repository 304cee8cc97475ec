"""A TCP proxy in front of Redis that can lose, repeat and cut what passes: one command at a time."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self

from dlconsole.services.scripts import script

SCRIPTS = {
    script(path.stem).sha.encode(): path.stem
    for path in (Path(__file__).parents[2] / "dlconsole/services/lua").glob("*.lua")
}


def packed(*words: bytes) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


LOAD = b"".join(packed(b"SCRIPT", b"LOAD", script(name).source) for name in SCRIPTS.values())


class Fault(Enum):
    """What happens to a command."""

    NONE = auto()
    CUT_BEFORE = auto()
    """The connection breaks before the server sees it."""
    CUT_AFTER = auto()
    """The server runs it, and the connection breaks before the reply."""
    TWICE = auto()
    """The server runs it two times; the client sees the second reply."""
    KILL_BEFORE = auto()
    """The server is killed, and starts again, before it sees it."""
    KILL_AFTER = auto()
    """The server runs it, is killed before the reply is out, and starts again."""


def name_of(command: list[bytes]) -> str:
    """A command's name; of a script, its file's."""
    verb = command[0].upper()
    if verb == b"EVALSHA":
        return SCRIPTS.get(command[1], "?")
    if verb == b"EVAL":
        return "eval"
    return verb.decode().lower()


class Strikes:
    """Strikes calls of one name at the chosen turns, counted over all connections; 1 is the first."""

    def __init__(self, name: str, fault: Fault, turns: Iterable[int]) -> None:
        self.left = set(turns)
        """Turns that have not come yet."""
        self._name = name
        self._fault = fault
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Fault:
        if name != self._name:
            return Fault.NONE
        with self._lock:
            self._calls += 1
            if self._calls not in self.left:
                return Fault.NONE
            self.left.remove(self._calls)
        return self._fault


class Wire:
    """Listens on a port of its own; `decide` is asked about each command, from the connection's thread."""

    def __init__(
        self,
        socket_path: str,
        decide: Callable[[str], Fault] = lambda _name: Fault.NONE,
        kill: Callable[[], object] = lambda: None,
    ) -> None:
        self.decide = decide
        self._kill = kill
        self.seen: Counter[str] = Counter()
        self._target = socket_path
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._killing = threading.Lock()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _strike_dead(self) -> None:
        with self._killing:  # one death at a time, whatever other connections meet
            self._kill()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._open.add(client)
        try:
            upstream.connect(self._target)
            requests, replies = client.makefile("rb"), upstream.makefile("rb")
            with requests, replies:
                # Else a fault would strike a call that is only told that the server knows no such script.
                upstream.sendall(LOAD)
                for _ in SCRIPTS:
                    read_reply(replies)
                while True:
                    raw, command = read_command(requests)
                    name = name_of(command)
                    self.seen[name] += 1
                    fault = self.decide(name)
                    if fault is Fault.KILL_BEFORE:
                        self._strike_dead()
                    if fault in {Fault.CUT_BEFORE, Fault.KILL_BEFORE}:
                        return
                    if fault is Fault.TWICE:
                        upstream.sendall(raw)
                        read_reply(replies)
                    upstream.sendall(raw)
                    if fault in {Fault.CUT_AFTER, Fault.KILL_AFTER}:
                        read_reply(replies)
                        if fault is Fault.KILL_AFTER:
                            self._strike_dead()
                        return
                    client.sendall(read_reply(replies))
        except (OSError, EOFError):
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
            upstream.close()


def read_line(stream) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line


def read_exactly(stream, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def read_command(stream) -> tuple[bytes, list[bytes]]:
    """One RESP array of bulk strings: its bytes and its parts."""
    line = read_line(stream)
    raw, parts = [line], []
    for _ in range(int(line[1:])):
        header = read_line(stream)
        body = read_exactly(stream, int(header[1:]) + 2)
        raw += [header, body]
        parts.append(body[:-2])
    return b"".join(raw), parts


def read_reply(stream) -> bytes:
    """One RESP2 reply, as it is."""
    line = read_line(stream)
    if line[:1] == b"$" and line[1:2] != b"-":
        return line + read_exactly(stream, int(line[1:]) + 2)
    if line[:1] == b"*" and line[1:2] != b"-":
        return line + b"".join(read_reply(stream) for _ in range(int(line[1:])))
    return line
