"""What is an image, by its first bytes, and whether it is whole, by its structure; nothing is decoded.

Signatures and structures: JPEG ITU-T T.81 annex B, PNG W3C 2003 section 5, GIF89a, WebP RFC 9649,
AVIF ISO/IEC 23000-22, TIFF 6.0 and BigTIFF, BMP and ICO as Microsoft documents them.

Bodies are hostile. Every walk is bounded, because it is taken in the fetch loop, and none of these
functions raises.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from dlconsole.model import Failure, FailureKind

SNIFF_BYTES: Final = 32
"""How many first bytes `sniff` wants (see also `more_tells`); fewer is a file too small to be an image."""

_AVIF_BRANDS: Final = (b"avif", b"avis")
_HEIF_BRANDS: Final = (b"mif1", b"msf1")
"""Containers, in which Pillow too looks for the others."""
_MAX_BRANDS_END: Final = 1024
"""How far brands are looked for; on the web there are about six."""
_BMP_HEADERS: Final = frozenset({12, 40, 52, 56, 64, 108, 124})
_TIFF_HEADS: Final = (b"II*\x00", b"MM\x00*", b"II+\x00\x08\x00\x00\x00", b"MM\x00+\x00\x08\x00\x00")
_MAX_SEGMENTS: Final = 2000
"""Most segments of a JPEG's header; a picture with 64 MB of metadata has half as many."""
_MAX_BLOCKS: Final = 100_000
"""Most chunks or blocks that are looked at: about 10 ms. What has more is judged by its end alone."""
_PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PNG_CHUNK: Final = struct.Struct(">I4s")
_WEBP_CHUNK: Final = struct.Struct("<4sI")
_JPEG_SEGMENT: Final = struct.Struct(">HH")
_JPEG_SCAN: Final = 0xFFDA
_JPEG_END: Final = 0xFFD9
_JPEG_FRAMES: Final = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_JPEG_ALONE: Final = frozenset({0xFF00, 0xFF01, *range(0xFFD0, 0xFFD9)})
"""Markers that no length follows: stuffing, TEM, RSTn, SOI."""
_JPEG_SKIPPED: Final = frozenset(range(0xFFC0, 0xFFFF)) - _JPEG_FRAMES - _JPEG_ALONE - {_JPEG_SCAN, _JPEG_END}
"""Segments with nothing for us: tables, comments, what applications add."""


def sniff(head: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes announce, or None where it is no image."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and _has_avif_brand(head):
        return "AVIF"
    if head.startswith(_TIFF_HEADS):
        return "TIFF"
    if head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "BMP"
    if head.startswith((b"\x00\x00\x01\x00", b"\x00\x00\x02\x00")) and _is_icon(head):
        return "ICO"
    return None


def more_tells(head: bytes | bytearray) -> bool:
    """Whether what `sniff` does not know may be an image when more of it has come: one in a container whose
    list of brands is long.
    """
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and len(head) < _brands_end(head)


def not_image(body: bytes | bytearray) -> Failure:
    """The failure of a body that `sniff` does not know, with how it begins."""
    if not body:
        return Failure(FailureKind.NOT_IMAGE, "empty body", 200)
    return Failure(FailureKind.NOT_IMAGE, f"begins with {bytes(body[:24])!r}", 200)


def is_whole(body: bytes | bytearray, image_format: str) -> bool:
    """Whether the picture's end is there: of JPEG, PNG, GIF and WebP; of other formats nothing is said
    (True).

    Bytes after the end are common on the web (second pictures, films, a server's notes) and do no harm.
    """
    if image_format == "JPEG":
        return jpeg_is_whole(body, jpeg_header(body)[2])
    if image_format == "PNG":
        return _png_is_whole(body)
    if image_format == "GIF":
        return _gif_is_whole(body)
    if image_format == "WEBP":
        return _webp_is_whole(body)
    return True


def jpeg_header(body: bytes | bytearray) -> tuple[int, int, int]:
    """Width, height, and where the first scan begins, of a JPEG; 0 for what does not come before its end.
    Previews and thumbnails are inside segments, so they are stepped over.

    Bytes between segments are skipped, as libjpeg does.
    """
    at, last, width, height = 2, len(body) - 4, 0, 0
    segment = _JPEG_SEGMENT.unpack_from
    for _ in range(_MAX_SEGMENTS):
        if at > last:
            break
        marker, length = segment(body, at)
        if marker in _JPEG_SKIPPED:  # nearly all
            at += 2 + length
        elif marker == _JPEG_SCAN:
            return width, height, at
        elif marker in _JPEG_FRAMES:
            if at + 5 <= last:
                height, width = segment(body, at + 5)
            at += 2 + length
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker == _JPEG_END:
            break
        else:  # a filler, or what does not belong here
            at = body.find(b"\xff", at + 1)
            if at < 0:
                break
    return width, height, 0


def jpeg_is_whole(body: bytes | bytearray, scan: int) -> bool:
    """An end marker behind the first scan. In entropy-coded data 0xFF is always stuffed, so the first one
    there is the picture's own, whatever comes after it: a second picture (MPF), a film, a note.
    """
    return scan > 0 and body.rfind(b"\xff\xd9", scan) > 0  # from behind: the same answer, sooner


def _png_is_whole(body: bytes | bytearray) -> bool:
    """Chunk after chunk to the last, so that one inside another's data is not taken for the end."""
    at, size, has_data = 8, len(body), False
    for _ in range(_MAX_BLOCKS):
        if at + 12 > size:
            return False
        length, name = _PNG_CHUNK.unpack_from(body, at)
        if name == b"IEND":
            return has_data
        has_data = has_data or name == b"IDAT"
        at += 12 + length
    return body.rfind(_PNG_END) > 0


def _gif_is_whole(body: bytes | bytearray) -> bool:
    """Block after block to the trailer. Many on the web have none, and nobody misses it: the end of a
    block, behind a picture, will do.
    """
    if len(body) < 14:
        return False
    at, size, has_picture = 13 + _gif_colours(body[10]), len(body), False
    steps = iter(range(_MAX_BLOCKS))
    for _ in steps:
        if at >= size:
            return has_picture and at == size
        kind = body[at]
        if kind == 0x21:
            at = _behind_sub_blocks(body, at + 2, steps)
        elif kind != 0x2C:  # the trailer, or what is no GIF any more: no decoder reads on
            return has_picture
        elif at + 9 >= size:
            return False
        else:
            at = _behind_sub_blocks(body, at + 11 + _gif_colours(body[at + 9]), steps)
            has_picture = has_picture or at <= size
    return body.rfind(b"\x00;") > 0


def _gif_colours(flags: int) -> int:
    """How many bytes the colour table has that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_sub_blocks(body: bytes | bytearray, at: int, steps: Iterator[int]) -> int:
    """Where a chain of sub-blocks ends; beyond the body where it does not."""
    size = len(body)
    for _ in steps:
        if at >= size:
            break
        length = body[at]
        at += 1 + length
        if length == 0:
            return at
    return size + 1


def _webp_is_whole(body: bytes | bytearray) -> bool:
    """The container's length is there, and in it a picture."""
    end = 8 + int.from_bytes(body[4:8], "little")
    if len(body) < end:
        return False
    at = 12
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > end:
            return False
        name, length = _WEBP_CHUNK.unpack_from(body, at)
        at += 8 + length
        if name in {b"VP8 ", b"VP8L", b"ANMF"}:
            return bool(at <= end)
        at += length & 1
    return False


def _has_avif_brand(head: bytes | bytearray) -> bool:
    if head[8:12] in _AVIF_BRANDS:
        return True
    brands = bytes(head[16 : _brands_end(head)])
    return any(brands[i : i + 4] in _AVIF_BRANDS for i in range(0, len(brands), 4))


def _brands_end(head: bytes | bytearray) -> int:
    return min(int.from_bytes(head[:4], "big"), _MAX_BRANDS_END)


def _is_icon(head: bytes | bytearray) -> bool:
    """An icon's signature is weak: it must also list at least one image, with the reserved byte 0."""
    return len(head) >= 22 and 0 < int.from_bytes(head[4:6], "little") <= 256 and head[9] == 0
