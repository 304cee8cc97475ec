"""One suite of behaviour over both engines: the same URL has the same outcome. The hostile web is `tests/faults/web`."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from dns_server import NXDOMAIN, NameServer, Reply
from integration_support import Hosts

from dlconsole.demo.behaviour import Behaviour, Shares, behaviour_of
from dlconsole.demo.pictures import make_pictures
from dlconsole.demo.web import SimulatedWeb, demo_urls
from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.fetch.curl import CurlEngine
from dlconsole.workers.fetch.engine import Buffers, Engine, Fetched, Result, TurnedAway
from dlconsole.workers.fetch.fetch import Fetch, RobotsFetch
from dlconsole.workers.fetch.requests_engine import RequestsEngine
from dlconsole.workers.fetch.urls import Target, origin_of, target_of
from dlconsole.workers.images import is_whole, sniff

PICTURE = make_pictures(1, count=1)[0].body
ENGINES: dict[str, Callable[..., Engine[int]]] = {"curl": CurlEngine, "requests": RequestsEngine}
BASE: dict[str, Any] = {"allow_networks": ["127.0.0.0/8"], "deadline_s": 30, "max_bytes": "512KiB"}

Maker = Callable[..., Engine[int]]


@pytest.fixture(params=list(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(engine_name: str) -> Iterator[Maker]:
    """Makes the engine with settings that differ from the suite's."""
    opened: list[Engine[int]] = []

    def start(concurrency: int = 16, parked: Collection[str] = (), **fetch: object) -> Engine[int]:
        settings = FetchSettings.model_validate(BASE | fetch)
        opened.append(ENGINES[engine_name](settings, DnsSettings(), concurrency, Hosts(parked)))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def results_of(engine: Engine[int], *urls: str) -> list[Result[int]]:
    """Of each, in order."""
    results: dict[int, Result[int]] = {}
    waiting = list(enumerate(urls))
    until = time.monotonic() + 60
    while len(results) < len(urls):
        assert time.monotonic() < until
        while waiting and engine.free:
            number, url = waiting.pop(0)
            target = target_of(url)
            assert target is not None
            engine.start(number, target)
        results |= {result.token: result for result in engine.poll(0.1)}
    return [results[number] for number in range(len(urls))]


def fetch(engine: Engine[int], *urls: str) -> list[Fetched | Failure]:
    """What comes of each, in order, where nobody is parked."""
    outcomes = [result.outcome for result in results_of(engine, *urls)]
    return [outcome for outcome in outcomes if not isinstance(outcome, TurnedAway)]


def kind_of(outcome: Fetched | Failure) -> FailureKind | None:
    """With the checks of the body that the worker makes."""
    if isinstance(outcome, Failure):
        return outcome.kind
    image_format = sniff(outcome.body)
    assert image_format is not None
    return None if is_whole(outcome.body, image_format) else FailureKind.TRUNCATED


class Counting:
    """Serves the same answer to every request; counts connections and keeps the requests' heads. A connection is
    closed behind the first answer, or instead of the answer after `deaf_after` of them.
    """

    def __init__(self, answer: bytes, *, close_after: bool, deaf_after: int) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._close_after = close_after
        self._deaf_after = deaf_after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.closed = threading.Event()
        """Set when a connection that was served has been closed from this side."""
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/x"

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                answered = 0
                while head := client.recv(65536):
                    self.requests.append(head)
                    if answered == self._deaf_after:
                        break
                    answered += 1
                    client.sendall(self._answer)
                    if self._close_after:
                        break
            except OSError:
                pass
        self.closed.set()

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Counting]]:
    servers: list[Counting] = []

    def start(
        *headers: str,
        status: str = "200 OK",
        body: bytes = PICTURE,
        close_after: bool = False,
        deaf_after: int = 1000,
    ) -> Counting:
        lines = "".join(
            f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "")
        )
        servers.append(
            Counting(lines.encode("latin-1") + body, close_after=close_after, deaf_after=deaf_after)
        )
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def test_every_behaviour_of_the_web_gets_its_kind(make: Maker, web: SimulatedWeb) -> None:
    ends = [b for b in Behaviour if b is not Behaviour.NEVER_ENDING]
    outcomes = dict(zip(ends, fetch(make(), *(f"http://{web.address}/as/{b}/x" for b in ends)), strict=True))
    assert {b: kind_of(outcome) for b, outcome in outcomes.items()} == {b: b.failure_kind for b in ends}
    statuses = {b: outcome.status for b, outcome in outcomes.items() if b.status}
    assert statuses == {b: b.status for b in ends if b.status}
    too_many = outcomes[Behaviour.TOO_MANY]
    assert isinstance(too_many, Failure) and too_many.retry_after_s == 1
    (endless,) = fetch(make(deadline_s=1), f"http://{web.address}/as/never_ending/x")
    assert kind_of(endless) is FailureKind.TIMEOUT


def test_a_thousand_urls_end_as_the_web_says(make: Maker, web: SimulatedWeb) -> None:
    urls = list(demo_urls(f"http://{web.address}", 1000))
    expected = [behaviour_of(url, Shares(), 0) for url in urls]
    chosen = [(url, b) for url, b in zip(urls, expected, strict=True) if b is not Behaviour.NEVER_ENDING]
    outcomes = fetch(make(), *(url for url, _ in chosen))
    assert [kind_of(outcome) for outcome in outcomes] == [b.failure_kind for _, b in chosen]


def test_a_redirect_to_a_parked_host_ends_in_front_of_it(make: Maker, serve: Callable[..., Counting]) -> None:
    parked = serve()
    url = parked.url.replace("127.0.0.1", "LocalHost")
    far = serve(f"Location: {url}", status="302 Found").url
    engine = make(parked={"localhost"}, max_redirects=1)
    result, plain = results_of(engine, far, serve().url)
    assert isinstance(result.outcome, TurnedAway) and result.host == "localhost"
    assert isinstance(plain.outcome, Fetched) and engine.running == 0
    assert parked.connections == 0
    # One redirect too many is that, wherever it leads.
    (result,) = results_of(make(parked={"localhost"}, max_redirects=0), far)
    assert isinstance(result.outcome, Failure) and result.outcome.kind is FailureKind.REDIRECTS
    (result,) = results_of(make(), far)
    assert isinstance(result.outcome, Fetched)


def test_a_host_that_is_parked_while_its_fetch_waits_for_a_slot_is_not_asked(
    make: Maker, serve: Callable[..., Counting]
) -> None:
    first, second = serve(), serve()
    parked: set[str] = set()
    engine = make(1, parked=parked)
    for number, url in enumerate([first.url, second.url.replace("127.0.0.1", "127.0.0.2")]):
        target = target_of(url)
        assert target is not None
        engine.start(number, target)
    engine.poll(0)
    parked.add("127.0.0.2")
    results = {}
    until = time.monotonic() + 60
    while len(results) < 2:
        assert time.monotonic() < until
        results |= {result.token: result for result in engine.poll(0.1)}
    assert isinstance(results[0].outcome, Fetched) and results[0].asked
    assert isinstance(results[1].outcome, TurnedAway) and results[1].host == "127.0.0.2"
    assert not results[1].asked and second.connections == 0


def test_a_result_names_the_host_it_was_at_in_the_end(make: Maker, serve: Callable[..., Counting]) -> None:
    busy = serve("Retry-After: 7", status="503 Busy", body=b"").url.replace("127.0.0.1", "localhost")
    gone = f"http://no-such-name.invalid:{busy.split(':')[2]}"
    far, further, away, out = (
        serve(f"Location: {url}", status="302 Found").url
        for url in (busy, gone, "ftp://x/", "http://10.0.0.1/")
    )
    results = results_of(make(), busy, far, further, away, out, serve().url)
    assert [result.host for result in results] == [
        "localhost", "localhost", "no-such-name.invalid", "127.0.0.1", "10.0.0.1", "127.0.0.1",
    ]  # fmt: skip
    for result in results[:2]:
        assert isinstance(result.outcome, Failure)
        assert (result.outcome.status, result.outcome.retry_after_s) == (503, 7)


def test_a_length_over_the_cap_ends_a_fetch_before_the_body_begins(make: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n"

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(head)
                client.recv(1)  # until the other side has closed

        thread = threading.Thread(target=answer)
        thread.start()
        # The test's own patience is 60 s, so neither of these ends the fetch.
        engine = make(deadline_s=3600, min_rate_window_s=600)
        (outcome,) = fetch(engine, f"http://127.0.0.1:{server.getsockname()[1]}/x")
        thread.join(30)
        assert not thread.is_alive()
    assert kind_of(outcome) is FailureKind.TOO_LARGE


OPT_OUTS = {
    "X-Robots-Tag: noai": True,
    "x-robots-tag: all, NoImageAI": True,
    "X-Robots-Tag: noindex": True,
    "X-Robots-Tag: dlconsole: noimageindex": True,
    "X-Robots-Tag: otherbot: noai": False,
    "X-Robots-Tag: nofollow": False,
    "TDM-Reservation: 1": True,
    "tdm-reservation: 0": False,
}


@pytest.mark.parametrize("header", OPT_OUTS)
def test_opt_outs_are_honoured_unless_the_settings_say_otherwise(
    header: str, make: Maker, serve: Callable[..., Counting]
) -> None:
    url = serve(header).url
    assert kind_of(fetch(make(), url)[0]) is (FailureKind.OPT_OUT if OPT_OUTS[header] else None)
    assert kind_of(fetch(make(honour_opt_outs=False), url)[0]) is None


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("0", None, None), ("soon", None, None), ("", None, None), ("-3", None, None),
     ("in an hour", 3000, 3601), ("Thu, 01 Jan 1970 00:00:00 GMT", None, None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(
    value: str, low: float | None, high: float | None, make: Maker, serve: Callable[..., Counting]
) -> None:
    if value == "in an hour":
        value = formatdate(time.time() + 3600, usegmt=True)
    (outcome,) = fetch(make(), serve(f"Retry-After: {value}", status="503 Busy").url)
    assert isinstance(outcome, Failure) and outcome.status == 503
    if low is None or high is None:
        assert outcome.retry_after_s is None
    else:
        assert outcome.retry_after_s is not None and low <= outcome.retry_after_s <= high


def test_a_connection_is_used_again_also_after_an_error_page(
    make: Maker, serve: Callable[..., Counting]
) -> None:
    picture, missing = serve(), serve(status="404 No", body=b"<html>" * 100)
    engine = make(concurrency=1)
    for _ in range(5):
        assert kind_of(fetch(engine, picture.url)[0]) is None
        assert kind_of(fetch(engine, missing.url)[0]) is FailureKind.HTTP_STATUS
    assert (picture.connections, missing.connections) == (1, 1)


def test_a_connection_that_was_closed_while_idle_is_opened_anew(
    make: Maker, serve: Callable[..., Counting]
) -> None:
    server = serve(close_after=True)
    engine = make(concurrency=1)
    for number in range(1, 6):
        assert kind_of(fetch(engine, server.url)[0]) is None
        assert server.closed.wait(30)
        server.closed.clear()
        assert server.connections == number


def test_a_connection_that_is_closed_as_it_is_used_again_is_opened_anew(
    make: Maker, serve: Callable[..., Counting]
) -> None:
    server = serve(deaf_after=1)
    engine = make(concurrency=1)
    for number in range(1, 4):
        assert kind_of(fetch(engine, server.url)[0]) is None
        assert (server.connections, len(server.requests)) == (number, 2 * number - 1)
    deaf = serve(deaf_after=0)
    assert kind_of(fetch(engine, deaf.url)[0]) is FailureKind.CONNECT
    assert deaf.connections == 1


def test_how_long_the_parts_took_is_counted(
    make: Maker, web: SimulatedWeb, serve: Callable[..., Counting]
) -> None:
    engine = make(concurrency=1, proxy=f"http://{web.address}", ca_file=web.ca_path)
    assert kind_of(fetch(engine, "https://a.example/as/good/x")[0]) is None
    assert (engine.timings.opened, engine.timings.reused) == (1, 0)
    assert set(engine.timings.counts) == {"connect", "tls", "first_byte", "total"}
    engine, url = make(concurrency=1), serve().url
    until = time.monotonic() + 30
    while not engine.timings.reused:  # of fetches that end at once only a sample is counted
        assert kind_of(fetch(engine, url)[0]) is None and time.monotonic() < until
    assert set(engine.timings.counts) == {"connect", "first_byte", "total"}


def test_what_is_sent_is_what_the_settings_say_and_no_more(
    make: Maker, serve: Callable[..., Counting], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = serve("Set-Cookie: a=b; Path=/")
    engine = make(concurrency=1, user_agent="testbot/1", contact="someone@example.org")
    for _ in range(2):
        assert kind_of(fetch(engine, server.url)[0]) is None
    for request in server.requests:
        line, *fields = request.strip().decode().split("\r\n")
        assert line == "GET /x HTTP/1.1"
        assert sorted(field.lower() for field in fields) == [
            "accept-encoding: identity",
            "accept: image/*,*/*;q=0.5",
            f"host: {server.url.split('/')[2]}",
            "user-agent: testbot/1 (+mailto:someone@example.org)",
        ]


def test_a_refused_address_is_never_connected_to(make: Maker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        hosts = ("127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0")
        outcomes = fetch(make(allow_networks=()), *(f"http://{host}:{port}/x" for host in hosts))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert [kind_of(outcome) for outcome in outcomes] == [FailureKind.BLOCKED_ADDRESS] * len(hosts)


def test_a_port_that_is_not_listed_is_refused(make: Maker) -> None:
    engine = make(allow_networks=(), allow_ports=[80, 443])
    outcomes = fetch(engine, "http://1.1.1.1:22/x", "http://1.1.1.1:8080/x")
    assert [kind_of(outcome) for outcome in outcomes] == [FailureKind.BLOCKED_ADDRESS] * 2
    assert all("allow_ports" in outcome.message for outcome in outcomes if isinstance(outcome, Failure))


def test_a_proxy_is_asked_for_everything_but_refused_hosts(make: Maker, web: SimulatedWeb) -> None:
    engine = make(proxy=f"http://{web.address}", ca_file=web.ca_path, allow_networks=())
    good = ["http://a.example/as/good/x", "https://a.example/as/good/x", "https://b.example/as/redirect/x"]
    refused = [
        "http://169.254.169.254/x",
        "http://localhost/x",
        "https://10.0.0.1/x",
        "http://%31%30.0.0.1/x",
    ]
    outcomes = fetch(engine, *good, *refused, "https://a.example/as/404/x")
    assert [kind_of(outcome) for outcome in outcomes] == [
        *[None] * len(good),
        *[FailureKind.BLOCKED_ADDRESS] * len(refused),
        FailureKind.HTTP_STATUS,
    ]


def test_a_proxy_that_is_gone_or_refuses_is_a_connection_that_failed(
    make: Maker, serve: Callable[..., Counting]
) -> None:
    refusing = serve(status="403 No", body=b"").url.removesuffix("/x")
    for proxy in ("http://127.0.0.1:1", refusing):
        (outcome,) = fetch(make(proxy=proxy), "https://a.example/x")
        assert kind_of(outcome) is FailureKind.CONNECT


def test_certificates_are_checked_behind_a_proxy_too(make: Maker, web: SimulatedWeb) -> None:
    (outcome,) = fetch(make(proxy=f"http://{web.address}"), "https://a.example/as/good/x")
    assert kind_of(outcome) is FailureKind.TLS


Handler = Callable[[socket.socket], object]


@pytest.fixture
def listen() -> Iterator[Callable[[Handler], int]]:
    """Serves each connection with a handler; the port."""
    with ExitStack() as stack:

        def start(handler: Handler) -> int:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.callback(server.shutdown, socket.SHUT_RDWR)

            def run() -> None:
                while True:
                    try:
                        client, _ = server.accept()
                    except OSError:
                        return
                    with client, suppress(OSError):
                        handler(client)

            threading.Thread(target=run, daemon=True).start()
            return server.getsockname()[1]

        yield start


def end(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


_HALF, _WHOLE = b"HTTP/1.1 200 OK\r\nX: y\r\n", b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "hears_hello", "how", "kind"),
    [
        (b"", False, "reset", FailureKind.CONNECT),
        (b"", False, "closed", FailureKind.CONNECT),
        (_HALF, False, "reset", FailureKind.CONNECT),
        (_HALF, False, "closed", FailureKind.CONNECT),
        (_WHOLE, False, "closed", FailureKind.TLS),
        (_WHOLE, True, "reset", FailureKind.TLS),
        (_WHOLE, True, "closed", FailureKind.TLS),
    ],
)
def test_a_tunnel_that_breaks_is_the_proxys_fault_before_the_handshake_and_tls_in_it(
    answer: bytes,
    hears_hello: bool,
    how: str,
    kind: FailureKind,
    make: Maker,
    listen: Callable[[Handler], int],
) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(answer)
        if hears_hello:
            client.recv(65536)
        end(client, how)

    (outcome,) = fetch(make(proxy=f"http://127.0.0.1:{listen(serve)}"), "https://a.example/x")
    assert kind_of(outcome) is kind


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("201 Created", None),
        ("204 No Content\r\nContent-Length: 0", None),
        ("299 X\r\nContent-Length: 5", None),
        ("100 Continue\r\n\r\nHTTP/1.1 200 OK", FailureKind.CONNECT),
        ("302 Found\r\nLocation: http://a.example/y", FailureKind.CONNECT),
    ],
)
def test_any_2xx_opens_a_tunnel_and_nothing_else_does(
    answer: str, kind: FailureKind | None, make: Maker, listen: Callable[[Handler], int], tmp_path: Path
) -> None:
    """RFC 9110, 9.3.6; libcurl takes no proxy's informational answers."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("a.example").configure_cert(context)

    def serve(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(f"HTTP/1.1 {answer}\r\n\r\n".encode())
        with context.wrap_socket(client, server_side=True) as secure:
            secure.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PICTURE)}\r\nConnection: close\r\n\r\n"
            secure.sendall(head.encode() + PICTURE)

    engine = make(proxy=f"http://127.0.0.1:{listen(serve)}", ca_file=tmp_path / "ca.pem")
    assert kind_of(fetch(engine, "https://a.example/x")[0]) is kind


PASSWORDS = ["wr@ng-s3cret", "s3cret%40here", "s3cret with spaces"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_no_message_has_the_password_of_a_proxy(engine_name: str, scheme: str, password: str) -> None:
    """Also not of one that settings would refuse: a library may have complaints that nobody foresaw."""
    if scheme == "socks5h" and engine_name == "requests":
        return
    proxy = f"{scheme}://u:{password}@127.0.0.1:9"
    settings = FetchSettings.model_validate(BASE).model_copy(update={"proxy": proxy})
    engine = ENGINES[engine_name](settings, DnsSettings(), 2)
    try:
        outcomes = fetch(engine, "http://a.example/x", "https://a.example/x")
    finally:
        engine.close()
    for outcome in outcomes:
        assert isinstance(outcome, Failure)
        assert outcome.message
        assert not re.search("s3cret|ng-s|s3c|wr@", outcome.message)


def test_a_lookup_ends_with_the_deadline(engine_name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = f"127.0.0.1:{silent.getsockname()[1]}"
        dns = DnsSettings.model_validate({"resolvers": resolver, "timeout_s": 60})
        engine = ENGINES[engine_name](FetchSettings.model_validate(BASE | {"deadline_s": 1}), dns, 2)
        started = time.monotonic()
        try:
            (outcome,) = fetch(engine, "http://a.example/x")
        finally:
            engine.close()
    assert kind_of(outcome) in {FailureKind.DNS, FailureKind.TIMEOUT}
    assert time.monotonic() - started < 30


def test_a_proxys_answer_without_end_is_a_connection_that_failed(
    make: Maker, listen: Callable[[Handler], int]
) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            client.sendall(b"X: " + b"x" * 1000 + b"\r\n")

    engine = make(proxy=f"http://127.0.0.1:{listen(serve)}", connect_timeout_s=30)
    started = time.monotonic()
    (outcome,) = fetch(engine, "https://a.example/x")
    assert isinstance(outcome, Failure) and outcome.kind is FailureKind.CONNECT
    assert outcome.message == "more than 65536 bytes of headers"
    assert time.monotonic() - started < 20


def test_a_proxy_that_speaks_tls_is_trusted_as_hosts_are(
    make: Maker, listen: Callable[[Handler], int], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def serve(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secure:
            secure.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PICTURE)}\r\nConnection: close\r\n\r\n"
            secure.sendall(head.encode() + PICTURE)

    proxy = f"https://127.0.0.1:{listen(serve)}"
    (trusted,) = fetch(make(proxy=proxy, ca_file=tmp_path / "ca.pem"), "http://a.example/x")
    (unknown,) = fetch(make(proxy=proxy), "http://a.example/x")
    assert (kind_of(trusted), kind_of(unknown)) == (None, FailureKind.TLS)


def test_the_proxys_own_name_is_the_systems_matter(engine_name: str, serve: Callable[..., Counting]) -> None:
    """As that of Redis: the resolvers of the settings are for what lists name."""
    port = serve().url.split(":")[2].removesuffix("/x")
    with NameServer(lambda _name: Reply(code=NXDOMAIN)) as names:
        outcomes = []
        for proxy in (f"http://localhost:{port}", "http://no-such-name.invalid:80"):
            settings = FetchSettings.model_validate(BASE | {"proxy": proxy})
            engine = ENGINES[engine_name](settings, DnsSettings(resolvers=(names.address,)), 1)
            try:
                outcomes += fetch(engine, "http://a.example/x")
            finally:
                engine.close()
        assert [kind_of(outcome) for outcome in outcomes] == [None, FailureKind.CONNECT]
        assert not names.asked


def test_another_thread_ends_a_poll_that_waits(make: Maker) -> None:
    engine = make()
    threading.Timer(0.1, engine.wake).start()
    started = time.monotonic()
    assert engine.poll(60) == []
    assert time.monotonic() - started < 30
    engine.wake()
    assert engine.poll(60) == []


def test_a_file_that_holds_no_authorities_is_refused_at_the_start(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("junk.pem", "none.pem"):
        with pytest.raises(ConfigError, match=name):
            make(ca_file=tmp_path / name)


def test_without_more_threads_fetches_wait_and_without_any_they_end(
    listen: Callable[[Handler], int],
) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(65536)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PICTURE)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + PICTURE)

    told: list[str] = []
    url, settings = f"http://127.0.0.1:{listen(serve)}/x", FetchSettings.model_validate(BASE)
    engine: Engine[int] = RequestsEngine(
        settings, DnsSettings(), 8, on_fault=lambda error, _at: told.append(str(error))
    )
    try:
        threading.stack_size(1 << 52)  # more than there are addresses: none can be started
        outcomes = fetch(engine, url, url)
        assert [kind_of(outcome) for outcome in outcomes] == [FailureKind.CRASHED] * 2
        assert (engine.running, engine.free) == (0, 8)
        threading.stack_size(0)
        assert kind_of(fetch(engine, url)[0]) is None
        threading.stack_size(1 << 52)
        assert [kind_of(outcome) for outcome in fetch(engine, *[url] * 20)] == [None] * 20
        assert engine.running == 0
    finally:
        threading.stack_size(0)
        engine.close()
    assert set(told) == {"can't start new thread"}


def test_the_requests_engine_says_that_it_has_no_socks() -> None:
    with pytest.raises(ConfigError, match="SOCKS"):
        RequestsEngine(FetchSettings(proxy="socks5h://127.0.0.1:1"), DnsSettings(), 1)


def test_a_fault_of_ours_ends_one_fetch_and_is_told(engine_name: str, serve: Callable[..., Counting]) -> None:
    """Whatever raises, in the engine's thread or in a callback of libcurl's: the slot is free again."""
    told: list[tuple[Exception, str]] = []

    def fails(*_: object) -> Any:
        raise ZeroDivisionError("no such thing")

    class FaultyHosts(Hosts):
        def is_parked(self, host: str) -> bool:
            return fails() if host == "localhost" else False

    settings = FetchSettings.model_validate(BASE | {"max_bytes": "8MiB"})
    large = serve(body=PICTURE + bytes(400_000)).url
    moved = serve("Location: http://localhost/y", status="302 Found", body=b"").url
    good = serve().url
    engine = ENGINES[engine_name](
        settings,
        DnsSettings(),
        2,
        FaultyHosts(),
        Buffers(65536, fails),
        on_fault=lambda *fault: told.append(fault),
    )
    try:
        outcomes = fetch(engine, *[large, moved, good] * 3)
        assert (engine.running, engine.free) == (0, 2)
    finally:
        engine.close()
    assert [kind_of(outcome) for outcome in outcomes] == [FailureKind.CRASHED, FailureKind.CRASHED, None] * 3
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert all("ZeroDivisionError('no such thing')" in failure.message for failure in failures)
    assert [type(error) for error, _ in told] == [ZeroDivisionError] * 6
    assert {url for _, url in told} == {large, "http://localhost/y"}


def test_a_robots_txt_that_could_not_be_begun_leaves_its_slot_to_pictures(
    serve: Callable[..., Counting],
) -> None:
    engine: CurlEngine[int] = CurlEngine(FetchSettings.model_validate(BASE), DnsSettings(), 1)
    try:
        page = target_of(serve(body=b"<html>" * 100).url)
        assert page is not None
        text = RobotsFetch(origin_of(page), Fetch(0, page, 30), 30)
        text.target = Target("http://ü/", "ü", 80)  # in no list: libcurl takes ASCII
        refused = engine._begin(text)
        assert refused is not None and refused.kind is FailureKind.BAD_TASK
        (outcome,) = fetch(engine, page.url)
        assert isinstance(outcome, Failure) and outcome.kind is FailureKind.NOT_IMAGE
    finally:
        engine.close()


def test_what_was_not_answered_is_in_no_statistics(make: Maker, serve: Callable[..., Counting]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{closed.getsockname()[1]}/x", "http://10.0.0.1/x"):
            engine = make()
            assert kind_of(fetch(engine, url)[0]) in {FailureKind.CONNECT, FailureKind.BLOCKED_ADDRESS}
            assert (engine.timings.opened, engine.timings.reused, engine.timings.counts) == (0, 0, {})
    engine = make()
    fetch(engine, serve().url)
    assert (engine.timings.opened, engine.timings.reused) == (1, 0)


def test_a_proxy_is_sent_the_address_that_was_checked(make: Maker, serve: Callable[..., Counting]) -> None:
    proxy = serve()
    engine = make(proxy=proxy.url.removesuffix("/x"), allow_networks=())
    outcomes = fetch(engine, "http://010.8.8.8/x", "http://0x8080808/x")
    assert [kind_of(outcome) for outcome in outcomes] == [None, None]
    assert {head.partition(b"\r\n")[0] for head in proxy.requests} == {b"GET http://8.8.8.8/x HTTP/1.1"}
    assert all(b"\r\nHost: 8.8.8.8\r\n" in head for head in proxy.requests)
