"""The simulated web on real sockets: what clients see, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import psutil
import pycurl
import pytest
import requests
from PIL import Image

from dlconsole.demo.behaviour import Behaviour, Shares, behaviour_of, demo_urls, plan_of
from dlconsole.demo.certificates import Authority
from dlconsole.demo.pictures import Picture, make_pictures
from dlconsole.demo.server import WebServer
from dlconsole.demo.web import SimulatedWeb, WebConfig, build_server
from dlconsole.errors import DlconsoleError

SEED = 11
OVERSIZED = 600_000
CONFIG = WebConfig(
    seed=SEED,
    latency_s=0.002,
    slow_s=(0.2, 0.3),
    oversized_bytes=OVERSIZED,
    retry_after_s=7,
    more_hosts=("127.0.0.2",),
)


@pytest.fixture(scope="module")
def web() -> Iterator[SimulatedWeb]:
    with SimulatedWeb(CONFIG) as web:
        yield web
    assert web.complaints == ""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[WebServer, int]]:
    """The server in this process, where its connections can be counted; with an idle time of 0.3 s."""
    server = build_server(replace(CONFIG, idle_timeout_s=0.3), Authority(tmp_path))
    yield server, await server.start(("127.0.0.1",), 0)
    await server.stop()
    assert not server.connections


@dataclass
class Seen:
    """What libcurl saw: its error (0: none), the last status, the last head, the body."""

    error: int = 0
    status: int = 0
    redirects: int = 0
    elapsed_s: float = 0.0
    head: bytes = b""
    body: bytes = b""
    numbers: list[int] = field(default_factory=list)


def curl(url: str, *, web: SimulatedWeb | None = None, trust: Path | None = None, **options: int) -> Seen:
    """One request, through the proxy where `web` is given. TLS is verified."""
    handle, head, body, seen = pycurl.Curl(), BytesIO(), BytesIO(), Seen()
    defaults = {"NOSIGNAL": 1, "TIMEOUT_MS": 8000, "FOLLOWLOCATION": 1, "MAXREDIRS": 5}
    for name, value in {**defaults, **options}.items():
        handle.setopt(getattr(pycurl, name), value)
    handle.setopt(pycurl.URL, url)
    handle.setopt(pycurl.NOPROXY, "")
    handle.setopt(pycurl.PROXY, f"http://{web.address}" if web else "")
    if trust:
        handle.setopt(pycurl.CAINFO, str(trust))
    handle.setopt(pycurl.HEADERFUNCTION, head.write)
    handle.setopt(pycurl.WRITEFUNCTION, body.write)
    try:
        handle.perform()
    except pycurl.error as error:
        seen.error = error.args[0]
    seen.status = handle.getinfo(pycurl.RESPONSE_CODE)
    seen.redirects = handle.getinfo(pycurl.REDIRECT_COUNT)
    seen.elapsed_s = handle.getinfo(pycurl.TOTAL_TIME)
    seen.head, seen.body = head.getvalue(), body.getvalue()
    handle.close()
    return seen


@dataclass
class Way:
    """A way to the web: as an origin, or through the proxy in plain text or over TLS."""

    base: str
    get: Callable[..., Seen]


@pytest.fixture(params=["origin", "proxy", "tunnel"])
def way(request: pytest.FixtureRequest, web: SimulatedWeb) -> Way:
    if request.param == "origin":
        return Way(f"http://{web.address}", curl)
    if request.param == "proxy":
        return Way("http://pictures.example", lambda url, **o: curl(url, web=web, **o))
    return Way("https://pictures.example", lambda url, **o: curl(url, web=web, trust=web.ca_path, **o))


@cache
def pictures() -> tuple[Picture, ...]:
    return make_pictures(SEED)


def picture(url: str) -> bytes:
    return plan_of(url, CONFIG.shares, SEED).choose(pictures()).body


def raw(web: SimulatedWeb, data: bytes) -> bytes:
    """Everything that the web answers to these bytes until it closes."""
    host, port = web.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_good(way: Way):
    for index in range(8):
        url = f"{way.base}/as/good/{index}.jpg"
        seen = way.get(url)
        assert (seen.error, seen.status, seen.body) == (0, 200, picture(url))
        with Image.open(BytesIO(seen.body)) as image:
            image.load()
            assert f"Content-Type: image/{image.format.lower()}".encode() in seen.head


@pytest.mark.parametrize("status", [404, 403, 410, 429, 500])
def test_plain_errors(way: Way, status: int):
    seen = way.get(f"{way.base}/as/{status}/x.jpg")
    assert (seen.error, seen.status) == (0, status)
    assert (b"Retry-After: 7\r\n" in seen.head) == (status == 429)
    assert b"text/plain" in seen.head


def test_slow(way: Way):
    url = f"{way.base}/as/slow/x.jpg"
    seen = way.get(url)
    assert (seen.error, seen.body) == (0, picture(url))
    assert 0.2 <= seen.elapsed_s < 3


def test_never_ending(way: Way):
    seen = way.get(f"{way.base}/as/never_ending/x.jpg", TIMEOUT_MS=300)
    assert (seen.error, seen.status) == (pycurl.E_OPERATION_TIMEDOUT, 200)
    assert len(seen.body) > 1024
    assert b"Content-Length" not in seen.head


def test_truncated(way: Way):
    url = f"{way.base}/as/truncated/x.jpg"
    seen = way.get(url)
    assert (seen.error, seen.status) == (pycurl.E_PARTIAL_FILE, 200)
    assert 0 < len(seen.body) < len(picture(url))
    assert picture(url).startswith(seen.body)


def test_cut_image(way: Way):
    for index in range(6):
        url = f"{way.base}/as/cut_image/{index}.jpg"
        seen = way.get(url)
        assert (seen.error, seen.status) == (0, 200)
        assert 0 < len(seen.body) < len(picture(url))
        with (
            pytest.raises(OSError, match=r"(?i)truncated|identify|decod"),
            Image.open(BytesIO(seen.body)) as image,
        ):
            image.load()


def test_html_as_image(way: Way):
    seen = way.get(f"{way.base}/as/html/x.jpg")
    assert (seen.error, seen.status) == (0, 200)
    assert b"Content-Type: image/jpeg" in seen.head
    assert seen.body.startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["oversized", "oversized_chunked"])
def test_oversized(way: Way, name: str):
    url = f"{way.base}/as/{name}/x.jpg"
    seen = way.get(url)
    assert (seen.error, len(seen.body)) == (0, OVERSIZED)
    assert seen.body.startswith(picture(url))
    assert (b"Content-Length: 600000" in seen.head) == (name == "oversized")
    assert (b"Transfer-Encoding: chunked" in seen.head) == (name == "oversized_chunked")


def test_redirect(way: Way):
    for index in range(8):
        seen = way.get(f"{way.base}/as/redirect/{index}.jpg")
        assert (seen.error, seen.status, seen.redirects) == (0, 200, 1)
        target = seen.head.split(b"Location: ")[1].split(b"\r\n")[0].decode()
        assert seen.body == picture(way.base + target)


def test_redirect_loop(way: Way):
    seen = way.get(f"{way.base}/as/redirect_loop/x.jpg", MAXREDIRS=5)
    assert (seen.error, seen.redirects) == (pycurl.E_TOO_MANY_REDIRECTS, 5)
    locations = [line for line in seen.head.split(b"\r\n") if line.startswith(b"Location")]
    assert len(set(locations)) == 1


def test_reset(way: Way):
    seen = way.get(f"{way.base}/as/reset/x.jpg")
    assert (seen.error, seen.body) == (pycurl.E_RECV_ERROR, b"")


def test_many_urls_get_what_the_mapping_says(web: SimulatedWeb):
    """With requests, which spells URLs its own way, on connections that are kept."""
    names = ["a b", "ä", "100%", "%7Eq", "x?y=z w", "../up", "q#f", "semi;colon", "(paren)", "%2f"]
    urls = [f"http://host{i % 7}.example/{names[i % 10]}/{i}.jpg" for i in range(250)]
    urls += demo_urls(f"http://{web.address}", 50)
    quick = {Behaviour.GOOD, Behaviour.REDIRECT, Behaviour.HTML, Behaviour.CUT_IMAGE}
    checked = 0
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": f"http://{web.address}"}
        for url in urls:
            behaviour = behaviour_of(url, CONFIG.shares, SEED)
            if behaviour not in quick and behaviour.status is None:
                continue
            response = session.get(url, timeout=5)
            checked += 1
            assert response.status_code == (behaviour.status or 200), (url, behaviour)
            if behaviour is Behaviour.GOOD:
                assert response.content == picture(url), url
            assert bool(response.history) == (behaviour is Behaviour.REDIRECT)
    assert checked > 250


def test_requests_goes_through_the_tunnel_too(web: SimulatedWeb):
    url = "https://other.example/as/good/x y.jpg"
    proxies = {"https": f"http://{web.address}"}
    response = requests.get(url, proxies=proxies, verify=str(web.ca_path), timeout=5)
    assert response.content == picture(url)


def test_tls_is_refused_by_clients_that_do_not_trust_the_authority(web: SimulatedWeb):
    assert curl("https://pictures.example/as/good/x.jpg", web=web).error == pycurl.E_PEER_FAILED_VERIFICATION


@pytest.mark.parametrize(
    "host", ["192.0.2.7", "[2001:db8::1]", "long-" * 11 + "x.sub.domain.example", "a_b.example:8443"]
)
def test_any_host_has_a_certificate(web: SimulatedWeb, host: str):
    seen = curl(f"https://{host}/as/good/x.jpg", web=web, trust=web.ca_path)
    assert (seen.error, seen.status) == (0, 200)


def test_further_addresses_are_hosts_of_their_own(web: SimulatedWeb):
    other = f"http://127.0.0.2:{web.address.split(':')[1]}"
    found = {
        base: [curl(url).body for url in demo_urls(base + "/as/good", 3)]
        for base in (f"http://{web.address}", other)
    }
    assert found[other] == [picture(url) for url in demo_urls(other + "/as/good", 3)]
    assert len(set(map(tuple, found.values()))) == 2


def test_a_second_run_answers_the_same(web: SimulatedWeb):
    urls = ["http://a.example/as/good/1", "https://b.example/as/good/2"]
    with SimulatedWeb(CONFIG) as again:
        assert again.address != web.address
        for url in urls:
            assert (
                curl(url, web=again, trust=again.ca_path).body == curl(url, web=web, trust=web.ca_path).body
            )


def test_pipelined_requests_are_answered_in_order(web: SimulatedWeb):
    paths = [
        f"/as/{name}/{i}" for i, name in enumerate(["good", "404", "slow", "oversized_chunked", "html"] * 3)
    ]
    lines = [f"GET {path} HTTP/1.1\r\nHost: p.example\r\n\r\n" for path in paths]
    lines[-1] = lines[-1].replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    got = raw(web, "".join(lines).encode())
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 12
    assert got.count(b"HTTP/1.1 404 Not Found\r\n") == 3
    position = 0
    for path in paths:
        if path.startswith(("/as/good", "/as/slow")):
            position = got.index(picture(f"http://p.example{path}"), position)
    assert position


def test_a_request_may_come_a_byte_at_a_time(web: SimulatedWeb):
    host, port = web.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /as/404/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            client.send(bytes([byte]))
        assert client.recv(12) == b"HTTP/1.1 404"


def test_head_has_the_head_only_and_the_connection_is_kept(web: SimulatedWeb):
    head = b"HEAD /as/good/x HTTP/1.1\r\nHost: x\r\n\r\n"
    got = raw(web, head + head + b"GET /as/404/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert got.endswith(b"404 Not Found\n")
    assert len(got) < 600


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /as/good/x HTTP/1.1\r\n\r\n", 400),
        (b"GET as/good/x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET ftp://x/as/good/x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01", 400),
        (b"DELETE /x HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /x HTTP/1.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 500_000, 431),
    ],
)
def test_malformed_requests_are_answered_and_closed(web: SimulatedWeb, data: bytes, status: int):
    got = raw(web, data)
    assert got.startswith(f"HTTP/1.1 {status} ".encode())
    assert got.endswith(b"Connection: close\r\nContent-Length: 0\r\n\r\n")


def test_connect_is_refused_without_tls():
    with SimulatedWeb(replace(CONFIG, tls=False)) as plain:
        assert plain.ca_path is None
        assert raw(plain, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 501 ")


def _leave_rudely(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [socket.socket.close, _leave_rudely])
@pytest.mark.parametrize("name", ["never_ending", "slow", "oversized", "good"])
async def test_a_client_that_leaves_ends_its_answer(
    server: tuple[WebServer, int], name: str, leave: Callable[[socket.socket], None]
):
    web, port = server
    loop = asyncio.get_running_loop()
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in clients:
        client.setblocking(False)
        await loop.sock_sendall(client, f"GET /as/{name}/x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    for client in clients:
        await loop.sock_recv(client, 100)
    for client in clients:
        leave(client)
    await _none_left(web)


async def _none_left(web: WebServer) -> None:
    await _until(lambda: not web.connections)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the server has no events for tests)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"GET /as/404/x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /as/oversized/x HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    ],
    ids=["silent", "half a head", "kept", "unfinished TLS", "never reads"],
)
async def test_an_idle_client_is_dropped(server: tuple[WebServer, int], data: bytes):
    web, port = server
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(data)
    await _until(lambda: bool(web.connections))
    await _none_left(web)
    writer.transport.abort()
    del reader


async def test_an_answer_on_its_way_is_no_idle_client(server: tuple[WebServer, int]):
    _, port = server
    seen = await asyncio.to_thread(curl, f"http://127.0.0.1:{port}/as/never_ending/x", TIMEOUT_MS=900)
    assert seen.error == pycurl.E_OPERATION_TIMEDOUT
    assert seen.elapsed_s >= 0.9


def test_six_hundred_connections_at_once(web: SimulatedWeb):
    host, port = web.address.split(":")
    clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(600)]
    try:
        for index, client in enumerate(clients):
            client.sendall(f"GET /as/good/{index} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        for index, client in enumerate(clients):
            got = b"".join(iter(lambda client=client: client.recv(65536), b""))
            assert got.endswith(picture(f"http://x/as/good/{index}"))
    finally:
        for client in clients:
            client.close()


def test_nothing_is_left_when_it_ends():
    with SimulatedWeb(CONFIG) as web:
        child = psutil.Process(web._child.pid)
        folder = web.ca_path.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        busy = socket.create_connection(("127.0.0.1", int(web.address.split(":")[1])))
        busy.sendall(b"GET /as/never_ending/x HTTP/1.1\r\nHost: x\r\n\r\n")
        busy.recv(100)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    busy.close()
    assert not child.is_running()
    assert not folder.exists()
    assert web.complaints == ""
    web.close()


def test_a_killed_web_leaves_no_files():
    with SimulatedWeb(CONFIG) as web:
        folder = web.ca_path.parent
        os.kill(web._child.pid, signal.SIGKILL)
    assert not folder.exists()


def test_it_dies_with_its_parent():
    code = (
        "import sys; from dlconsole.demo.web import *; web = SimulatedWeb().__enter__(); "
        "print(web._child.pid, web.ca_path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        pid, ca_path = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        parent.kill()
    # Where nobody reaps orphans it stays as a zombie: it has ended all the same.
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not Path(ca_path).parent.exists()


def test_a_port_that_is_taken_is_said(web: SimulatedWeb):
    port = int(web.address.split(":")[1])
    with pytest.raises(
        DlconsoleError,
        match=rf"could not start: 127\.0\.0\.1, 127\.0\.0\.2 port {port}: Address already in use",
    ):
        SimulatedWeb(replace(CONFIG, port=port)).__enter__()


def test_a_web_without_faults():
    with SimulatedWeb(WebConfig(shares=Shares.all_good(), latency_s=0)) as web:
        for url in demo_urls(f"http://{web.address}", 20):
            assert curl(url).status == 200
