"""Unpacking a bzImage's payload on the host: the ELF kernel, by whichever compressor built it.

The kernel's build appends the unpacked size (32 bits) to every format that does not carry it itself; the readers stop
at the end of their stream.
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import cache

from lzero.errors import ImageError

__all__ = ["unpack"]

SIZE_TRAILER = 4
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_LONG_LENGTH = 15
LZ4_MINIMUM_MATCH = 4
HOST_LZ4 = "liblz4.so.1" if sys.platform == "linux" else "liblz4.1.dylib"
LZ4_LARGEST_BLOCK = 8 << 20
LARGEST_KERNEL = 1 << 30


def unpack(payload: bytes) -> bytes | None:
    """The unpacked payload; None if its format is not one of those that can be unpacked here.

    Raises
    ------
    ImageError
        If the format is known and the data are damaged.
    """
    for magic, reader in _READERS.items():
        if payload.startswith(magic):
            try:
                return reader(payload)
            except (OSError, EOFError, ValueError, IndexError, zlib.error, lzma.LZMAError, struct.error) as error:
                raise ImageError(f"the kernel's compressed payload is damaged or truncated ({error})") from error
    return None


def _gzip(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload, LARGEST_KERNEL)


def _bzip2(payload: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload, LARGEST_KERNEL)


def _xz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, LARGEST_KERNEL)


def _zstd(payload: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor(max_window_size=1 << 28).decompressobj().decompress(payload)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _lz4(payload: bytes) -> bytes:
    """LZ4's legacy frame: blocks of at most 8 MiB, each behind its compressed size."""
    unpack_block = _host_lz4() or _lz4_block
    end = len(payload) - SIZE_TRAILER
    position = len(LZ4_LEGACY_MAGIC)
    blocks = []
    while position < end:
        size = struct.unpack_from("<I", payload, position)[0]
        position += 4
        if position + size > end:
            raise ValueError(f"an LZ4 block of {size:#x} bytes runs over the end")
        blocks.append(unpack_block(payload[position : position + size]))
        position += size
    return b"".join(blocks)


@cache
def _host_lz4() -> Callable[[bytes], bytes] | None:
    """The host's liblz4, which unpacks a kernel in a tenth of the time; None where there is none."""
    try:
        function = ctypes.CDLL(HOST_LZ4).LZ4_decompress_safe
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    function.restype = ctypes.c_int
    target = ctypes.create_string_buffer(LZ4_LARGEST_BLOCK)

    def unpack_block(block: bytes) -> bytes:
        size = function(block, target, len(block), LZ4_LARGEST_BLOCK)
        if size < 0:
            raise ValueError("liblz4 finds a damaged block")
        return ctypes.string_at(target, size)

    return unpack_block


def _lz4_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    """A length's extension bytes: each adds to it, 255 says that another one follows."""
    while True:
        more = block[position]
        position += 1
        length += more
        if more != 255:
            return length, position


def _lz4_block(block: bytes) -> bytes:
    """One LZ4 block: sequences of literals and a copy from what was unpacked before."""
    out = bytearray()
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        length = token >> 4
        if length == LZ4_LONG_LENGTH:
            length, position = _lz4_length(block, position, length)
        out += block[position : position + length]
        position += length
        if position >= end:
            break
        offset = block[position] | block[position + 1] << 8
        position += 2
        length = token & 0xF
        if length == LZ4_LONG_LENGTH:
            length, position = _lz4_length(block, position, length)
        length += LZ4_MINIMUM_MATCH
        start = len(out) - offset
        if start < 0 or not offset:
            raise ValueError(f"an LZ4 copy reaches {offset} bytes back, behind the start")
        if offset >= length:
            out += out[start : start + length]
        else:
            # The copy overlaps itself: the last bytes repeat.
            out += (out[start:] * (length // offset + 1))[:length]
    return bytes(out)


_READERS: Mapping[bytes, Callable[[bytes], bytes]] = {
    LZ4_LEGACY_MAGIC: _lz4,
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\xfd7zXZ\x00": _xz,
    b"\x5d\x00\x00": _xz,
    b"BZh": _bzip2,
}
