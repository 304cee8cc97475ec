"""A list's text, unpacked, from any offset on; memory is flat, whatever its size and its packing."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from dlconsole.services.manifests.lines import BOM
from dlconsole.services.manifests.origins import Origin
from dlconsole.services.manifests.places import Packing
from dlconsole.services.manifests.rows import CHUNK_BYTES, Idle, Stopped, Unreadable

_GZIP: Final = 31
"""zlib's `wbits` for one gzip member."""
_ZSTD_SLICE: Final = 256
"""Packed bytes a call: zstd's answer has no limit of its own; to 256 bytes it is 8 MiB at most."""


class _Unpacker(Protocol):
    """One gzip member or zstd frame after the other."""

    def unpack(self, data: bytes) -> bytes:
        """The text so far of these further bytes; b'' may also mean that more are needed."""

    def take_rest(self) -> bytes:
        """Packed bytes that were given and not used yet, to be given again."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is open: the list may end here."""


class Text:
    """The unpacked bytes of a list. `at` is the offset of what `read` gives next."""

    def __init__(self, origin: Origin, packing: Packing) -> None:
        self._origin = origin
        self._packing = packing
        self._unpacker = _unpacker(packing)
        self._packed = b""
        self._fault: Unreadable | None = None
        """Why nothing can be read behind this."""
        self._ahead = b""
        self.at = 0

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return self._origin.is_stream

    def head(self, most: int, idle: Idle, enough: Callable[[bytes], object]) -> tuple[bytes, bool]:
        """The beginning, up to `most` bytes, and whether that is all. Of a stream only as much as is
        `enough`: what comes later may take long.
        """
        if self.at:
            self.seek(0)
        while len(self._ahead) < most:
            try:
                data = self._next(idle)
            except Unreadable:
                if not self._ahead:
                    raise
                break  # said when what comes before it is read
            if not data:
                return self._ahead, True
            self._ahead += data
            if self._origin.is_stream and enough(self._ahead):
                break
        return self._ahead[:most], False

    def read(self, idle: Idle) -> bytes:
        """What comes next; b'' at the end. Raises OSError, Stopped, Unreadable."""
        data, self._ahead = self._ahead, b""
        data = data or self._next(idle)
        while self.at == 0 and data and BOM.startswith(data) and (more := self._next(idle)):
            data += more  # a byte order mark comes whole
        self.at += len(data)
        return data

    def seek(self, at: int, idle: Idle = lambda: True) -> None:
        """Go on from this offset; of packed text, what comes before it is unpacked and dropped."""
        if not self._packing and not self.at <= at <= self.at + len(self._ahead):
            self._ahead, self._fault, self.at = b"", None, at
            self._origin.seek(at)
            return
        if at < self.at:
            self._origin.seek(0)
            self._unpacker, self._packed, self._fault = _unpacker(self._packing), b"", None
            self._ahead, self.at = b"", 0
        while self.at + len(self._ahead) < at:
            self.at += len(self._ahead)
            self._ahead = self._next(idle)
            if not idle():
                raise Stopped
            if not self._ahead:
                raise Unreadable("is shorter than when it was begun, so it is another list now")
        self._ahead, self.at = self._ahead[at - self.at :], at

    def _next(self, idle: Idle) -> bytes:
        if self._fault is not None:
            raise self._fault
        try:
            return self._origin.read(idle) if self._unpacker is None else self._unpacked(self._unpacker, idle)
        except Unreadable as fault:
            self._fault = fault
            raise

    def _unpacked(self, unpacker: _Unpacker, idle: Idle) -> bytes:
        while True:
            packed = self._packed or self._origin.read(idle)
            if not packed:
                if not unpacker.is_whole:
                    raise Unreadable(f"ends in the middle of its {self._packing} data: it is not whole")
                return b""
            data = unpacker.unpack(packed)
            self._packed = unpacker.take_rest()
            if data:
                return data


def _unpacker(packing: Packing) -> _Unpacker | None:
    if packing == "gz":
        return _Gzip()
    return _Zstd() if packing == "zst" else None


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
            text: bytes = self._member.decompress(data, CHUNK_BYTES)
        except zlib.error as error:
            raise Unreadable(f"is damaged, or no gzip file ({error})") from error
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
        import zstandard  # noqa: PLC0415  (only where a list is packed so)

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
            while at < len(data) and size < CHUNK_BYTES:
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
            raise Unreadable(f"is damaged, or no zstd file ({error})") from error
        self._rest = data[at:]
        return b"".join(pieces)

    def take_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest
