"""Width and height of a picture, read from its header; nothing is decoded.

As stored: an orientation in EXIF, in TIFF or in AVIF's properties is not applied. Sources as in
`images.py`; of AVIF also ISO/IEC 14496-12 and 23008-12 (HEIF): the size of the primary item.

Bodies are hostile. Every walk is bounded, every number is read inside the body or not at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from dlconsole.workers.images import is_whole, jpeg_header, jpeg_is_whole

Body = bytes | bytearray
Size = tuple[int, int]
UNKNOWN: Final[Size] = (0, 0)
"""The size of what says none."""

_TWO_LONGS: Final = struct.Struct(">II")
_TWO_SHORTS_LE: Final = struct.Struct("<HH")
_MAX_ENTRIES: Final = 256
"""Most entries looked at in a directory, and most boxes in a box."""
_Box = tuple[bytes, int, int]


def size_of(body: Body, image_format: str) -> Size:
    """Width and height in pixels of a body of this format (as `sniff` names it); `UNKNOWN` where they
    cannot be read. Of an animation its canvas, of several pages the first, of an icon the largest.
    """
    try:
        width, height = _READERS[image_format](body)
    except (struct.error, IndexError, OverflowError):  # it ends before it says so, or 2^63 bytes behind that
        return UNKNOWN
    return (width, height) if width > 0 and height > 0 else UNKNOWN


def examined(body: Body, image_format: str) -> tuple[bool, Size]:
    """`is_whole` and `size_of` together: most pictures are JPEGs, whose header is then walked once."""
    if image_format != "JPEG":
        return is_whole(body, image_format), size_of(body, image_format)
    width, height, scan = jpeg_header(body)
    return jpeg_is_whole(body, scan), (width, height) if width > 0 and height > 0 else UNKNOWN


def _jpeg(body: Body) -> Size:
    width, height, _ = jpeg_header(body)
    return width, height


def _png(body: Body) -> Size:
    return _TWO_LONGS.unpack_from(body, 16) if body[12:16] == b"IHDR" else UNKNOWN


def _gif(body: Body) -> Size:
    return _TWO_SHORTS_LE.unpack_from(body, 6)


def _webp(body: Body) -> Size:
    kind = body[12:16]
    if kind == b"VP8 " and body[23:26] == b"\x9d\x01\x2a":
        width, height = _TWO_SHORTS_LE.unpack_from(body, 26)
        return width & 0x3FFF, height & 0x3FFF  # above it: how to scale it up
    if kind == b"VP8L" and body[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", body, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(body) >= 30:
        return int.from_bytes(body[24:27], "little") + 1, int.from_bytes(body[27:30], "little") + 1
    return UNKNOWN


def _bmp(body: Body) -> Size:
    if body[14] == 12:
        return _TWO_SHORTS_LE.unpack_from(body, 18)
    width, height = struct.unpack_from("<ii", body, 18)
    return width, abs(height)  # negative: from the top down


def _ico(body: Body) -> Size:
    """The largest picture of the directory; a PNG in it says more than its entry, which ends at 256."""
    (count,) = struct.unpack_from("<H", body, 4)
    entries = []
    for index in range(min(count, _MAX_ENTRIES)):
        width, height, *_, offset = struct.unpack_from("<BBBBHHII", body, 6 + 16 * index)
        entries.append((width or 256, height or 256, offset))
    width, height, offset = max(entries, key=lambda entry: entry[0] * entry[1], default=(0, 0, 0))
    if body[offset : offset + 8] == b"\x89PNG\r\n\x1a\n":
        return _png(body[offset : offset + 24])
    return width, height


def _tiff(body: Body) -> Size:
    """Tags 256 and 257 of the first directory, also of BigTIFF."""
    order = "<" if body[0] == 0x49 else ">"
    big = 43 in body[2:4]
    head, count_code, entry_bytes, value_at = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
    (directory,) = struct.unpack_from(order + head, body, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_code, body, directory)
    first = directory + (8 if big else 2)
    values = {}
    for index in range(min(count, _MAX_ENTRIES)):
        entry = first + index * entry_bytes
        tag, kind = struct.unpack_from(order + "HH", body, entry)
        if tag in {256, 257}:
            code = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if code is None or (code == "Q" and not big):
                return UNKNOWN
            (values[tag],) = struct.unpack_from(order + code, body, entry + value_at)
        elif tag > 257:  # they are sorted
            break
    return values.get(256, 0), values.get(257, 0)


def _avif(body: Body) -> Size:
    """The spatial extent that is a property of the primary item."""
    meta = _box(body, b"meta", 0, len(body))
    if meta is None:
        return UNKNOWN
    start, end = meta[1] + 4, meta[2]
    primary, properties = _box(body, b"pitm", start, end), _box(body, b"iprp", start, end)
    if primary is None or properties is None:
        return UNKNOWN
    held = _box(body, b"ipco", properties[1], properties[2])
    links = _box(body, b"ipma", properties[1], properties[2])
    if held is None or links is None:
        return UNKNOWN
    (item,) = struct.unpack_from(">I" if body[primary[1]] else ">H", body, primary[1] + 4)
    wanted = _properties_of(body, links, item)
    for number, (name, inside, _) in enumerate(_boxes(body, held[1], held[2]), 1):
        if name == b"ispe" and number in wanted:
            return _TWO_LONGS.unpack_from(body, inside + 4)
    return UNKNOWN


def _properties_of(body: Body, links: _Box, item: int) -> set[int]:
    """The numbers, from 1, of the properties that an item has."""
    at = links[1]
    version, wide = body[at], body[at + 3] & 1
    (count,) = struct.unpack_from(">I", body, at + 4)
    at += 8
    for _ in range(min(count, _MAX_ENTRIES)):
        (found,) = struct.unpack_from(">I" if version else ">H", body, at)
        at += 4 if version else 2
        length = body[at]
        step = 2 if wide else 1
        if found == item:
            numbers = struct.unpack_from(f">{length}{'H' if wide else 'B'}", body, at + 1)
            return {number & (0x7FFF if wide else 0x7F) for number in numbers}
        at += 1 + length * step
    return set()


def _box(body: Body, name: bytes, start: int, end: int) -> _Box | None:
    return next((box for box in _boxes(body, start, end) if box[0] == name), None)


def _boxes(body: Body, start: int, end: int) -> Iterator[_Box]:
    """The boxes between two places: name, where the content begins, where it ends."""
    at = start
    for _ in range(_MAX_ENTRIES):
        if at + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", body, at)
        inside = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", body, inside)
            inside += 8
        stop = end if length == 0 else at + length
        if stop < inside or stop > end:
            return
        yield name, inside, stop
        at = stop


_READERS: Final[dict[str, Callable[[Body], Size]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "AVIF": _avif,
    "TIFF": _tiff,
    "BMP": _bmp,
    "ICO": _ico,
}
