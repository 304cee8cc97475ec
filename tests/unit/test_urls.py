"""URLs as lists have them → URLs as the engine takes them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pycurl
import pytest

from dlconsole.workers.fetch.urls import origin_of, target_of


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://a.example/x.jpg", "http://a.example/x.jpg"),
        ("HTTPS://A.example/x.jpg?a=b&c=%20#f", "HTTPS://A.example/x.jpg?a=b&c=%20#f"),
        ("http://a.example/a b.jpg", "http://a.example/a%20b.jpg"),
        (" http://a.example/x ", "http://a.example/x"),
        ("http://a.example/ü/日本.jpg", "http://a.example/%C3%BC/%E6%97%A5%E6%9C%AC.jpg"),
        ("http://a.example/100%/x", "http://a.example/100%/x"),
        ("http://bücher.example:8080/x", "http://xn--bcher-kva.example:8080/x"),
        ("http://[2606:4700::1111]/x", "http://[2606:4700::1111]/x"),
        ("http://user:pw@a.example/x", "http://user:pw@a.example/x"),
        ("http://us er:p\u00e9@a.example/x", "http://us%20er:p%C3%A9@a.example/x"),
        ("http://%61.example/%41", "http://a.example/%41"),
        ("http://%31%30.0.0.1/a", "http://10.0.0.1/a"),
        ("https://x:y@%31%36%39.254.169.254/j", "https://169.254.169.254/j"),
        ("http://b%C3%BCcher.example/", "http://xn--bcher-kva.example/"),
        ("http://010.8.8.8/x", "http://8.8.8.8/x"),
        ("http://u:p@0x7f.1:8080/a?b=c#d", "http://u:p@127.0.0.1:8080/a?b=c#d"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://127.0.0.1./x", "http://127.0.0.1/x"),
        ("http://a.1b/x", "http://a.1b/x"),
        ("http://a.example./x", "http://a.example/x"),
        ("http://example\u017f.example/x", "http://examples.example/x"),
    ],
)
def test_odd_but_usable_urls_are_encoded(given: str, wanted: str) -> None:
    target = target_of(given)
    assert target is not None
    assert target.url == wanted
    parts = urlsplit(wanted)
    assert (target.host, target.port) == (
        parts.hostname,
        parts.port or {"http": 80, "https": 443}[parts.scheme],
    )


@pytest.mark.parametrize(
    "url",
    ["", "UNLIKELY", "ftp://a.example/x", "file:///etc/passwd", "javascript:alert(1)", "http://", "http:///x",
     "https://", "http://u:%00@a.example/", "http://\x01@a.example/", "//a.example/x", "http://[::1", "http://a b.example/", "data:image/png;base64,AAAA", "http://\u00ad/",
     "http://a%2Fb.example/", "http://a%00.example/", "http://%ff.example/", "http://a%40b/",
     "http://a.example:0/", "http://a.example:65536/", "http://a.example:99999999/", "http://a.example:x/",
     "http://127.0.0.08/", "http://00x7f.1/", "http://4294967297/", "http://127.0.0.1../", "http://a../", "http://./", "http://u@h@a.example/",
     "http://127.0.0.1;/", "http://a,b/", "http://a|b/", "http://[v1.x]/", "http://a.1/", "http://a.0x1f/"],
)  # fmt: skip
def test_what_is_no_http_url_is_none(url: str) -> None:
    assert target_of(url) is None


@pytest.mark.parametrize(
    ("given", "url", "host"),
    [
        ("http://A.Test./x", "http://A.Test/x", "a.test"),
        ("https://u:p@a.test.:8443/x?http://a.test./", "https://u:p@a.test:8443/x?http://a.test./", "a.test"),
        ("http://127.0.0.1./x", "http://127.0.0.1/x", "127.0.0.1"),
        ("http://127.1/x", "http://127.0.0.1/x", "127.0.0.1"),
        ("http://0x7f.1:81/x", "http://127.0.0.1:81/x", "127.0.0.1"),
        ("http://[0:0:0::1]/x", "http://[0:0:0::1]/x", "::1"),
        ("http://[::ffff:8.8.4.4]/x", "http://8.8.4.4/x", "8.8.4.4"),
        ("http://u:p@[::FFFF:0808:0404]:81/x?[::1]", "http://u:p@8.8.4.4:81/x?[::1]", "8.8.4.4"),
        ("http://[::8.8.4.4]/x", "http://[::8.8.4.4]/x", "::808:404"),
    ],
)
def test_one_host_has_one_name(given: str, url: str, host: str) -> None:
    target = target_of(given)
    assert target is not None
    assert (target.url, target.host) == (url, host)


@pytest.mark.parametrize(
    ("url", "is_address"),
    [
        ("http://8.8.8.8/x", True),
        ("http://0x7f.1/x", True),
        ("http://[2606:4700::1111]/x", True),
        ("http://a.example/x", False),
        ("http://a.1b/x", False),
    ],
)
def test_a_target_says_whether_there_is_a_name_to_look_up(url: str, is_address: bool) -> None:
    target = target_of(url)
    assert target is not None
    assert target.is_address is is_address
    assert origin_of(target).robots_txt.is_address is is_address


def test_a_host_that_is_longer_than_names_can_be_is_none() -> None:
    name = ".".join(["a" * 50] * 4 + ["b" * 49])
    assert len(name) == 253
    assert target_of(f"http://{name}/") == target_of(f"http://{name}./")
    assert target_of(f"http://{name}c/") is None
    assert target_of("http://" + "0" * 60_000 + ".1/") is None
    assert target_of("http://./") is None


def test_every_real_url_is_taken_by_libcurl(shared_data: Path) -> None:
    handle = pycurl.Curl()
    refused = []
    for line in (shared_data / "urls/laion-10k.txt").read_text("utf-8").splitlines():
        target = target_of(line)
        if target is None:
            refused.append(line)
            continue
        handle.setopt(pycurl.URL, target.url)
    handle.close()
    assert refused == ["UNLIKELY"]
