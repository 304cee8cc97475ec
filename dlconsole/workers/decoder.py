"""Decodes pictures that strangers made, in a process that may die: `python -m dlconsole.workers.decoder
MEMORY_BYTES MAX_PIXELS TIMEOUT_S`, started by `verify.py`. Of the project it imports nothing.

Standard input is a socket. It says `ready`, or why it is not, then answers each order (a format in four
bytes, a length, that many bytes) with a line: `ok`, `truncated WHY`, `not_image WHY` or `memory`.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import sys
import warnings
from typing import Final

ORDER: Final = struct.Struct(">4sI")
_MORE_S: Final = 2.0
"""How much later than the worker this process itself ends a picture: should the worker be gone."""
_PLUGINS: Final = {
    b"JPEG": ("Jpeg", "Mpo"),
    b"PNG ": ("Png",),
    b"GIF ": ("Gif",),
    b"WEBP": ("WebP",),
    b"AVIF": ("Avif",),
    b"BMP ": ("Bmp",),
    b"TIFF": ("Tiff",),
    b"ICO ": ("Ico", "Cur"),
}
"""What may read each format: a picture never reaches a decoder that its first bytes do not announce."""


def main() -> int:
    """Decode until the socket ends; 1 where it cannot begin, or has no memory left."""
    memory_bytes, max_pixels, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    # It ends with its worker, which decides about signals to the whole group.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        _prepare(max_pixels)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except Exception as error:  # noqa: BLE001  (whatever it is, the worker is told)
        _say(f"{type(error).__name__}: {error}")
        return 1
    _say("ready")
    orders = sys.stdin.buffer
    while len(head := orders.read(ORDER.size)) == ORDER.size:
        image_format, length = ORDER.unpack(head)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _MORE_S)  # SIGALRM ends it, whatever it is doing
        try:
            body = orders.read(length)
            if len(body) < length:
                break
            verdict = _verdict(body, image_format, max_pixels)
        except MemoryError:
            _say("memory")
            return 1  # a heap that was full is no good for the next picture
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(verdict)
    return 0


def _prepare(max_pixels: int) -> None:
    """Import every decoder now, before memory is limited; Pillow's own check of pixels is ours."""
    from importlib import import_module  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415  (an import that fails is an answer)

    for plugins in _PLUGINS.values():
        for plugin in plugins:
            import_module(f"PIL.{plugin}ImagePlugin")
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _verdict(body: bytes, image_format: bytes, max_pixels: int) -> str:
    """What there is to say of a picture, in a line. Raises MemoryError."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    try:
        with Image.open(io.BytesIO(body), formats=[name.upper() for name in _PLUGINS[image_format]]) as image:
            width, height = image.size
            if width * height > max_pixels:
                return f"not_image {width} by {height} pixels, above the limit of {max_pixels}"
            image.load()
    except MemoryError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"not_image it holds more than {max_pixels} pixels"
    except UnidentifiedImageError:
        return "not_image Pillow cannot read its header"
    except Exception as error:  # noqa: BLE001  (decoders raise whatever there is)
        why = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "truncated" if isinstance(error, EOFError) or "truncated" in why.lower() else "not_image"
        return f"{kind} decoding failed: {why}"
    return "ok"


def _say(line: str) -> None:
    os.write(0, line.encode("ascii", "replace").replace(b"\n", b" ") + b"\n")


if __name__ == "__main__":
    sys.exit(main())
