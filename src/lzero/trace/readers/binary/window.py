"""A window of bytes that moves over a stream, always aligned for reading words."""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
from collections.abc import Callable
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_WINDOW", "StreamSource", "Window"]

MIN_WINDOW: Final = 1 << 17
"""Bytes that a window holds at least: more than the largest record."""

_ENOUGH: Final = 1 << 20
_PATIENCE_S: Final = 0.001
"""How long a slow stream is given to bring more before what has come is looked at."""


class StreamSource:
    """Bytes of a stream, as many as are there without waiting for more, but at least one unless the stream has
    ended.
    """

    def __init__(self, stream: BinaryIO, limit: int | None = None) -> None:
        self._stream = stream
        self._read = getattr(stream, "readinto1", None) or getattr(stream, "readinto", None)
        self.left = limit
        """Bytes that may still be read; None: to the end."""
        self._in_memory = isinstance(stream, io.BytesIO)
        try:
            self._descriptor: int | None = stream.fileno()
        except (AttributeError, OSError, io.UnsupportedOperation):
            self._descriptor = None
        if self._descriptor is not None:
            _widen(self._descriptor)

    def __call__(self, room: memoryview) -> int:
        """Read into ``room``; how many bytes were read, 0 at the end."""
        total = 0
        while True:
            part = room[total:] if self.left is None else room[total : total + self.left]
            if not part:
                return total
            got = self._once(part)
            total += got
            if self.left is not None:
                self.left -= got
            if got == 0 or not self._ready(0 if total >= _ENOUGH else _PATIENCE_S):
                return total

    def _once(self, room: memoryview) -> int:
        if self._read is not None:
            return int(self._read(room) or 0)
        data = self._stream.read(len(room))
        room[: len(data)] = data
        return len(data)

    def _ready(self, patience: float) -> bool:
        """Whether more is there, or comes in a moment. Of a stream that is no file of the system nobody can say."""
        if self._descriptor is None:
            return self._in_memory
        try:
            return bool(select.select([self._descriptor], [], [], patience)[0])
        except (OSError, ValueError):
            return False


def _widen(descriptor: int) -> None:
    """Let a pipe hold more, so that writer and reader take turns less often."""
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _ENOUGH)
    except OSError:
        # Not allowed beyond a user's limit; it is slower then, nothing else.
        return


class Window:
    """Bytes that were read and not yet used."""

    def __init__(self, capacity: int, offset: int, place: str = "offset") -> None:
        self._data = np.zeros(-(-max(capacity, MIN_WINDOW) // 8) * 8, np.uint8)
        self._start = 0
        self._end = 0
        self._place = place
        self.offset = offset
        """Offset in the stream of the first byte held."""

    @property
    def used(self) -> int:
        """Number of bytes held."""
        return self._end - self._start

    def where(self, distance: int = 0) -> str:
        """The place ``distance`` bytes after the first byte held, for messages."""
        return f"{self._place} {self.offset + distance:#x}"

    def fill(self, read: Callable[[memoryview], int]) -> bool:
        """Read more; False when nothing came."""
        self._align()
        got = read(self._data.data[self._end :])
        self._end += got
        return got > 0

    def append(self, data: bytes) -> None:
        """Add bytes, growing when there is no room."""
        self._align()
        if self._end + len(data) > self._data.size:
            larger = np.zeros(-(-(self._end + len(data)) * 2 // 8) * 8, np.uint8)
            larger[: self._end] = self._data[: self._end]
            self._data = larger
        self._data[self._end : self._end + len(data)] = np.frombuffer(data, np.uint8)
        self._end += len(data)

    def held(self) -> NDArray[np.uint8]:
        """The whole words held, from an aligned start on."""
        self._align()
        return self._data[: self.used // 8 * 8]

    def peek(self, size: int) -> bytes:
        """Up to ``size`` bytes from the start, which stay."""
        return self._data[self._start : min(self._start + size, self._end)].tobytes()

    def consume(self, size: int) -> None:
        """Drop bytes from the start."""
        self._start += size
        self.offset += size

    def _align(self) -> None:
        """Move what is held to the front, where words are aligned and the most room is left behind it."""
        if self._start:
            left = self._data[self._start : self._end].copy()
            self._data[: left.size] = left
            self._end = left.size
            self._start = 0
