"""Lists from a server on this machine that cuts connections, knows ranges or not, and changes its mind."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from list_files import by_column, encoded, packed, rows_of, write_parquet

from dlconsole.errors import FeedError
from dlconsole.services.manifests import Block, Limits, Remote, open_list, remote

OLD = "Fri, 27 Nov 2026 10:00:00 GMT"
ROWS = [{"url": f"http://a.example/{i}", "caption": f"日 {i}\n" + "x" * 90, "note": ""} for i in range(9000)]


@dataclass
class Served:
    """What the server says next."""

    data: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """How many bytes come of the next answers; of further ones all."""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers, in place of a good one."""
    asked: list[dict[str, str]] = field(default_factory=list)
    change_to: dict[str, str] = field(default_factory=dict)
    """The headers from the second answer on."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    served: Served


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        served = self.server.served
        served.asked.append({"path": self.path, **self.headers})
        if served.statuses:
            self.send_response(served.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = served.change_to if served.change_to and len(served.asked) > 1 else served.headers
        validators = {headers.get("ETag"), headers.get("Last-Modified")}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = 0
        if wanted and served.ranges and self.headers.get("If-Range") in validators:
            start = int(wanted[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
        else:
            self.send_response(200)
        body = served.data[start:]
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = served.cuts.pop(0) if served.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = cut < len(body)

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.001)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.served = Served()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.served.headers["X-Port"] = str(server.server_address[1])
        yield server.served
        server.shutdown()
        thread.join()


def url_of(served: Served, name: str) -> Remote:
    return Remote(f"http://user:secret@127.0.0.1:{served.headers['X-Port']}/lists/{name}?signature=hidden")


def read(place: Remote, at: int = 0, rows: int = 4000) -> list[Block]:
    with open_list(place, Limits(rows)) as source:
        return list(source.blocks(at=at))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl.gz", "l.txt.zst", "l.parquet"])
def test_a_cut_connection_is_gone_on_with(name: str, ranges: bool, served: Served, tmp_path: Path) -> None:
    kind, _, packing = name.removeprefix("l.").partition(".")
    rows = ROWS[:3000]
    if kind == "parquet":
        served.data = write_parquet(tmp_path / name, by_column(rows), row_group=500).read_bytes()
    else:
        served.data = packed(encoded(rows, kind), packing)
    served.ranges = ranges
    third = len(served.data) // 3
    served.cuts = [third, third - 1] if ranges else [third, 2 * third]
    place = url_of(served, name)
    blocks = read(place, rows=400)
    wanted = [row["url"].encode() for row in rows] if kind == "txt" else rows
    assert rows_of(blocks) == wanted
    assert len(served.asked) == 3
    # And from the middle, as a feeder does that was killed.
    middle = len(blocks) // 2
    rest = read(place, blocks[middle].end)
    assert rows_of(rest) == rows_of(blocks[middle + 1 :])
    assert all("Authorization" in asked for asked in served.asked)


def test_a_date_that_is_old_enough_stands_for_the_bytes(served: Served) -> None:
    served.data = encoded(ROWS, "csv")
    served.headers |= {"Last-Modified": OLD}
    del served.headers["ETag"]
    served.cuts = [600_000]
    assert rows_of(read(url_of(served, "l.csv"))) == ROWS
    assert [asked.get("If-Range") for asked in served.asked][:2] == [None, OLD]


def test_a_list_that_is_another_one_by_now_is_said(served: Served) -> None:
    served.data, served.cuts = encoded(ROWS, "csv"), [600_000]
    served.change_to = {"ETag": '"2"'}
    with pytest.raises(FeedError, match="was changed while it was fed"):
        read(url_of(served, "l.csv"))


def test_what_cannot_be_told_apart_is_a_stream(served: Served) -> None:
    served.data = b"http://a/\n"
    del served.headers["ETag"]
    with open_list(url_of(served, "l")) as source:
        assert source.is_stream and source.id.startswith("stream-")
        assert rows_of(list(source.blocks())) == [b"http://a/"]
    served.data, served.cuts = encoded(ROWS, "csv"), [600_000]
    with pytest.raises(FeedError, match=r"/lists/l\.csv: broke off after [0-9,]+ bytes .*fetch it to a file"):
        read(url_of(served, "l.csv"))


def identity(served: Served, name: str, query: str = "") -> str:
    served.data = b"x"
    with open_list(Remote(f"http://127.0.0.1:{served.headers['X-Port']}/{name}{query}")) as source:
        return source.id


def test_its_identity_is_what_the_server_says_of_it(served: Served) -> None:
    first = identity(served, "l.csv", "?sig=1")
    assert identity(served, "l.csv", "?sig=2") == first
    assert identity(served, "m.csv") != first
    served.headers["ETag"] = '"2"'
    assert identity(served, "l.csv") != first
    served.headers |= {"Last-Modified": OLD}
    del served.headers["ETag"]
    assert identity(served, "l.csv", "?id=1") == identity(served, "l.csv", "?id=1")
    assert identity(served, "l.csv", "?id=1") != identity(served, "l.csv", "?id=2")


def test_troubles_that_may_pass_are_waited_out_and_others_said_without_secrets(served: Served) -> None:
    served.data, served.statuses = b"http://a/\n", [503, 429, 500]
    assert rows_of(read(url_of(served, "l"))) == [b"http://a/"]
    for statuses, words in (([404], "HTTP 404"), ([500] * 6, "HTTP 500")):
        served.statuses = list(statuses)
        with pytest.raises(
            FeedError, match=f"127.0.0.1:[0-9]+/lists/l: cannot be fetched.*{words}"
        ) as caught:
            read(url_of(served, "l"))
        assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    served.headers["Content-Encoding"] = "br"
    with pytest.raises(FeedError, match="comes packed"):
        read(url_of(served, "l"))


def test_a_server_that_is_not_there_is_said_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.001)
    place = Remote("http://user:secret@127.0.0.1:1/l.csv?signature=hidden")
    with pytest.raises(FeedError, match=r"http://127.0.0.1:1/l.csv: cannot be fetched \(ConnectionError\)"):
        read(place)


def test_waiting_for_a_server_can_be_ended(served: Served) -> None:
    served.data, served.statuses = b"http://a/\n", [503] * 5
    asked = 0

    def idle() -> bool:
        nonlocal asked
        asked += 1
        return asked < 2

    with pytest.raises(remote.Stopped), open_list(url_of(served, "l"), idle=idle):
        pass
