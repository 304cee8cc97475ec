"""The pictures of the simulated web: made with Pillow once at start, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

_SIDES_PX: Final = (80, 160, 224, 256, 288, 320, 352, 384, 416, 448, 512, 608)
"""Longer sides. With the formats below: bodies from about 2 KB to 150 KB, half below about 30 KB."""

_FORMATS: Final = ("JPEG", "JPEG", "WEBP", "JPEG", "JPEG", "PNG")
"""In turn: two thirds JPEG, as on the real web."""

_COUNT: Final = 36


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: Pillow's name of its format, its media type, and the encoded bytes."""

    format: str
    media_type: str
    body: bytes


def make_pictures(seed: int, *, count: int = _COUNT) -> tuple[Picture, ...]:
    """The first `count` of a few dozen pictures, deterministic for one version of Pillow and numpy."""
    random = np.random.default_rng(seed % 2**63)
    sides = len(_SIDES_PX)
    return tuple(
        # The shift by a place a round keeps a format from always getting the same sides.
        _make(random, _SIDES_PX[(index + index // sides) % sides], _FORMATS[index % len(_FORMATS)])
        for index in range(count)
    )


def _make(random: np.random.Generator, side_px: int, kind: str) -> Picture:
    sink = BytesIO()
    if kind == "PNG":  # lossless: half the side keeps it among the sizes of the others
        _paint(random, side_px // 2).save(sink, kind, compress_level=1)
    elif kind == "WEBP":
        _paint(random, side_px).save(sink, kind, quality=90, method=0)
    else:
        _paint(random, side_px).save(sink, kind, quality=94)
    return Picture(kind, f"image/{kind.lower()}", sink.getvalue())


def _paint(random: np.random.Generator, side_px: int) -> Image.Image:
    """Soft blobs of colour under a slope of light and grain: it compresses like a photograph."""
    width, height = side_px, int(side_px * random.uniform(0.6, 1.0))
    blobs = Image.fromarray(random.integers(0, 192, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))
    slope = np.linspace(0, random.uniform(10, 40), width).astype(np.uint8)[None, :, None]
    grain = random.integers(0, int(random.uniform(6, 23)), (height, width, 1), dtype=np.uint8)
    # The largest sum is 191 + 40 + 22: it cannot wrap around.
    return Image.fromarray(soft + slope + grain)
