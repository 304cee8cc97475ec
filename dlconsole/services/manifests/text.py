"""A list's text, unpacked, from any offset on; memory is flat, whatever its size and its packing."""

from __future__ import annotations

from collections.abc import Callable

from dlconsole.services.manifests.lines import BOM
from dlconsole.services.manifests.origins import Origin
from dlconsole.services.manifests.places import Packing
from dlconsole.services.manifests.rows import Idle, Stopped, Unreadable
from dlconsole.services.unpack import Damaged, Unpacker, unpacker


class Text:
    """The unpacked bytes of a list. `at` is the offset of what `read` gives next."""

    def __init__(self, origin: Origin, packing: Packing) -> None:
        self._origin = origin
        self._packing = packing
        self._unpacker = _new_unpacker(packing)
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
            self._unpacker, self._packed, self._fault = _new_unpacker(self._packing), b"", None
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

    def _unpacked(self, unpacker: Unpacker, idle: Idle) -> bytes:
        while True:
            packed = self._packed or self._origin.read(idle)
            if not packed:
                if not unpacker.is_whole:
                    raise Unreadable(f"ends in the middle of its {self._packing} data: it is not whole")
                return b""
            try:
                data = unpacker.unpack(packed)
            except Damaged as error:
                kind = "gzip" if self._packing == "gz" else "zstd"
                raise Unreadable(f"is damaged, or no {kind} file ({error})") from error
            self._packed = unpacker.take_rest()
            if data:
                return data


def _new_unpacker(packing: Packing) -> Unpacker | None:
    return unpacker(packing) if packing else None
