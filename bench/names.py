"""A name server as a process: `python names.py HOST:PORT PREFIX`. It says its address once it serves.

Each name has one address of 127.0.0.1 to 127.0.0.16, by its digest; names that begin with PREFIX are never
answered for. It ends with its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import socket
import threading
import zlib
from dataclasses import dataclass
from typing import Final

from bench.webs import ADDRESSES
from tests.dns_server import NameServer, Reply

_WAITING_BYTES: Final = 8 * 2**20
"""Room for questions that come at once: one that is lost costs its asker a second."""


@dataclass
class Names(NameServer):
    """The tests' server, at an address of our choice and with more room for questions."""

    host: str = "127.0.0.1"
    port: int = 0

    def serve(self) -> None:
        """Until standard input ends; says the address first."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING_BYTES)
        self._socket.bind((self.host, self.port))
        threading.Thread(target=self._serve, daemon=True).start()
        print(f"{self.host}:{self._socket.getsockname()[1]}", flush=True)
        sys.stdin.read()


def main() -> None:
    """See above."""
    host, _, port = sys.argv[1].partition(":")
    dead = sys.argv[2]

    def answer(name: str) -> Reply | None:
        if name.startswith(dead):
            return None
        return Reply((ADDRESSES[zlib.crc32(name.encode()) % len(ADDRESSES)],))

    Names(answer, host=host, port=int(port)).serve()


if __name__ == "__main__":
    main()
