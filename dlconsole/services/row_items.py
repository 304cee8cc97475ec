"""Rows of a list → the queue's items, with caption, id, hash and the columns that travel along.

Hot: 60,000 rows a second and more, so each row is one dict, one `_Item` and one call of msgspec; everything
that a usual row does not need stands beside that path.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from hashlib import sha256
from itertools import repeat
from typing import Any, Final

import msgspec

from dlconsole.model import KEY_DIGITS
from dlconsole.services.columns import Columns, late_role
from dlconsole.services.items import IMAGE_EXTENSIONS, Tally, extension, is_http, url_fault
from dlconsole.services.manifests import BadRow, Block, Row, Table
from dlconsole.services.objects import SENTINEL, hide_sentinel
from dlconsole.settings import Settings

_PLAIN_URL: Final = re.compile(r"https?://[!-~]+")
"""What needs no closer look: nearly every URL."""
_SENTINEL: Final = SENTINEL.decode()
_NO_COLUMN: Final = "\udfff"
"""Where the column of a role is looked for that no column has: no row has this name."""
_DEEPEST: Final = 100
"""Of what msgspec refuses, deeper nesting is dropped."""


_Parts = tuple[Any, Any, Any, Any, Any, Any]
"""URL, caption, id, hash, extension, and what else travels along."""


class _Item(msgspec.Struct, omit_defaults=True, gc=False):
    """An item, its keys in this order; what is None is left out."""

    img_path: str
    img_url: str
    key: str
    caption: Any = None
    id: Any = None
    hash: Any = None
    columns: Any = None
    """A dict, or a struct of `_record`."""


class RowWriter:
    """Makes the items of one list with columns; the path of each image as `feed.path_template`, or else
    `feed.layout` says. In a layout the extension is that of the list's column, where it has one, else `jpg`.
    """

    def __init__(self, settings: Settings, list_id: str, columns: Columns) -> None:
        is_layout = not settings.feed.path_template
        template = "/" + settings.feed.template.lstrip("/").replace("{ds}", settings.dataset)
        if is_layout and columns.ext:
            template = template.removesuffix("jpg") + "{ext}"
        self._template = template
        self._url_has_ext = not is_layout
        self._is_sharded = "{ab}/{cd}/{sha256}" in template
        head, mark, tail = template.replace("{ab}/{cd}/{sha256}", "{sha256}").partition("{sha256}")
        self._around = (head, tail) if mark and not set("{}") & set(head + tail) else None
        """What stands around the digest and its folders, where these are all that differs between paths."""
        self._max_url_bytes = settings.feed.max_url_bytes
        self._columns = columns
        self._prefix = list_id.removeprefix("stream-")[:KEY_DIGITS] + "-"
        self._kept = frozenset(columns.kept) if columns.drops_others else None
        self._max_bytes = columns.max_bytes
        roles = (columns.url, columns.caption, columns.id, columns.hash, columns.ext)
        self._names = tuple(name or _NO_COLUMN for name in roles)
        self._records: tuple[tuple[str, ...], Callable[..., Any]] | None = None
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def tasks(self, block: Block, tally: Tally) -> list[bytes]:
        """The items of the good rows; the others are counted in `tally`, which moves on."""
        prefix, around, is_sharded = self._prefix, self._around, self._is_sharded
        encode, plain, most = self._encode, _PLAIN_URL.fullmatch, self._max_url_bytes
        max_bytes = self._max_bytes or 1 << 62
        items: list[bytes] = []
        rows, first = block.rows, tally.lines + 1
        parts = self._parts_of(rows) if isinstance(rows, Table) else map(self._parts, rows)
        for number, part in enumerate(parts, first):
            if not isinstance(part, tuple):
                self._no_row(part, number, tally)
                continue
            url, caption, id_, hash_, ext, rest = part
            if url.__class__ is not str or not plain(url) or len(url) > most or _SENTINEL in url:
                url = self._checked(url, part, rows[number - first], number, tally)
                if not url:
                    continue
            digest = sha256(url.encode()).hexdigest()
            if around:
                name = f"{digest[:2]}/{digest[2:4]}/{digest}" if is_sharded else digest
                path = f"{around[0]}{name}{around[1]}"
            else:
                path = self._path(digest, url, ext)
            if caption.__class__ is not str and caption is not None:
                caption = _role_value(caption)
            if id_.__class__ is float or id_.__class__ is bytes:
                id_ = _role_value(id_)
            if hash_ is not None:
                hash_ = _digest(hash_)
            item = _Item(path, url, f"{prefix}{number}", caption, id_, hash_, rest)
            try:
                body = encode(item)
            except (UnicodeEncodeError, RecursionError, TypeError, ValueError):
                body = _encoded_carefully(item)
            if len(body) > max_bytes:
                body = self._without_large_values(item, body, tally)
            items.append(hide_sentinel(body) if SENTINEL in body else body)
        tally.lines += len(rows)
        tally.tasks += len(items)
        return items

    def _parts(self, row: Row) -> _Parts | Row:
        """What an item is made of. The row is taken apart where all else of it travels along."""
        if not isinstance(row, dict):
            return row
        url_name, caption_name, id_name, hash_name, ext_name = self._names
        if self._columns.late and not self._columns.seen.issuperset(row):
            caption_name, id_name, hash_name = self._names_of(row)
        take = row.pop if self._kept is None else row.get
        ext = row.get(ext_name)
        values = (take(url_name, None), take(caption_name, None), take(id_name, None), take(hash_name, None))
        kept = self._kept
        rest = row if kept is None else {name: value for name, value in row.items() if name in kept}
        return (*values, ext, rest or None)

    def _parts_of(self, table: Table) -> Iterator[_Parts]:
        """The same of many rows at once, and without a dict for each."""
        found = dict(zip(table.names, table.columns, strict=True))
        roles = [found.get(name) or repeat(None, len(table)) for name in self._names]
        kept = [
            name
            for name in table.names
            if (name in self._kept if self._kept is not None else name not in self._names[:-1])
        ]
        rest = map(self._record(tuple(kept)), *(found[name] for name in kept)) if kept else repeat(None)
        return zip(*roles, rest, strict=False)

    def _record(self, names: tuple[str, ...]) -> Callable[..., Any]:
        """Makes what is written as the columns of an item; a struct is made and written in half the time."""
        if self._records is None or self._records[0] != names:
            fields = {f"c{number}": name for number, name in enumerate(names)}
            make: Callable[..., Any]
            try:
                make = msgspec.defstruct(
                    "Columns", [(field, Any) for field in fields], rename=fields, gc=False
                )
            except ValueError:  # a name with a quote in it
                make = lambda *values: dict(zip(names, values, strict=True))  # noqa: E731
            self._records = names, make
        return self._records[1]

    def _names_of(self, row: dict[str, Any]) -> tuple[str, str, str]:
        """The columns of caption, id and hash in a row that has others than the list's first rows."""
        columns = self._columns
        found = {role: late_role(role, row, columns) for role in columns.late}
        return (
            columns.caption or found.get("caption") or _NO_COLUMN,
            columns.id or found.get("id") or _NO_COLUMN,
            columns.hash or found.get("hash") or _NO_COLUMN,
        )

    def _no_row(self, row: Row, number: int, tally: Tally) -> None:
        if isinstance(row, BadRow):
            tally.reject(number, row.why, row.data)
        else:
            tally.blank += 1

    def _checked(self, url: Any, parts: _Parts, row: Row, number: int, tally: Tally) -> str:
        """The URL of any row, or '' with the reason in `tally`."""
        if isinstance(url, bytes):
            url = url.decode("utf-8", "surrogateescape")
        if url is None or (isinstance(url, str) and not url.strip()):
            why = "has no URL"
        elif not isinstance(url, str):
            why = "its URL is no text"
        else:
            url = url.strip()
            why = url_fault(url.encode("utf-8", "surrogatepass"), self._max_url_bytes)
        if why:
            roles = zip(self._names[:-1], parts, strict=False)
            taken = {name: value for name, value in roles if value is not None or name == self._columns.url}
            tally.reject(number, why, taken | row if isinstance(row, dict) else row)
            return ""
        tally.not_http += not is_http(url)
        return str(url)

    def _path(self, digest: str, url: str, named: Any) -> str:
        ext = named.lower().lstrip(".") if isinstance(named, str) else ""
        if ext not in IMAGE_EXTENSIONS:
            ext = extension(url) if self._url_has_ext else "jpg"
        return self._template.format(sha256=digest, ab=digest[:2], cd=digest[2:4], ext=ext)

    def _without_large_values(self, item: _Item, body: bytes, tally: Tally) -> bytes:
        """The item without those columns that are too large to travel along."""
        columns, most = _as_dict(item.columns), self._max_bytes or 0
        large = [name for name, value in columns.items() if self._size(value) > most]
        if not large:
            return body
        tally.too_large.update(large)
        item.columns = {name: value for name, value in columns.items() if name not in large} or None
        try:
            return self._encode(item)
        except (UnicodeEncodeError, RecursionError, TypeError, ValueError):
            return _encoded_carefully(item)

    def _size(self, value: Any) -> int:
        """Bytes of a value: of text in UTF-8, of anything else as JSON."""
        if isinstance(value, str):
            return len(value.encode("utf-8", "surrogatepass"))
        try:
            return len(self._encode(value))
        except (UnicodeEncodeError, RecursionError, TypeError, ValueError):
            return len(json.dumps(_plain(value)))


def _as_dict(columns: Any) -> dict[str, Any]:
    if isinstance(columns, msgspec.Struct):
        return dict(zip(columns.__struct_encode_fields__, msgspec.structs.astuple(columns), strict=True))
    return dict(columns or {})


def _role_value(value: Any) -> Any:
    """A caption or an id: text that came as bytes is text, and a float that is no number is nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _digest(value: Any) -> Any:
    """A hash: of raw bytes that are no text, their hex digits."""
    value = _role_value(value)
    return value.hex() if isinstance(value, bytes) else value


def _encoded_carefully(item: _Item) -> bytes:
    """What msgspec refuses: lone surrogates, and nesting that is too deep."""
    fields = {name: getattr(item, name) for name in item.__struct_fields__}
    if item.columns is not None:
        fields["columns"] = _as_dict(item.columns)
    return json.dumps({name: _plain(value) for name, value in fields.items() if value is not None}).encode()


def _plain(value: Any, depth: int = 0) -> Any:
    """As msgspec would write it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if depth < _DEEPEST and isinstance(value, dict):
        return {str(name): _plain(inner, depth + 1) for name, inner in value.items()}
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    return str(value) if depth < _DEEPEST else None
