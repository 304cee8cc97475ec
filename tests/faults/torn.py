"""A Redis that dies with its machine: the end of its append-only file is lost, at any byte."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Final

from faults_support import aof
from wire import read_command

from dlconsole.services.private_redis import PrivateRedis

_MULTI: Final = re.compile(rb"\*1\r\n\$5\r\nMULTI\r\n", re.IGNORECASE)


def transactions(file: Path, begun: int) -> list[int]:
    """Where the transactions behind the offset `begun` begin: each is what one script wrote."""
    return [begun + found.start() for found in _MULTI.finditer(file.read_bytes()[begun:])]


def commands(file: Path, begun: int) -> list[int]:
    """Where the commands from `begun`, itself the beginning of one, to the end begin."""
    found = []
    with file.open("rb") as stream:
        stream.seek(begun)
        while True:
            found.append(stream.tell())
            try:
                read_command(stream)
            except EOFError:
                return found[:-1]


class PowerLoss:
    """Kills a server, cuts its file off within the last few transactions, and starts it again.

    What is there when this is made counts as safe on disk.
    """

    LAST = 3

    def __init__(self, server: PrivateRedis, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self._safe = aof(server).stat().st_size

    def __call__(self) -> None:
        self._server.kill()
        file = aof(self._server)
        begun = transactions(file, self._safe)[-self.LAST :]
        if begun:
            os.truncate(file, self._rng.randrange(begun[0], file.stat().st_size))
        self._server.restart()
        self._safe = aof(self._server).stat().st_size  # the start may have written it anew
