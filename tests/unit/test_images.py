"""Formats by magic bytes, wholeness by structure."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from dlconsole.workers.images import is_whole, not_image, sniff


def encoded(image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "ICO"])
def test_formats_that_pillow_writes_are_known_by_their_first_bytes(image_format: str) -> None:
    body = encoded(image_format)
    assert sniff(body[:32]) == image_format
    assert is_whole(body, image_format)


@pytest.mark.parametrize(
    "body",
    [b"", b"<!DOCTYPE html><html>", b'{"error": "no"}', b"BM is a place in London", b"\x00\x00\x01\x00" * 8, b"RIFF1234WAVEfmt ",
     b"GIF88a" + b"\0" * 40, b"\xff\xd8", b"%PDF-1.7" + b" " * 40, b"\0\0\0\x18ftypmp42" + b"\0" * 20],
)  # fmt: skip
def test_what_is_no_image_is_not_taken_for_one(body: bytes) -> None:
    assert sniff(body[:32]) is None
    assert not_image(body).kind == "not_image"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_image_is_noticed(image_format: str, part: float) -> None:
    body = encoded(image_format)
    assert not is_whole(body[: int(len(body) * part)], image_format)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
def test_bytes_behind_the_end_do_no_harm(image_format: str) -> None:
    assert is_whole(encoded(image_format) + b"\n\0\0trailing", image_format)


def test_a_thumbnails_end_is_not_the_pictures_end() -> None:
    thumbnail = encoded("JPEG")
    exif = Image.Exif()
    exif[0x010E] = "x"
    whole = encoded("JPEG", exif=exif.tobytes() + thumbnail)
    assert is_whole(whole, "JPEG")
    assert not is_whole(whole[:-40], "JPEG")


def test_real_photographs_are_whole(shared_data: Path) -> None:
    photos = [path for path in (shared_data / "photos").iterdir() if path.is_file()]
    assert len(photos) >= 12
    for path in photos:
        body = path.read_bytes()
        image_format = sniff(body[:32])
        assert image_format == {"jpg": "JPEG", "png": "PNG"}[path.suffix[1:]], path
        assert is_whole(body, image_format), path


def test_hostile_files_never_raise(shared_data: Path) -> None:
    for path in (shared_data / "hostile-images").iterdir():
        body = path.read_bytes()
        for cut in (body, body[:50], body[: len(body) // 2]):
            image_format = sniff(cut[:32])
            if image_format is not None:
                assert is_whole(cut, image_format) in {True, False}
