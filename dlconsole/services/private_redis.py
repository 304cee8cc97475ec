"""A Redis that ends with its owner, for the demo and for the tests.

Also when the owner is killed: a watcher process, a few lines of shell, waits for the end of a pipe
that only the owner holds open. The kernel closes it however the owner ends. Unlike a parent-death
signal it depends on no thread, and the files go too. Leaving the context is the same path.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dlconsole.services.embedded import MAX_SOCKET_BYTES, START_TIMEOUT_S, EmbeddedRedis

# $1 is the directory. A server that its owner was starting when it died writes its pid a moment later.
_WATCHER: Final = """
trap '' HUP INT TERM
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -s "$1/redis.pid" ] && break
    sleep 0.1
done
pid=$(cat "$1/redis.pid" 2>/dev/null)
while [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; do
    kill -9 "$pid"
    sleep 0.02
done
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1" && [ ! -e "$1" ] && exit 0
    sleep 0.1
done
"""


@dataclass(slots=True)
class PrivateRedis:
    """A server with a temporary directory, as a context manager. Entering raises as `ensure_running`."""

    _server: EmbeddedRedis = field(init=False)
    _watcher: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        base = Path(tempfile.gettempdir())
        if len(os.fsencode(base.resolve())) > MAX_SOCKET_BYTES - 40:
            base = Path("/tmp")  # noqa: S108  (mkdtemp makes it private)
        directory = tempfile.mkdtemp(prefix="dlconsole-redis-", dir=base.resolve())
        self._server = EmbeddedRedis(Path(directory))
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "dlconsole-redis-watcher", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._server.ensure_running()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def url(self) -> str:
        """`unix:///…`; the same after `restart`."""
        return self._server.url

    @property
    def directory(self) -> Path:
        """The temporary data directory."""
        return self._server.directory

    def kill(self) -> None:
        """End the server as `kill -9` would; its files stay for `restart`."""
        self._server.kill()

    def restart(self) -> None:
        """Start the server again on its files. Returns when it answers."""
        self._server.ensure_running()

    def _end(self) -> None:
        self._watcher.communicate(timeout=START_TIMEOUT_S)  # closes the pipe; the watcher does the rest
