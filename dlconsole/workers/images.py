"""What is an image, by its first bytes, and whether it is whole, by its structure; nothing is decoded.

Signatures and structures: JPEG ITU-T T.81 annex B, PNG W3C 2003 section 5, GIF89a, WebP RFC 9649,
AVIF ISO/IEC 23000-22, TIFF 6.0, BMP and ICO as Microsoft documents them.
"""

from __future__ import annotations

import struct
from typing import Final

from dlconsole.model import Failure, FailureKind

SNIFF_BYTES: Final = 32
"""How many first bytes `sniff` wants; fewer is a file too small to be an image."""

_PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_AVIF_BRANDS: Final = (b"avif", b"avis")
_BMP_HEADERS: Final = frozenset({12, 40, 52, 56, 64, 108, 124})


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
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    if head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "BMP"
    if head.startswith((b"\x00\x00\x01\x00", b"\x00\x00\x02\x00")) and _is_icon(head):
        return "ICO"
    return None


def not_image(body: bytes | bytearray) -> Failure:
    """The failure of a body that `sniff` does not know, with how it begins."""
    if not body:
        return Failure(FailureKind.NOT_IMAGE, "empty body", 200)
    return Failure(FailureKind.NOT_IMAGE, f"begins with {bytes(body[:24])!r}", 200)


def is_whole(body: bytes | bytearray, image_format: str) -> bool:
    """Whether the end is there: of JPEG, PNG, GIF and WebP; of other formats nothing is said (True).

    Bytes after the end are common on the web and do no harm.
    """
    if image_format == "JPEG":
        return _jpeg_is_whole(body)
    if image_format == "PNG":
        return body.rfind(_PNG_END) > 0
    if image_format == "GIF":
        return body.rstrip(b"\x00").endswith(b";") or body.rfind(b"\x00;") > 0
    if image_format == "WEBP":
        return len(body) >= 8 + int.from_bytes(body[4:8], "little")
    return True


def _jpeg_is_whole(body: bytes | bytearray) -> bool:
    """An end marker behind the last scan. A thumbnail in a header has scans and an end of its own,
    so the last start-of-scan marker decides: in entropy-coded data 0xFF is always stuffed.
    """
    end = body.rfind(b"\xff\xd9")
    return end > 0 and body.find(b"\xff\xda", end) < 0


def _has_avif_brand(head: bytes | bytearray) -> bool:
    if head[8:12] in _AVIF_BRANDS:
        return True
    size = int.from_bytes(head[:4], "big")
    brands = head[16 : min(size, SNIFF_BYTES)]
    return any(bytes(brands[i : i + 4]) in _AVIF_BRANDS for i in range(0, len(brands), 4))


def _is_icon(head: bytes | bytearray) -> bool:
    """An icon's signature is weak: it must also list at least one image, with the reserved byte 0."""
    return len(head) >= 22 and 0 < int.from_bytes(head[4:6], "little") <= 256 and head[9] == 0
