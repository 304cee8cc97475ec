"""Lines into files: whole or not at all, in order, and none lost when a write fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dlconsole.errors import StoreError
from dlconsole.model import Failure, FailureKind, LedgerLine, Stored
from dlconsole.services.queue import Claimed
from dlconsole.services.tasks import decode_task, left_of
from dlconsole.settings import LedgerSettings, WorkerSettings
from dlconsole.workers.attempt import Attempt
from dlconsole.workers.files import Store
from dlconsole.workers.ledger import Ledger, now_ms
from dlconsole.workers.outbox import Report
from dlconsole.workers.places import Layout


class Writer:
    """A ledger on a real store, and what it handed over."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root, ledger="ds/ledger")
        self.folder = root / "ds/ledger"
        self.acked: list[Report] = []
        self.ledger = Ledger(LedgerSettings(), Layout(WorkerSettings()), self.store, self.acked.append)

    def add(self, raw: bytes, outcome: Stored | Failure, session: str = "h-1") -> None:
        attempt = Attempt(Claimed("1:0", raw), 0, decode_task(raw) or left_of(raw), now_ms())
        line = self.ledger.line_of(attempt, outcome, session)
        self.ledger.add(Report(attempt.claimed, 0, line=line))

    def files(self) -> dict[str, list[str]]:
        """The keys in each file."""
        return {
            path.name: [
                msgspec.json.decode(line, type=LedgerLine).key for line in path.read_bytes().splitlines()
            ]
            for path in sorted(self.folder.iterdir())
        }


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "store")
    yield writer
    writer.store.close()


def item(number: int) -> bytes:
    return b'{"img_path": "/a", "img_url": "u", "key": "0123abcd0123-%d"}' % number


FAILED = Failure(FailureKind.DNS, "x")


def test_a_round_is_one_write_and_the_next_is_appended(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or write(fd, data))
    for number in range(3):
        writer.add(item(number), FAILED)
    assert writer.acked == []
    writer.ledger.write("h-1")
    assert len(writes) == 1 and len(writer.acked) == 3 and not len(writer.ledger)
    writer.add(item(3), FAILED)
    writer.ledger.write("h-1")
    assert writer.files() == {"h-1-1.jsonl": [f"0123abcd0123-{n}" for n in range(4)]}
    writer.add(item(4), FAILED, "h-2")
    writer.ledger.write("h-2")
    assert writer.files()["h-2-1.jsonl"] == ["0123abcd0123-4"]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_write_that_fails_half_way_leaves_whole_lines_and_is_repeated(
    begun: bool, code: int, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"h-1-1.jsonl": ["0123abcd0123-0"]} if begun else {}
    if begun:
        writer.add(item(0), FAILED)
        writer.ledger.write("h-1")
    writer.add(item(1), FAILED)
    write, calls = os.write, []

    def fills_up(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        return write(fd, data[:20])

    writer.store.open()
    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(StoreError, match=os.strerror(code)):
        writer.ledger.write("h-1")
    monkeypatch.undo()
    assert len(calls) == 2 and writer.files() == first
    assert len(writer.acked) == begun and [claimed.raw for claimed, _ in writer.ledger.pending] == [item(1)]
    writer.add(item(2), FAILED)
    writer.ledger.write("h-1")
    assert writer.files() == first | {"h-1-2.jsonl": ["0123abcd0123-1", "0123abcd0123-2"]}
    assert len(writer.acked) == begun + 2


def test_nothing_of_a_file_is_held_open_and_one_that_was_moved_away_is_begun_anew(writer: Writer) -> None:
    writer.add(item(0), FAILED)
    writer.ledger.write("h-1")
    held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert str(writer.folder / "h-1-1.jsonl") not in held
    (writer.folder / "h-1-1.jsonl").rename(writer.folder / "old.jsonl")
    writer.add(item(1), FAILED)
    writer.ledger.write("h-1")
    assert writer.files() == {"h-1-1.jsonl": ["0123abcd0123-1"], "old.jsonl": ["0123abcd0123-0"]}


def test_a_link_in_place_of_a_file_is_not_followed(writer: Writer, tmp_path: Path) -> None:
    writer.store.open()
    (tmp_path / "secret").write_bytes(b"keep")
    (writer.folder / "h-1-1.jsonl").symlink_to(tmp_path / "secret")
    writer.add(item(0), FAILED)
    with pytest.raises(StoreError):
        writer.ledger.write("h-1")
    writer.ledger.write("h-1")
    assert (tmp_path / "secret").read_bytes() == b"keep"
    assert (writer.folder / "h-1-2.jsonl").is_file()


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff", b"[]", b'{"img_path": "/a\\ud800", "img_url": "u"}', b'{"img_path": "/a", "img_url": "u",\n"n": "\xff"}',
     b'{"img_path": "/a", "img_url": "u", "caption": [1, NaN], "columns": 5, "hash": {"a":\r\n1}}'],
)  # fmt: skip
def test_hostile_items_and_messages_are_one_sound_line(raw: bytes, writer: Writer) -> None:
    writer.add(raw, Failure(FailureKind.CONNECT, "odd \udcff \ud800\n answer", 200))
    writer.add(raw, Stored("ds/x", "PNG", 5))
    writer.ledger.write("h-1")
    content = (writer.folder / "h-1-1.jsonl").read_bytes()
    assert content.count(b"\n") == 2 and content.endswith(b"\n") and b"\r" not in content
    failed, stored = (msgspec.json.decode(line, type=LedgerLine) for line in content.splitlines())
    assert failed.key == stored.key and failed.message == "odd \\udcff \\ud800\n answer"
    assert (stored.path, stored.outcome, stored.attempts) == ("/ds/x", "stored", 1)
