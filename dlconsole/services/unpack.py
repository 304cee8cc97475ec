"""gzip and zstd, unpacked piece by piece: no answer is much larger than a megabyte, whatever a bomb holds.

For lists and for ledgers. Members and frames follow each other as `gzip -d` and `zstd -d` read them, and one
that is cut off is noticed, which the libraries' own readers do not always do.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Literal, Protocol

Packed = Literal["gz", "zst"]

_MOST_BYTES: Final = 1 << 20
"""About the most text of one call."""
_GZIP: Final = 31
"""zlib's `wbits` for one gzip member."""
_ZSTD_SLICE: Final = 256
"""Packed bytes a call: zstd's answer has no limit of its own; to 256 bytes it is 8 MiB at most."""


class Damaged(Exception):
    """What is packed cannot be read: the library's words."""


class Unpacker(Protocol):
    """One gzip member or zstd frame after the other."""

    def unpack(self, data: bytes) -> bytes:
        """The text so far of these further bytes; b'' may also mean that more are needed. Raises Damaged."""

    def take_rest(self) -> bytes:
        """Packed bytes that were given and not used yet, to be given again."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is open: it may end here."""


def unpacker(packing: Packed) -> Unpacker:
    """For one file or stream."""
    return _Gzip() if packing == "gz" else _Zstd()


class _Gzip:
    """As `gzip -d` reads it: members one after the other, and zeros behind them."""

    def __init__(self) -> None:
        self._member: Any = None
        self._rest = b""
        self._any = False

    @property
    def is_whole(self) -> bool:
        return self._member is None

    def unpack(self, data: bytes) -> bytes:
        if self._member is None:
            data = data.lstrip(b"\0") if self._any else data
            if not data:
                self._rest = b""
                return b""
            self._member, self._any = zlib.decompressobj(_GZIP), True
        try:
            text: bytes = self._member.decompress(data, _MOST_BYTES)
        except zlib.error as error:
            raise Damaged(str(error)) from error
        self._rest = self._member.unconsumed_tail
        if self._member.eof:
            self._rest, self._member = self._member.unused_data, None
        return text

    def take_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest


class _Zstd:
    """Frames one after the other; a window of more than 128 MiB is refused, as by `zstd -d`."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415  (only where something is packed so)

        self._error = zstandard.ZstdError
        self._context = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._rest = b""

    @property
    def is_whole(self) -> bool:
        return self._frame is None

    def unpack(self, data: bytes) -> bytes:
        pieces, size, at = [], 0, 0
        try:
            while at < len(data) and size < _MOST_BYTES:
                if self._frame is None:
                    self._frame = self._context.decompressobj()
                piece = self._frame.decompress(data[at : at + _ZSTD_SLICE])
                at = min(at + _ZSTD_SLICE, len(data))
                if self._frame.eof:
                    at -= len(self._frame.unused_data)
                    self._frame = None
                pieces.append(piece)
                size += len(piece)
        except self._error as error:
            raise Damaged(str(error)) from error
        self._rest = data[at:]
        return b"".join(pieces)

    def take_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest
