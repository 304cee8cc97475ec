"""Formats by magic bytes, wholeness by structure, sizes by headers: of files that Pillow makes, and of worse."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dlconsole.workers.image_size import UNKNOWN, examined, size_of
from dlconsole.workers.images import is_whole, more_tells, not_image, sniff

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "ICO")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
WAYS: tuple[dict[str, object], ...] = (
    {}, {"progressive": True}, {"lossless": True}, {"save_all": True}, {"big_tiff": True}, {"compression": "tiff_lzw"},
    {"optimize": True}, {"quality": 40}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, {"bitmap_format": "bmp"},
)  # fmt: skip


def picture(mode: str = "RGB", size: tuple[int, int] = (67, 45)) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB").convert(mode)


def encoded(image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture(size=(64, 48)).save(buffer, image_format, **options)
    return buffer.getvalue()


def animated(image_format: str) -> bytes:
    buffer = io.BytesIO()
    first, *others = (picture().rotate(30 * turn) for turn in range(5))
    first.save(buffer, image_format, save_all=True, append_images=others, duration=50)
    return buffer.getvalue()


def saved(image_format: str, mode: str, way: dict[str, object]) -> bytes | None:
    """A picture as Pillow writes it, or None where it cannot write or cannot read it so."""
    buffer = io.BytesIO()
    try:
        Image.new(mode, (67, 45)).save(buffer, image_format, **way)
        Image.open(io.BytesIO(buffer.getvalue()))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SystemError):
        return None
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", FORMATS)
def test_whatever_pillow_writes_is_known_whole_and_measured(image_format: str) -> None:
    tried = 0
    for mode in MODES:
        for way in WAYS:
            body = saved(image_format, mode, way)
            if body is None:
                continue
            tried += 1
            assert sniff(body[:32]) == image_format, (mode, way)
            assert is_whole(body, image_format), (mode, way)
            with Image.open(io.BytesIO(body)) as image:
                assert size_of(bytearray(body), image_format) == image.size, (mode, way)
    assert tried >= 20


@pytest.mark.parametrize(
    "body",
    [b"", b"<!DOCTYPE html><html>", b'{"error": "no"}', b"BM is a place in London", b"\x00\x00\x01\x00" * 8, b"RIFF1234WAVEfmt ",
     b"GIF88a" + b"\0" * 40, b"\xff\xd8", b"%PDF-1.7" + b" " * 40, b"\0\0\0\x18ftypmp42" + b"\0" * 20, b"II+\0 is no TIFF"],
)  # fmt: skip
def test_what_is_no_image_is_not_taken_for_one(body: bytes) -> None:
    assert sniff(body[:32]) is None
    assert not_image(body).kind == "not_image"


# -- wholeness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_an_image_that_is_cut_anywhere_is_noticed(image_format: str) -> None:
    body = encoded(image_format)
    end = len(body) - 1 if image_format == "GIF" else len(body)  # decoders do without a GIF's trailer
    assert [cut for cut in range(32, end) if is_whole(body[:cut], image_format)] == []


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_that_is_cut_is_noticed(image_format: str) -> None:
    body = animated(image_format)
    assert is_whole(body, image_format)
    whole = [cut for cut in range(32, len(body)) if is_whole(body[:cut], image_format)]
    assert len(whole) <= (10 if image_format == "GIF" else 0)  # just behind a frame or its preamble


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize(
    "behind", [b"\n\0\0trailing", b"\xff\xda\xff\xd8\xff" * 5, b"\0" * 999, b"\x21\xfe\xff"]
)
def test_bytes_behind_the_end_do_no_harm(image_format: str, behind: bytes) -> None:
    assert is_whole(encoded(image_format) + behind, image_format)


def test_a_second_picture_behind_the_first_may_be_cut() -> None:
    """As in MPF, where phones put depths and gains, and in motion photos."""
    buffer = io.BytesIO()
    picture().save(buffer, "MPO", save_all=True, append_images=[picture()])
    body = buffer.getvalue()
    second = body.rfind(b"\xff\xd8\xff")
    assert sniff(body) == "JPEG" and is_whole(body, "JPEG") and size_of(body, "JPEG") == (67, 45)
    assert is_whole(body[:-40], "JPEG")
    assert not is_whole(body[: second - 40], "JPEG")


def test_a_thumbnails_end_is_not_the_pictures_end() -> None:
    thumbnail = encoded("JPEG")
    exif = Image.Exif()
    exif[0x010E] = "x"
    whole = encoded("JPEG", exif=exif.tobytes() + thumbnail)
    assert is_whole(whole, "JPEG") and size_of(whole, "JPEG") == (64, 48)
    start_of_scan = whole.rfind(b"\xff\xda")
    assert thumbnail[-9:] in whole[:start_of_scan]
    for cut in (len(whole) - 40, start_of_scan + 30, start_of_scan - 5):
        assert not is_whole(whole[:cut], "JPEG")


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_png_inside_a_png_does_not_end_it() -> None:
    body = encoded("PNG")
    carrier = body[:33] + chunk(b"prVW", encoded("PNG")) + body[33:]
    assert is_whole(carrier, "PNG")
    assert carrier.count(chunk(b"IEND")) == 2
    assert not is_whole(carrier[: carrier.rfind(b"IDAT") + 20], "PNG")
    data = chunk(b"IDAT", b"x" * 40 + chunk(b"IEND") + b"y" * 40)
    assert not is_whole(body[:33] + data[:-20], "PNG")
    assert not is_whole(body[:33] + chunk(b"IEND"), "PNG")  # without any data


def test_a_webp_whose_length_is_short_of_its_picture_is_not_whole() -> None:
    body = bytearray(encoded("WEBP"))
    body[4:8] = struct.pack("<I", 40)
    assert not is_whole(body, "WEBP")


def test_real_photographs_are_whole_and_measured(shared_data: Path) -> None:
    photos = [path for path in (shared_data / "photos").iterdir() if path.is_file()]
    assert len(photos) >= 12
    for path in photos:
        body = path.read_bytes()
        image_format = sniff(body[:32])
        assert image_format == {"jpg": "JPEG", "png": "PNG"}[path.suffix[1:]], path
        assert is_whole(body, image_format), path
        with Image.open(path) as image:
            assert size_of(body, image_format) == image.size, path


# -- sizes ----------------------------------------------------------------------------------------


def test_an_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image_format in ("JPEG", "WEBP", "AVIF", "PNG", "TIFF"):
        assert size_of(encoded(image_format, exif=exif), image_format) == (64, 48)


def test_an_icon_has_the_size_of_its_largest_picture() -> None:
    buffer = io.BytesIO()
    picture("RGBA", (300, 300)).save(buffer, "ICO", sizes=[(16, 16), (256, 256), (48, 48)])
    assert size_of(buffer.getvalue(), "ICO") == (256, 256)
    body = bytearray(buffer.getvalue())
    at = body.rfind(b"IHDR")
    body[at + 4 : at + 12] = struct.pack(">II", 1024, 768)  # more than an entry can say
    assert size_of(body, "ICO") == (1024, 768)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_header_that_is_cut_has_no_size(image_format: str) -> None:
    body = encoded(image_format)
    sizes = {size_of(body[:cut], image_format) for cut in range(len(body))}
    for cut in range(32, len(body) + 1):
        part = body[:cut]
        assert examined(part, image_format) == (is_whole(part, image_format), size_of(part, image_format))
    assert sizes <= {UNKNOWN, size_of(body, image_format)}


def test_sizes_of_nothing_are_unknown() -> None:
    body = bytearray(encoded("PNG"))
    body[16:20] = bytes(4)
    assert size_of(body, "PNG") == UNKNOWN
    assert size_of(b"\xff\xd8\xff\xd9" * 20, "JPEG") == UNKNOWN
    assert size_of(b"\x00\x00\x01\x00" + bytes(40), "ICO") == UNKNOWN


# -- hostile bodies -------------------------------------------------------------------------------


def test_hostile_files_never_raise(shared_data: Path) -> None:
    for path in (shared_data / "hostile-images").iterdir():
        body = path.read_bytes()
        for cut in (body, body[:50], body[: len(body) // 2]):
            image_format = sniff(cut[:32])
            if image_format is not None:
                assert is_whole(cut, image_format) in {True, False}
                assert len(size_of(cut, image_format)) == 2


@pytest.mark.parametrize("image_format", FORMATS)
def test_whatever_is_spoilt_nothing_raises(image_format: str) -> None:
    chance = random.Random(image_format)
    for body in (
        encoded(image_format),
        animated(image_format) if image_format in {"GIF", "WEBP", "TIFF"} else b"",
    ):
        for _ in range(1500 if body else 0):
            spoilt = bytearray(body[: chance.randrange(8, len(body) + 1)])
            for _ in range(chance.randrange(1, 12)):
                spoilt[chance.randrange(4, min(len(spoilt), 400))] = chance.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
                )
            width, height = size_of(spoilt, image_format)
            assert (width > 0) == (height > 0) and width >= 0
            assert is_whole(spoilt, image_format) in {True, False}


def test_a_directory_beyond_all_bounds_has_no_size() -> None:
    body = b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 + 16) + bytes(40)
    assert examined(body, sniff(body) or "") == (True, UNKNOWN)


EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**63 + 16, 2**64 - 1)


@pytest.mark.parametrize("image_format", FORMATS)
def test_whatever_numbers_stand_in_it_nothing_raises(image_format: str) -> None:
    chance = random.Random(image_format)
    bodies = [encoded(image_format)]
    bodies += [encoded("TIFF", big_tiff=True)] if image_format == "TIFF" else []
    for body in bodies * 4000:
        spoilt = bytearray(body[:600])
        for _ in range(chance.randrange(1, 4)):
            number = struct.pack(chance.choice("<>") + "Q", chance.choice(EXTREMES))
            width = chance.choice((2, 4, 8))
            at = chance.randrange(4, 120)
            spoilt[at : at + width] = number[:width] if chance.random() < 0.5 else number[-width:]
        found = sniff(spoilt) or image_format
        whole, (width, height) = examined(spoilt, found)
        assert whole in {True, False} and width >= 0 and height >= 0
        assert more_tells(spoilt) in {True, False}


@pytest.mark.parametrize("before", [0, 1, 4, 5, 40])
def test_an_avif_brand_is_seen_wherever_it_is_listed(before: int) -> None:
    brands = b"mif1\0\0\0\0" + b"miaf" * before + b"avif"
    body = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + encoded("AVIF")
    assert sniff(body) == "AVIF"
    assert sniff(body[:32]) == "AVIF" or more_tells(body[:32])
    other = body.replace(b"avif", b"heic")
    assert sniff(other) is None and not more_tells(other)


N = 16 * 2**20
LONG: dict[str, tuple[str, Callable[[], bytes]]] = {
    "segments": ("JPEG", lambda: b"\xff\xd8" + b"\xff\xe0\0\2" * (N // 4)),
    "fillers": ("JPEG", lambda: b"\xff\xd8" + b"\xff" * N),
    "stuffing": ("JPEG", lambda: b"\xff\xd8\xff\xda\0\x0c" + b"\xff\0" * (N // 2)),
    "chunks": ("PNG", lambda: b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IDAT\0\0\0\0" * (N // 12)),
    "extensions": ("GIF", lambda: b"GIF89a" + bytes(7) + b"!\xfe\1a\0" * (N // 5)),
    "sub-blocks": ("GIF", lambda: b"GIF89a" + bytes(7) + (b"!\xfe" + b"\1a" * 99_000 + b"\0") * (N // 198_000)),
    "webp chunks": ("WEBP", lambda: b"RIFF" + struct.pack("<I", N) + b"WEBP" + b"XXXX\0\0\0\0" * (N // 8)),
    "boxes": ("AVIF", lambda: b"\0\0\0\x18ftypavif" + bytes(12) + b"\0\0\0\x08free" * (N // 8)),
    "tags": ("TIFF", lambda: b"II*\0\x08\0\0\0\xff\xff" + b"\1\0\3\0" * (N // 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_no_body_holds_up_the_loop(case: str) -> None:
    image_format, make = LONG[case]
    body = make()
    began = time.thread_time()
    is_whole(body, image_format)
    size_of(body, image_format)
    assert time.thread_time() - began < 0.3  # some 20 ms where they are bounded, seconds where not
