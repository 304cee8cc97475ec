"""The simulated web without sockets: which URL gets what, the pictures, requests, certificates."""

from __future__ import annotations

import ssl
from collections import Counter
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from dlconsole.demo.answers import Answers, End, Pace, saying_close, without_body
from dlconsole.demo.behaviour import Behaviour, Plan, Shares, behaviour_of, demo_urls, plan_of
from dlconsole.demo.certificates import Authority, _multiply
from dlconsole.demo.pictures import make_pictures
from dlconsole.demo.tls import TlsChannel
from dlconsole.demo.web import WebConfig
from dlconsole.demo.wire import RequestError, parse_head
from dlconsole.errors import UsageError
from dlconsole.model import FailureKind


def test_by_default_88_percent_of_urls_end_in_a_picture():
    found = Counter(behaviour_of(url, Shares(), 0) for url in demo_urls("http://127.0.0.1:8000", 20_000))
    ends_well = sum(count for behaviour, count in found.items() if behaviour.failure_kind is None)
    assert 0.87 < ends_well / 20_000 < 0.89
    assert set(found) == set(Behaviour)
    for behaviour, count in found.items():
        assert count / 20_000 == pytest.approx(Shares().of(behaviour), abs=0.006)


def test_the_mapping_is_fixed_for_all_time_and_depends_on_the_seed():
    url = "http://127.0.0.1:8000/img/000001.jpg"
    assert plan_of(url, Shares(), 0) == plan_of(url, Shares(), 0)
    assert plan_of(url, Shares(), 0).number == 2484418087
    assert plan_of(url, Shares(), 1).number != plan_of(url, Shares(), 0).number


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://Example.COM/a.jpg", "http://example.com:8080/a.jpg"),
        ("http://example.com", "http://example.com/"),
        ("http://example.com?x=1", "http://example.com/?x=1"),
        ("http://example.com/a b.jpg", "http://example.com/a%20b.jpg"),
        ("http://example.com/%7Ea.jpg", "http://example.com/~a.jpg"),
        ("http://example.com/é.jpg", "http://example.com/%C3%A9.jpg"),
        ("http://example.com/100%.jpg", "http://example.com/100%25.jpg"),
        ("http://example.com/a/./b/../c.jpg", "http://example.com/a/c.jpg"),
        ("http://example.com/a/..", "http://example.com/"),
        ("http://example.com/a.jpg#there", "http://example.com/a.jpg"),
        ("http://user:word@example.com/a.jpg", "http://example.com/a.jpg"),
        ("http://bücher.example/a.jpg", "http://xn--bcher-kva.example/a.jpg"),
        ("http://[2001:DB8::1]:81/a.jpg", "http://[2001:db8::1]/a.jpg"),
    ],
)
def test_two_spellings_of_a_request_get_the_same_answer(one: str, other: str):
    assert plan_of(one, Shares(), 5) == plan_of(other, Shares(), 5)


def test_scheme_host_path_and_query_each_matter():
    urls = ["http://a.b/c?d", "https://a.b/c?d", "http://a.a/c?d", "http://a.b/e?d", "http://a.b/c?f"]
    assert len({plan_of(url, Shares(), 0).number for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "text", ["UNLIKELY", "", "ftp://a.b/c", "http://", "http:///c", "http://[a/b", "/img/1.jpg"]
)
def test_what_is_no_web_url_has_no_behaviour(text: str):
    with pytest.raises(ValueError, match="not an absolute"):
        behaviour_of(text, Shares(), 0)


@pytest.mark.parametrize("behaviour", Behaviour)
def test_a_path_can_ask_for_a_behaviour(behaviour: Behaviour):
    assert behaviour_of(f"https://example.com/as/{behaviour}/x.jpg", Shares.all_good(), 0) is behaviour


def test_a_path_that_asks_for_no_known_behaviour_is_like_any_other():
    assert behaviour_of("http://example.com/as/nothing/x.jpg", Shares.all_good(), 0) is Behaviour.GOOD


def test_shares_are_read_over_the_defaults():
    shares = Shares.parse("404=0.05, slow=0")
    assert (shares.not_found, shares.slow, shares.reset) == (0.05, 0, Shares().reset)
    assert Shares.parse("good") == Shares.all_good()
    assert Shares.parse("good,reset=1").of(Behaviour.GOOD) == 0
    assert Shares.parse("") == Shares()


@pytest.mark.parametrize(
    "text", ["405=0.1", "404", "404=x", "404=1.5", "404=-0.1", "404=nan", "good=0.5", "404=0.6,slow=0.6"]
)
def test_shares_that_cannot_be_are_refused(text: str):
    with pytest.raises(UsageError, match="Shares"):
        Shares.parse(text)


def test_failure_kinds_are_told_for_all_that_fail():
    assert Behaviour.TOO_MANY.failure_kind is FailureKind.HTTP_STATUS
    assert Behaviour.NEVER_ENDING.failure_kind is FailureKind.TIMEOUT
    well = {behaviour for behaviour in Behaviour if behaviour.failure_kind is None}
    assert well == {Behaviour.GOOD, Behaviour.SLOW, Behaviour.REDIRECT}


def test_pictures_are_whole_varied_and_reproducible():
    pictures = make_pictures(3)
    assert pictures == make_pictures(3) != make_pictures(4)
    for picture in pictures:
        with Image.open(BytesIO(picture.body)) as image:
            image.load()
            assert image.format == picture.format
    sizes = sorted(len(picture.body) for picture in pictures)
    assert sizes[0] < 4_000
    assert 15_000 < sizes[len(sizes) // 2] < 45_000
    assert 90_000 < sizes[-1] < 250_000
    assert {picture.format for picture in pictures} == {"JPEG", "PNG", "WEBP"}


def test_latency_has_the_mean_that_is_asked_for_and_an_end():
    answers = Answers(make_pictures(0), Pace(0.1, 0.5, 1.0, 2**20, 1))
    delays = [
        next(iter(answers.build(Plan(Behaviour.GOOD, 0, index / 1000)).pieces))[0] for index in range(1000)
    ]
    assert sum(delays) / 1000 == pytest.approx(0.1, rel=0.03)
    assert max(delays) == pytest.approx(0.4)


def test_a_slow_answer_takes_the_time_it_should():
    pictures = make_pictures(0)
    answers = Answers(pictures, Pace(0.02, 0.5, 1.0, 2**20, 1))
    pieces = list(answers.build(Plan(Behaviour.SLOW, 7, 0.5)).pieces)
    assert sum(delay for delay, _ in pieces) == pytest.approx(0.75)
    assert b"".join(data for _, data in pieces).endswith(b"\r\n\r\n" + pictures[7].body)


def test_the_answer_to_head_is_the_head_and_close_is_said():
    answers = Answers(make_pictures(0), Pace(0, 0.5, 1.0, 2**20, 1))
    answer = saying_close(without_body(answers.build(Plan(Behaviour.GOOD, 0, 0.0))))
    [(_, data)] = answer.pieces
    assert data.startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1
    assert answer.end is End.CLOSE


@pytest.mark.parametrize(
    ("head", "url"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: x.example:81", "http://x.example:81/a?b"),
        (b"\r\nGET /a HTTP/1.1\r\nHost:x.example", "http://x.example/a"),
        (b"GET http://y.example/a HTTP/1.1\r\nHost: x.example", "http://y.example/a"),
        (b"HEAD https://y.example/a HTTP/1.1\r\nHost: y.example", "https://y.example/a"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x.example\r\nContent-Length: 0", "http://x.example/é"),
    ],
)
def test_the_url_of_a_request(head: bytes, url: str):
    assert parse_head(head).url(None) == url


def test_in_a_tunnel_the_url_is_https_on_the_tunnels_host():
    request = parse_head(b"CONNECT [2001:DB8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443")
    assert request.tunnel_host == "2001:db8::1"
    inner = parse_head(b"GET /a HTTP/1.1\r\nHost: other.example")
    assert inner.url("x.example") == "https://x.example/a"
    assert inner.url("2001:db8::1") == "https://[2001:db8::1]/a"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /a", 400),
        (b"GET  /a HTTP/1.1\r\nHost: x", 400),
        (b"GET /a\x01 HTTP/1.1\r\nHost: x", 400),
        (b"G@T /a HTTP/1.1\r\nHost: x", 400),
        (b"GET /a HTTP/one\r\nHost: x", 400),
        (b"GET /a HTTP/1.1", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        (b"GET /a HTTP/1.1\r\nHost: x/y", 400),
        (b"GET /a HTTP/1.1\r\nHost:", 400),
        (b"GET /a HTTP/1.1\r\nHost : x", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n folded", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nno colon", 400),
        (b"GET /a HTTP/1.0\r\nHost: x", 505),
        (b"GET /a HTTP/2.0\r\nHost: x", 505),
        (b"POST /a HTTP/1.1\r\nHost: x", 405),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5", 413),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked", 413),
    ],
)
def test_requests_out_of_rule_are_refused(head: bytes, status: int):
    with pytest.raises(RequestError) as caught:
        parse_head(head)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "target", ["example.com", "example.com:", "example.com:443/x", "a b:1", "é:443", ":443"]
)
def test_a_connect_names_a_host_and_a_port(target: str):
    with pytest.raises(RequestError, match="400"):
        _ = parse_head(f"CONNECT {target} HTTP/1.1\r\nHost: x".encode()).tunnel_host


@pytest.mark.parametrize("factor", [1, 2, 3, 2**255, 0xDEADBEEF << 200, -1, -2])
def test_points_of_the_curve_are_those_of_a_real_library(factor: int):
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    numbers = ec.derive_private_key(factor % order, ec.SECP256R1()).public_key().public_numbers()
    assert _multiply(factor % order) == (numbers.x, numbers.y)


@pytest.mark.parametrize(
    "host", ["example.com", "under_score.example", "192.0.2.7", "2001:db8::1", "a" * 63 + ".example"]
)
def test_a_certificate_is_signed_by_the_authority_and_names_its_host(tmp_path: Path, host: str):
    authority = Authority(tmp_path)
    ca = x509.load_pem_x509_certificate(authority.ca_path.read_bytes())
    leaf = x509.load_der_x509_certificate(authority.certificate(host))
    ca.verify_directly_issued_by(ca)
    leaf.verify_directly_issued_by(ca)
    [name] = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert str(name.value) == host
    assert isinstance(name, x509.DNSName if not host[-1].isdigit() else x509.IPAddress)


def test_many_signatures_verify(tmp_path: Path):
    authority = Authority(tmp_path)
    ca = x509.load_pem_x509_certificate(authority.ca_path.read_bytes())
    for index in range(200):  # lengths of the DER integers vary from one to the next
        x509.load_der_x509_certificate(authority.certificate(f"h{index}.example")).verify_directly_issued_by(
            ca
        )


def _handshake(
    client: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server: TlsChannel
) -> None:
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            server.receive(outgoing.read())
            incoming.write(server.send(b""))
        else:
            server.receive(outgoing.read())
            return


def test_a_strict_client_accepts_the_certificate_of_its_host_only(tmp_path: Path):
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=str(authority.ca_path))
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("example.com", "192.0.2.7"):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trust.wrap_bio(incoming, outgoing, server_hostname=name)
        server = TlsChannel(authority.context_for(name))
        _handshake(client, incoming, outgoing, server)
        client.write(b"ping")
        assert server.receive(outgoing.read()) == b"ping"
        incoming.write(server.send(bytes(100_000)))
        assert client.read(10) == bytes(10)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(incoming, outgoing, server_hostname="other.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(client, incoming, outgoing, TlsChannel(authority.context_for("example.com")))


def test_only_the_authority_is_left_in_its_folder(tmp_path: Path):
    Authority(tmp_path).context_for("example.com")
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]
    assert b"PRIVATE" not in (tmp_path / "ca.pem").read_bytes()


def test_a_config_survives_its_way_to_the_child():
    config = WebConfig(more_hosts=("127.0.0.2",), shares=Shares.parse("404=0.5"), seed=9, slow_s=(0.1, 0.2))
    assert WebConfig.from_json(config.to_json()) == config
    assert WebConfig.from_json("{}") == WebConfig()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "localhost", "::", ""])
def test_only_loopback_addresses_are_served(host: str):
    with pytest.raises(UsageError, match="loopback"):
        WebConfig(host=host)
    assert ip_address(WebConfig().host).is_loopback
