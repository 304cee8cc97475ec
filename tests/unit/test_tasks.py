"""Items as tasks: what travels along comes out byte for byte, and nothing odd breaks a line."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from dlconsole.model import Failure, FailureKind
from dlconsole.services.retries import with_history
from dlconsole.services.tasks import decode_task, key_of, left_of

HEAD = b'{"img_path": "/ds/1.jpg", "img_url": "http://a.example/1"'


def travels(raw: bytes) -> dict[str, bytes]:
    """What the ledger gets of an item, and that it is sound: UTF-8 JSON on one line."""
    task = decode_task(raw) or left_of(raw)
    found = {name: getattr(task, name) for name in ("caption", "id", "hash", "columns")}
    values = {name: bytes(value) for name, value in found.items() if value is not msgspec.UNSET}
    for value in values.values():
        assert b"\n" not in value and b"\r" not in value
        json.loads(value.decode(), parse_constant=pytest.fail)
        msgspec.json.decode(value)  # the strictest reader
    return values


def test_our_own_columns_are_the_very_bytes_of_the_item() -> None:
    caption, columns = '"a  cät \\u00e4 \\" \\/"'.encode(), b'{"w" :1.50, "t":[ 1,{} ]}'
    raw = HEAD + b', "key": "0123abcd0123-7", "caption": %s, "id": 12345678901234567890, ' % caption
    raw += b'"hash": null, "columns": %s}' % columns
    assert travels(raw) == {
        "caption": caption,
        "id": b"12345678901234567890",
        "hash": b"null",
        "columns": columns,
    }
    task = decode_task(raw)
    assert task is not None and key_of(task) == "0123abcd0123-7"
    failure = Failure(FailureKind.TIMEOUT, "late")
    assert travels(with_history(raw, 1, failure)) == travels(raw)


def test_an_item_without_a_key_goes_by_a_digest_of_path_and_url() -> None:
    task = decode_task(HEAD + b"}")
    assert task is not None
    assert key_of(task) == hashlib.sha256(b"/ds/1.jpg\0http://a.example/1").hexdigest()[:32]
    assert travels(HEAD + b"}") == {}


@pytest.mark.parametrize(
    "key", [b'"dog"', b"7", b"null", b'["0123abcd0123-7"]', b'"0123abcd0123-"', b'"0123ABCD0123-7"']
)
def test_a_key_that_is_none_of_ours_is_a_column(key: bytes) -> None:
    """Many tasks may have it: the ledger would keep one of them."""
    raw = HEAD + b', "key": ' + key + b"}"
    task = decode_task(raw)
    assert task is not None and len(key_of(task)) == 32
    assert json.loads(travels(raw)["columns"]) == {"key": json.loads(key)}


def test_keys_that_are_none_of_ours_become_columns_beside_those_that_are_there() -> None:
    raw = HEAD + b', "n": 1e2, "columns": {"a": [ ]}, "caption": 5, "status": "x"}'
    assert travels(raw) == {"caption": b"5", "columns": b'{"n":1e2,"status":"x","a":[ ]}'}


@pytest.mark.parametrize(
    ("item", "columns"),
    [
        (b', "columns": [1]}', {"columns": [1]}),
        (b', "columns": "x"}', {"columns": "x"}),
        (b', "n": NaN, "m": [-Infinity, "NaN"]}', {"n": None, "m": [None, "NaN"]}),
        (b',\n "n": {"a":\r\n 1}\n}', {"n": {"a": 1}}),
        (b', "n": "\xff"}', {"n": "\ufffd"}),
        (b', "n": "\\ud83d", "\\ud83d": 1}', {"n": "\ufffd", "\ufffd": 1}),
        (b', "n": ' + b"[" * 600 + b"]" * 600 + b"}", {"n": "[" * 600 + "]" * 600}),
        (b', "n": ' + b"1" * 5000 + b', "m": NaN}', {"n": "1" * 5000, "m": None}),
    ],
    ids=["list", "text", "NaN", "newlines", "no UTF-8", "lone surrogates", "deep", "long number"],
)
def test_odd_columns_break_nothing(item: bytes, columns: object) -> None:
    raw = HEAD + item
    task = decode_task(raw)
    assert task is not None and task.img_url == "http://a.example/1"
    assert json.loads(travels(raw)["columns"]) == columns


def test_a_caption_of_many_brackets_is_not_deep() -> None:
    caption = json.dumps("[" * 2000 + '\\"{').encode()
    assert travels(HEAD + b', "caption": ' + caption + b"}") == {"caption": caption}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b"\xff",
        b'{"img_url": "u"}',
        b'{"img_path": 1, "img_url": "u"}',
        b'{"img_path": "/a", "img_url": "u\\ud83d"}',
        b'{"img_path": "/a\xff", "img_url": "u"}',
        b'{"img_path": "/a", "img_url": [NaN]}',
    ],
)
def test_what_is_no_task_has_a_key_of_its_own(raw: bytes) -> None:
    assert decode_task(raw) is None
    assert key_of(left_of(raw)) == hashlib.sha256(raw).hexdigest()[:32]


@pytest.mark.parametrize("more", [b"1", b"NaN"])
def test_a_path_that_is_nested_deeply_is_none(more: bytes) -> None:
    """Other values are taken for text then."""
    raw = b'{"n": %s, "img_url": "u", "img_path": ' % more + b"[" * 600 + b"]" * 600 + b"}"
    assert decode_task(raw) is None and left_of(raw).img_path == ""


def test_of_what_is_no_task_all_that_can_be_read_is_kept() -> None:
    raw = b'{"img_url": null, "img_path": "/a", "key": "0123abcd0123-7", "caption": "c", "w": 1}'
    left = left_of(raw)
    assert (left.img_path, left.img_url, key_of(left)) == ("/a", "", "0123abcd0123-7")
    assert travels(raw) == {"caption": b'"c"', "columns": b'{"w":1}'}
