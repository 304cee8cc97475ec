"""A filesystem that never answers, as a dead network mount: FUSE, whose server reads nothing."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_MNT_DETACH = 2
_INIT = 26
_IN_HEADER, _OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
_libc = ctypes.CDLL(None, use_errno=True)


class HungDisk:
    """Mounted over `folder`: whoever asks for anything there by its path waits until this ends, or is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fsencode(folder)

    def __enter__(self) -> Self:
        try:
            self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"no FUSE here: {error.strerror}")
        options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
        if _libc.mount(b"hung", self._folder, b"fuse", 0, options.encode()):
            os.close(self._fd)
            pytest.skip(f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}")
        self._answer_init()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _libc.umount2(self._folder, _MNT_DETACH)
        os.close(self._fd)  # all who wait are told that it is gone

    def take_request(self) -> None:
        """Take what is asked first, and never answer: who waits for that cannot even be killed."""
        os.read(self._fd, 1 << 20)

    def _answer_init(self) -> None:
        request = os.read(self._fd, 1 << 20)
        _length, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
        assert opcode == _INIT
        major, minor, read_ahead = struct.unpack_from("<III", request, _IN_HEADER.size)
        body = struct.pack("<IIIIHHII", major, min(minor, 31), read_ahead, 0, 16, 12, 1 << 16, 1) + bytes(32)
        os.write(self._fd, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body)
