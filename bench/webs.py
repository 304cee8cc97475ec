"""Where the benchmarks' pictures come from: nginx, a web that answers late, and name servers.

All of them are processes on cores of their own choice, and answer on loopback only.
"""

from __future__ import annotations

import io
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from PIL import Image

from bench.rig import NotHere, RigError, child, free_port, nginx_binary, wait_for

PICTURES: Final = 100
PICTURE_BYTES: Final = 41_000
ADDRESSES: Final = tuple(f"127.0.0.{i}" for i in range(1, 17))
"""Where nginx listens, and names lead: several, as one has too few ports for all connections of a minute."""
DEAD: Final = "dead"
"""Names that begin so are never answered for."""
_START_S: Final = 10.0


def make_pictures(place: Path, seed: int = 0) -> None:
    """A hundred JPEGs of about 41 KB: noise over a colour, at the quality that gives the size."""
    place.mkdir()
    chance = random.Random(seed)
    for number in range(PICTURES):
        picture = _picture(chance, PICTURE_BYTES + chance.randint(-6000, 6000))
        (place / f"{number:02}.jpg").write_bytes(picture)


def _picture(chance: random.Random, wanted_bytes: int) -> bytes:
    size = (384, 288)
    noise = Image.frombytes("RGB", (96, 72), chance.randbytes(96 * 72 * 3)).resize(size)
    hue = Image.new("RGB", size, tuple(chance.randint(0, 255) for _ in range(3)))
    image = Image.blend(hue, noise, 0.6)
    low, high = 5, 97
    while low < high:
        quality = (low + high + 1) // 2
        if len(_jpeg(image, quality)) <= wanted_bytes:
            low = quality
        else:
            high = quality - 1
    return _jpeg(image, low)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def picture_path(number: int) -> str:
    """The path of the `number`th URL: all differ, and the last two digits name the picture."""
    return f"/img/{number:06}.jpg"


def check_pictures(found: Iterable[Path], urls: Iterable[str], pictures: Path, *, lost: int = 0) -> None:
    """Every URL's picture is there but `lost` of them, byte for byte and as often as it was asked for. Raises
    RigError.
    """
    number_of = {path.read_bytes(): int(path.stem) for path in pictures.iterdir()}
    stored = Counter(number_of.get(path.read_bytes(), -1) for path in found)
    wanted = Counter(int(url[-6:-4]) for url in urls)
    if stored - wanted or wanted.total() - stored.total() != lost:
        raise RigError(
            f"of {wanted.total():,} pictures {(wanted & stored).total():,} are there;"
            f" {stored[-1]:,} files are other than what was served"
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of nginx's certificate, with its key."""

    chain: Path
    key: Path


_NGINX: Final = """\
daemon off;
worker_processes 1;
pid {root}/nginx.pid;
error_log stderr crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    open_file_cache max=1000;
    types {{ image/jpeg jpg; }}
    client_body_temp_path {root}/t1;
    proxy_temp_path {root}/t2;
    fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4;
    scgi_temp_path {root}/t5;
    server {{
        {settings}
        root {pictures.parent};
        location /img/ {{ rewrite ^/img/\\d*(\\d\\d)\\.jpg$ /{pictures.name}/$1.jpg break; }}
    }}
}}
"""
_TLS: Final = """\
ssl_certificate {chain};
ssl_certificate_key {key};
ssl_protocols TLSv1.2 TLSv1.3;
ssl_session_cache off;
ssl_session_tickets off;
"""
"""No session can be taken up again: every connection is a whole handshake."""


@contextmanager
def nginx(pictures: Path, *cores: int, certificate: Certificate | None = None) -> Iterator[int]:
    """nginx with one process, serving these pictures; its port. Raises NotHere where it is not installed."""
    binary = nginx_binary()
    if binary is None:
        raise NotHere("nginx is not installed (Debian/Ubuntu: apt-get install nginx-light)")
    port = free_port()
    root = pictures.parent / f"nginx-{port}"
    root.mkdir()
    for readable in (pictures.parent, root):  # nginx's workers are another user when we are root
        readable.chmod(0o755)
    ssl = "ssl" if certificate else ""
    settings = "".join(f"listen {address}:{port} {ssl} backlog=4096;\n" for address in ADDRESSES)
    if certificate is not None:
        settings += _TLS.format(chain=certificate.chain, key=certificate.key)
    text = _NGINX.format(root=root, pictures=pictures, settings=settings)
    (root / "nginx.conf").write_text(text, encoding="utf-8")
    arguments = [binary, "-p", root, "-e", "stderr", "-c", root / "nginx.conf"]
    with (
        (root / "errors").open("w+") as errors,
        child(arguments, *cores, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors) as server,
    ):
        wait_for(lambda: server.poll() is not None or _answers(port), within_s=_START_S, what="nginx's start")
        if server.poll() is not None:
            errors.seek(0)
            raise RigError(f"nginx ended at once: {errors.read().strip()}")
        yield port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, slots=True)
class LateWeb:
    """A web of late_web.py, on every address of 127.0.0.0/8."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """What it has used up to now."""
        return sum(psutil.Process(self.pid).cpu_times()[:2])


@contextmanager
def late_web(pictures: Path, latency_s: float, core: int) -> Iterator[LateWeb]:
    """A web whose every answer comes so late."""
    with _program("late_web.py", [pictures, str(latency_s)], core) as (said, pid):
        yield LateWeb(int(said), pid)


@contextmanager
def name_server(core: int, address: str = "127.0.0.1:0") -> Iterator[str]:
    """The name server of names.py, `HOST:PORT`. Raises RigError where it cannot have that address."""
    with _program("names.py", [address, DEAD], core) as (said, _pid):
        yield said


@contextmanager
def _program(name: str, arguments: list[str | Path], core: int) -> Iterator[tuple[str, int]]:
    """A server of ours; the line that it says once it serves."""
    program = Path(__file__).with_name(name)
    with child([sys.executable, program, *arguments], core, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not said:
            raise RigError(f"{name} did not start")
        yield said, process.pid
