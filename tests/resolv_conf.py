"""Run as root of a host of its own (`unshare --mount --net`): a resolver whose resolv.conf comes and goes.

With a folder for it as the only argument; fails with an AssertionError.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from dns_server import NameServer, Reply

from dlconsole.settings import DnsSettings
from dlconsole.workers.fetch.dns import Answer, Resolver

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_RENEWED_S: Final = 1.5
"""After so long the resolver has a new channel: it is told to keep nothing."""


def main(folder: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    conf = folder / "resolv.conf"
    conf.touch()
    subprocess.run(["mount", "--bind", str(conf), "/etc/resolv.conf"], check=True)

    def serve(host: str) -> NameServer:
        return NameServer(lambda _: Reply((host,)), at=(host, 53))

    with serve("127.0.0.1"), serve("127.0.0.2") as second, serve("127.0.0.3"):
        _names_nobody_from_the_start(conf)
        _names_nobody_for_a_moment(conf, second.asked)


def _names_nobody_from_the_start(conf: Path) -> None:
    look = _Looker()
    for _ in range(3):
        assert look.up() == "127.0.0.1"
        time.sleep(_RENEWED_S)
    conf.write_text("nameserver 127.0.0.2\n")
    time.sleep(_RENEWED_S)
    assert look.up() == "127.0.0.2"


def _names_nobody_for_a_moment(conf: Path, asked: Counter[str]) -> None:
    look = _Looker()
    assert look.up() == "127.0.0.2"
    conf.write_text("")
    for _ in range(3):
        time.sleep(_RENEWED_S)
        assert look.up() == "127.0.0.2"
    assert asked["a3.test"] == 1  # nor is it c-ares that answers again
    conf.write_text("nameserver 127.0.0.3\n")
    time.sleep(_RENEWED_S)
    assert look.up() == "127.0.0.3"


class _Looker:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._resolver = Resolver(DnsSettings(max_ttl_s=0, min_ttl_s=0, negative_ttl_s=0), self._epoll)
        self._number = 0

    def up(self) -> str:
        """The address of a name that was not looked up before: that of the server which told it."""
        self._number += 1
        found: Answer | None = self._resolver.resolve(f"a{self._number}.test")
        by = time.monotonic() + 20
        while found is None:
            assert time.monotonic() < by
            for fd, events in self._epoll.poll(0.05):
                self._resolver.process(fd, events)
            self._resolver.tick()
            found = next((answer for _, answer in self._resolver.take_found()), None)
        return next(iter(found.addresses), "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
