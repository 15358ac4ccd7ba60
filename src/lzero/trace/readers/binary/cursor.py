"""Read little-endian numbers and strings from untrusted bytes."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from lzero.errors import TraceFormatError

__all__ = ["Cursor", "go_to", "seekable"]

_COPY_BYTES = 1 << 20


class Cursor:
    """A position in a block of bytes; reading past its end is a :class:`TraceFormatError` that names the place."""

    def __init__(self, data: bytes | memoryview, source: str, base: int = 0) -> None:
        self.data = memoryview(data)
        self.source = source
        self.base = base
        """Offset of the block in the file, for messages."""
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes after the position."""
        return len(self.data) - self.position

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes."""
        if size < 0 or size > self.left:
            where = self.base + self.position
            raise TraceFormatError(
                f"{self.source}: offset {where:#x}: truncated: {what} needs {size} bytes, {self.left} are left"
            )
        start = self.position
        self.position += size
        return bytes(self.data[start : self.position])

    def u8(self, what: str) -> int:
        """An unsigned byte."""
        return self.take(1, what)[0]

    def u16(self, what: str) -> int:
        """An unsigned 16-bit number."""
        return cast(int, struct.unpack("<H", self.take(2, what))[0])

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return cast(int, struct.unpack("<I", self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return cast(int, struct.unpack("<Q", self.take(8, what))[0])

    def string(self, what: str, limit: int = 4096) -> str:
        """A string that a zero byte ends."""
        end = bytes(self.data[self.position : self.position + limit]).find(b"\0")
        if end < 0:
            where = self.base + self.position
            raise TraceFormatError(f"{self.source}: offset {where:#x}: {what} does not end within {limit} bytes")
        text = self.take(end + 1, what)[:-1]
        return text.decode("ascii", "backslashreplace")


def go_to(stream: BinaryIO, offset: int, source: str, what: str) -> None:
    """Seek to an offset that the file itself gave."""
    if offset >= 1 << 62:
        raise TraceFormatError(f"{source}: {what} at offset {offset:#x}: the file is damaged")
    stream.seek(offset)


@contextmanager
def seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream itself if it can seek, or a temporary copy on disk of what is left of it."""
    if _can_seek(stream):
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
        copy.seek(0)
        yield cast(BinaryIO, copy)


def _can_seek(stream: BinaryIO) -> bool:
    try:
        return stream.seekable()
    except (AttributeError, io.UnsupportedOperation):
        return False
