"""Read a kernel module's bytes, whatever it is packed with.

Distributions ship modules as ``.ko``, ``.ko.xz``, ``.ko.zst`` or ``.ko.gz``; the kind is taken from the first bytes,
never from the file's name.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from lzero.errors import ImageError

__all__ = ["MAX_MODULE_BYTES", "read_module_bytes"]

MAX_MODULE_BYTES = 512 * 1024 * 1024
"""Unpacked size above which a file is refused, so that a crafted archive cannot fill the memory."""


def _unxz(data: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor()
    unpacked = decompressor.decompress(data, MAX_MODULE_BYTES + 1)
    if not decompressor.eof and len(unpacked) <= MAX_MODULE_BYTES:
        raise EOFError("the xz stream ends early")
    return unpacked


def _ungzip(data: bytes) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    unpacked = decompressor.decompress(data, MAX_MODULE_BYTES + 1)
    if not decompressor.eof and len(unpacked) <= MAX_MODULE_BYTES:
        raise EOFError("the gzip stream ends early")
    return unpacked


def _unzstd(data: bytes) -> bytes:
    import zstandard

    reader = zstandard.ZstdDecompressor().decompressobj()
    chunks: list[bytes] = []
    total = 0
    step = 1 << 20
    for start in range(0, len(data), step):
        chunk = reader.decompress(data[start : start + step])
        total += len(chunk)
        chunks.append(chunk)
        if total > MAX_MODULE_BYTES or reader.eof:
            break
    if not reader.eof and total <= MAX_MODULE_BYTES:
        raise EOFError("the zstd stream ends early")
    return b"".join(chunks)


_UNPACKERS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\xfd7zXZ\x00", "xz", _unxz),
    (b"\x1f\x8b", "gzip", _ungzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
)

_UNSUPPORTED: tuple[tuple[bytes, str], ...] = (
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4 (legacy)"),
    (b"\x89LZO\x00", "lzop"),
    (b"\x5d\x00\x00", "lzma (alone)"),
    (b"PK\x03\x04", "zip"),
    (b"!<arch>\n", "ar (a .deb or a .a)"),
)


def read_module_bytes(path: Path) -> bytes:
    """Return the ELF bytes of the module at ``path``, unpacked.

    Raises
    ------
    ImageError
        The file cannot be read, is cut short, is packed in a way that is not supported, or unpacks to more than
        :data:`MAX_MODULE_BYTES`. Whether the result is an ELF file is not looked at here.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; a kernel module (.ko, .ko.xz, .ko.zst, .ko.gz) was expected")
    for magic, name, unpack in _UNPACKERS:
        if data.startswith(magic):
            return _unpack(path, data, name, unpack)
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            raise ImageError(f"{path}: packed with {name}, which is not read here; unpack it to a .ko first")
    return data


def _unpack(path: Path, data: bytes, name: str, unpack: Callable[[bytes], bytes]) -> bytes:
    import zstandard

    try:
        unpacked = unpack(data)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError, MemoryError) as error:
        raise ImageError(
            f"{path}: the {name} data is damaged or cut short ({error}); fetch the module again"
        ) from error
    if len(unpacked) > MAX_MODULE_BYTES:
        raise ImageError(f"{path}: unpacks to more than {MAX_MODULE_BYTES >> 20} MiB, which no kernel module is")
    return unpacked
