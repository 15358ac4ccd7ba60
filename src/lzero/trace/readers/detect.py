"""What an input is, from its content: compression first, then the kind of recording."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import select
import sys
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Final, cast

from lzero.errors import TraceFormatError, UsageError

__all__ = ["Input", "Kind", "open_input"]

_HEAD: Final = 65536
_STOP_WITHIN_S: Final = 0.1


class Kind(Enum):
    """The kinds of recordings that are told apart."""

    STORE = "lzero trace"
    PERF_DATA = "perf.data"
    TRACE_DAT = "trace.dat"
    TEXT = "trace text"
    BPFTRACE = "bpftrace map"
    PERF_KVM_STAT = "perf kvm stat report"
    BCC = "bcc kvmexit"
    KVM_STAT = "kvm_stat"
    CSV = "CSV"
    EMPTY = "empty"


COUNTS_ONLY: Final = frozenset({Kind.BPFTRACE, Kind.PERF_KVM_STAT, Kind.BCC, Kind.KVM_STAT})
"""Kinds that hold numbers of exits, not the exits."""

_MAGIC: Final = (
    (b"PERFILE2", Kind.PERF_DATA),
    (b"2ELIFREP", Kind.PERF_DATA),
    (b"\x17\x08\x44tracing", Kind.TRACE_DAT),
    (b"PAR1", Kind.STORE),
)
_EVENT: Final = re.compile(rb"\d+\.\d{3,9}:\s+(?:\d+\s+)?(?:[A-Za-z_]\w*:)?[A-Za-z_]\w*:")
_TRACER: Final = re.compile(rb"^(?:# tracer: |cpus=\d+\s*$|version = \d)", re.MULTILINE)
_BPFTRACE: Final = re.compile(rb"^@\w*\[[^\]\n]+\]: \d+", re.MULTILINE)
_PERF_KVM: Final = re.compile(rb"^\s*(?:VM-EXIT|Event name)\s+Samples\s+(?:Samples%|Sample%)", re.MULTILINE)
_BCC: Final = re.compile(rb"^\s*(?:PID\s+)?(?:TID\s+|VCPU(?:ID)?\s+)?(?:PID\s+)?KVM_EXIT_REASON\s+COUNT", re.MULTILINE)
_KVM_STAT: Final = re.compile(rb"^\s*kvm_exit\(\w+\)\s+\d+", re.MULTILINE)
_CSV: Final = re.compile(rb"\A(?:\xef\xbb\xbf)?[\"\w -]+([,;\t])[\"\w ,;\t%-]*\r?\n")


@dataclass(slots=True)
class Input:
    """An opened input: its name, kind, and the unpacked bytes from the first on. ``live`` means a pipe that may still
    grow.
    """

    name: str
    kind: Kind
    stream: BinaryIO
    raw: BinaryIO
    live: bool = False

    def close(self) -> None:
        """Close the input; standard input itself stays open, but nothing waits for it any more."""
        pipe = getattr(self.raw, "raw", None)
        if isinstance(pipe, _LivePipe):
            pipe.stopped = True
        if self.stream is not self.raw:
            self.stream.close()
        self.raw.close()


def open_input(name: str) -> Input:
    """Open a recording by name, ``-`` for standard input, unpacked if it is gzip, xz or zstd.

    Raises
    ------
    UsageError
        There is no such file, or it cannot be opened.
    TraceFormatError
        Its content is no recording that is known.
    """
    live = name == "-"
    if not live and Path(name).is_dir():
        raise UsageError(f"{name}: is a directory without trace parts")
    try:
        raw: BinaryIO = (
            cast("BinaryIO", io.BufferedReader(_LivePipe(sys.stdin.fileno()), 1 << 20))
            if live
            else open(name, "rb", buffering=1 << 20)
        )
    except OSError as error:
        raise UsageError(f"cannot open {name}: {error.strerror}") from error
    stream = _unpacked(raw)
    peeked = _Peeked(stream)
    head = peeked.head(_HEAD, live=live)
    kind = detect(head)
    if kind is Kind.EMPTY and peeked.damage is not None:
        peeked.close()
        raw.close()
        raise TraceFormatError(f"{name}: {peeked.damage}")
    if kind is None:
        peeked.close()
        raw.close()
        raise TraceFormatError(
            f"{name}: not a recording lzero knows; it reads perf.data, trace.dat, the text of perf script, trace-cmd "
            "report and ftrace, bpftrace maps, perf kvm stat report, bcc kvmexit, kvm_stat, CSV and its own Parquet, "
            "each also as gzip, xz or zstd"
        )
    whole = kind in (Kind.PERF_DATA, Kind.TRACE_DAT) and stream is raw and raw.seekable()
    if whole:
        # The wrapper closes what it wraps when it is collected, and the reader goes on with the bare file.
        peeked.let_go()
        raw.seek(0)
    return Input(name, kind, raw if whole else cast("BinaryIO", io.BufferedReader(peeked, 1 << 20)), raw, live)


def detect(head: bytes) -> Kind | None:
    """The kind of recording whose first bytes are `head`, ``None`` if none is recognised."""
    if not head.strip():
        return Kind.EMPTY
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    for pattern, kind in (
        (_EVENT, Kind.TEXT),
        (_TRACER, Kind.TEXT),
        (_PERF_KVM, Kind.PERF_KVM_STAT),
        (_BCC, Kind.BCC),
        (_KVM_STAT, Kind.KVM_STAT),
        (_BPFTRACE, Kind.BPFTRACE),
    ):
        if pattern.search(head):
            return kind
    if b"\0" not in head and _CSV.match(head):
        return Kind.CSV
    return None


def _unpacked(raw: BinaryIO) -> BinaryIO:
    magic = _peek(raw)
    if magic.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast("BinaryIO", lzma.LZMAFile(raw))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw


def _peek(raw: BinaryIO) -> bytes:
    if isinstance(raw, io.BufferedReader):
        return raw.peek(16)[:16]
    return b""


class _LivePipe(io.RawIOBase):
    """Standard input, read so that a thread that waits for it can be told to stop: a blocked read would outlast the
    program.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.stopped = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer)).cast("B")
        while not self.stopped:
            if select.select([self._descriptor], [], [], _STOP_WITHIN_S)[0]:
                piece = os.read(self._descriptor, len(view))
                view[: len(piece)] = piece
                return len(piece)
        return 0


class _Peeked(io.RawIOBase):
    """A stream whose first bytes were looked at and are read again."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._head = b""
        self.damage: OSError | None = None

    def head(self, size: int, *, live: bool) -> bytes:
        """Up to `size` first bytes; of a live pipe, what comes until there are a few lines."""
        while len(self._head) < size:
            try:
                piece = self._read(size - len(self._head))
            except OSError as error:
                self.damage = error  # what came before is kept; reading on meets the damage again and locates it
                break
            self._head += piece
            if not piece or live and (detect(self._head) is not None and b"\n" in self._head):
                break
        return self._head

    def _read(self, size: int) -> bytes:
        read = getattr(self._stream, "read1", self._stream.read)
        try:
            return cast("bytes", read(size))
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            raise OSError(f"damaged or cut compressed data: {error}") from error
        except Exception as error:
            # zstandard's error type is known only after importing it; everything it raises on bad data is a ZstdError.
            if type(error).__name__ == "ZstdError":
                raise OSError(f"damaged or cut compressed data: {error}") from error
            raise

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer)).cast("B")
        piece = self._head[: len(view)] if self._head else self._read(len(view))
        self._head = self._head[len(piece) :]
        view[: len(piece)] = piece
        return len(piece)

    def fileno(self) -> int:
        return self._stream.fileno()

    def let_go(self) -> None:
        """Leave the stream to others."""
        self._stream = io.BytesIO()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
