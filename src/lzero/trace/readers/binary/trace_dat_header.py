"""The describing parts of a trace.dat file, versions 6 and 7: formats, options, and where each CPU's pages are.

Facts: trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.cursor import Cursor, go_to
from lzero.trace.readers.binary.formats import (
    TRACING_MAGIC,
    TracingMetadata,
    read_event_formats,
    read_ftrace_formats,
    read_metadata,
    read_page_header,
    read_start,
)

__all__ = ["Clock", "CpuData", "TraceDatHeader", "read_trace_dat_header", "unpacker"]

_OPTION_DONE, _OPTION_BUFFER, _OPTION_CLOCK, _OPTION_OFFSET, _OPTION_TSC2NSEC = 0, 3, 4, 7, 14
_OPTION_HEADER_INFO, _OPTION_FTRACE_EVENTS, _OPTION_EVENT_FORMATS, _OPTION_BUFFER_TEXT = 16, 17, 18, 22
_SECTION_COMPRESSED: Final = 1
_MAX_SECTION: Final = 256 << 20
_MAX_HEADER: Final = 512 << 20
_MAX_CPUS: Final = 1 << 16
_MAX_OPTION_SECTIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class CpuData:
    """Where the pages of one CPU of one ring buffer are in the file."""

    cpu: int
    offset: int
    size: int
    packed: bool
    page_size: int


@dataclass(frozen=True, slots=True)
class Clock:
    """How time stamps become nanoseconds."""

    name: str = "local"
    multiplier: int = 1
    shift: int = 0
    offset: int = 0

    @property
    def converts(self) -> bool:
        """Whether stamps are not nanoseconds but the file says how to make them so."""
        return self.shift > 0 or self.multiplier != 1

    @property
    def counts_ns(self) -> bool:
        """Whether stamps are nanoseconds, if need be after conversion."""
        return self.name not in ("counter", "uptime", "x86-tsc", "tsc") or self.converts


@dataclass(slots=True)
class TraceDatHeader:
    """What is known before the first page."""

    metadata: TracingMetadata
    cpus: list[CpuData] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    compression: str = "none"


def unpacker(name: str, source: str) -> Callable[[bytes, int], bytes]:
    """A function that unpacks bytes to a known size.

    Raises
    ------
    TraceFormatError
        The compression is not known; or, when the function is called, the bytes are damaged.
    """
    if name not in ("zstd", "zlib"):
        raise TraceFormatError(f"{source}: packed with {name!r}, which is not read here (zstd and zlib are)")

    def unpack(data: bytes, size: int) -> bytes:
        import zstandard

        try:
            if name == "zlib":
                found = zlib.decompressobj().decompress(data, size + 1)
            else:
                found = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(size, 1))
        except (zlib.error, zstandard.ZstdError) as error:
            raise TraceFormatError(f"{source}: damaged {name} data: {error}") from error
        if len(found) != size:
            raise TraceFormatError(f"{source}: {name} data unpack to {len(found)} bytes instead of {size}")
        return found

    return unpack


def read_trace_dat_header(file: BinaryIO, source: str) -> TraceDatHeader:
    """Read everything before the pages of a seekable trace.dat.

    Raises
    ------
    TraceFormatError
        The file is none, is cut short in its header, is of an unknown version, or holds no ring-buffer pages.
    """
    start = file.read(64)
    if not start.startswith(TRACING_MAGIC):
        raise TraceFormatError(f"{source}: not a trace.dat file (it begins with {start[:10].hex(' ') or 'nothing'})")
    file.seek(0)
    cursor = Cursor(start, source)
    version = read_start(cursor).version
    if version == "6":
        return _Version6(file, source).read()
    if version == "7":
        return _Version7(file, source).read()
    raise TraceFormatError(f"{source}: trace.dat version {version!r}; versions 6 and 7 are read")


class _Version6:
    """Everything in one row; options are skipped or used, the CPUs' places come last."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self.source = source
        self.data = _HeaderBytes(file)

    def read(self) -> TraceDatHeader:
        cursor = Cursor(self.data.all(), self.source)
        header = TraceDatHeader(read_metadata(cursor))
        cpus = cursor.u32("number of CPUs")
        if cpus > _MAX_CPUS:
            raise TraceFormatError(f"{self.source}: {cpus} CPUs: the file is damaged")
        kind = cursor.take(10, "kind of data")
        if kind == b"options  \0":
            self._options(cursor, header)
            kind = cursor.take(10, "kind of data")
        if kind == b"latency  \0":
            raise TraceFormatError(
                f"{self.source}: it holds a latency trace as text, not events; print it with 'trace-cmd report'"
            )
        if kind != b"flyrecord\0":
            raise TraceFormatError(f"{self.source}: unknown kind of data {kind!r}")
        for cpu in range(cpus):
            offset, size = cursor.u64("CPU's offset"), cursor.u64("CPU's size")
            header.cpus.append(CpuData(cpu, offset, size, False, header.metadata.page_size))
        return header

    def _options(self, cursor: Cursor, header: TraceDatHeader) -> None:
        while (option := cursor.u16("option")) != _OPTION_DONE:
            size = cursor.u32("option's size")
            data = Cursor(cursor.take(size, "option"), self.source, cursor.base + cursor.position - size)
            if option == _OPTION_BUFFER:
                self._instance(data, header)
            else:
                _clock_option(option, data, header)

    def _instance(self, data: Cursor, header: TraceDatHeader) -> None:
        """A further ring buffer: at the offset stand its own kind of data and the CPUs' places."""
        offset = data.u64("buffer's offset")
        if not data.left or not data.string("buffer's name"):
            # The top instance comes again among the options in newer files.
            return
        inner = Cursor(self.data.all(), self.source)
        inner.take(offset, "buffer")
        if inner.take(10, "kind of data") != b"flyrecord\0":
            return
        for cpu in range(_instance_cpus(data, header)):
            place, size = inner.u64("CPU's offset"), inner.u64("CPU's size")
            header.cpus.append(CpuData(cpu, place, size, False, header.metadata.page_size))


def _instance_cpus(data: Cursor, header: TraceDatHeader) -> int:
    """CPUs of an instance in version 6: the option ends with their number where it is newer, else it is the file's."""
    if data.left >= 4:
        return min(data.u32("number of CPUs"), _MAX_CPUS)
    return len(header.cpus)


class _HeaderBytes:
    """The file's first bytes, which hold the header of version 6."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data: bytes | None = None

    def all(self) -> bytes:
        """Up to the limit that no header reaches."""
        if self._data is None:
            self._file.seek(0)
            self._data = self._file.read(_MAX_HEADER if self._small() else 64 << 20)
        return self._data

    def _small(self) -> bool:
        self._file.seek(0, 2)
        size = self._file.tell()
        self._file.seek(0)
        return size <= 64 << 20


class _Version7:
    """Sections anywhere in the file, found through chained option sections."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self.file = file
        self.source = source
        self.compression = "none"

    def read(self) -> TraceDatHeader:
        cursor = Cursor(self.file.read(4096), self.source)
        header = TraceDatHeader(read_start(cursor))
        self.compression = header.compression = cursor.string("compression") or "none"
        cursor.string("compression's version")
        options = list(self._options(cursor.u64("options' offset")))
        for option, data in options:
            self._describe(option, data, header)
        buffers = [data for option, data in options if option == _OPTION_BUFFER]
        if not buffers and any(option == _OPTION_BUFFER_TEXT for option, _ in options):
            raise TraceFormatError(
                f"{self.source}: it holds a latency trace as text, not events; print it with 'trace-cmd report'"
            )
        for data in buffers:
            self._buffer(data, header)
        return header

    def _options(self, offset: int) -> Iterator[tuple[int, Cursor]]:
        for _ in range(_MAX_OPTION_SECTIONS):
            if not offset:
                return
            cursor = self._section(offset, "options")
            offset = 0
            while cursor.left >= 6:
                option, size = cursor.u16("option"), cursor.u32("option's size")
                data = Cursor(cursor.take(size, "option"), self.source, cursor.base + cursor.position - size)
                if option == _OPTION_DONE:
                    offset = data.u64("next options' offset") if data.left >= 8 else 0
                    break
                yield option, data
        raise TraceFormatError(f"{self.source}: its option sections form a ring: the file is damaged")

    def _section(self, offset: int, what: str) -> Cursor:
        go_to(self.file, offset, self.source, what)
        head = Cursor(self.file.read(16), self.source, offset)
        head.u16("section id")
        flags = head.u16("section flags")
        head.u32("section description")
        size = head.u64("section size")
        if size > _MAX_SECTION:
            raise TraceFormatError(f"{self.source}: {what} section of {size} bytes: the file is damaged")
        body = Cursor(self.file.read(size), self.source, offset + 16)
        if body.left < size:
            raise TraceFormatError(f"{self.source}: offset {offset:#x}: truncated: the {what} section is cut short")
        if not flags & _SECTION_COMPRESSED:
            return body
        packed, unpacked = body.u32("packed size"), body.u32("unpacked size")
        if unpacked > _MAX_SECTION:
            raise TraceFormatError(f"{self.source}: {what} section unpacks to {unpacked} bytes: the file is damaged")
        return Cursor(unpacker(self.compression, self.source)(body.take(packed, what), unpacked), self.source)

    def _describe(self, option: int, data: Cursor, header: TraceDatHeader) -> None:
        if option == _OPTION_HEADER_INFO:
            header.metadata.page_fields = read_page_header(self._section(data.u64("offset"), "header"))
        elif option in (_OPTION_FTRACE_EVENTS, _OPTION_EVENT_FORMATS):
            section = self._section(data.u64("offset"), "event formats")
            read = read_ftrace_formats if option == _OPTION_FTRACE_EVENTS else read_event_formats
            header.metadata.events.update({event.number: event for event in read(section)})
        else:
            _clock_option(option, data, header)

    def _buffer(self, data: Cursor, header: TraceDatHeader) -> None:
        section = data.u64("buffer's offset")
        data.string("buffer's name")
        clock = data.string("buffer's clock")
        page_size = data.u32("page size")
        cpus = data.u32("number of CPUs")
        if cpus > _MAX_CPUS:
            raise TraceFormatError(f"{self.source}: {cpus} CPUs: the file is damaged")
        if clock:
            header.clock = Clock(clock, header.clock.multiplier, header.clock.shift, header.clock.offset)
        go_to(self.file, section, self.source, "buffer section")
        head = self.file.read(16)
        if len(head) < 16:
            raise TraceFormatError(f"{self.source}: offset {section:#x}: truncated: the buffer section is cut short")
        packed = bool(struct.unpack_from("<H", head, 2)[0] & _SECTION_COMPRESSED)
        for _ in range(cpus):
            cpu, offset, size = data.u32("CPU"), data.u64("CPU's offset"), data.u64("CPU's size")
            header.cpus.append(CpuData(cpu, offset, size, packed, page_size))


def _clock_option(option: int, data: Cursor, header: TraceDatHeader) -> None:
    clock = header.clock
    if option == _OPTION_CLOCK:
        text = bytes(data.data).decode("ascii", "replace")
        # The kernel prints all clocks and brackets the one in use.
        name = text[text.index("[") + 1 :].split("]")[0] if "[" in text else text.strip("\0 \n") or clock.name
        header.clock = Clock(name, clock.multiplier, clock.shift, clock.offset)
    elif option == _OPTION_TSC2NSEC and data.left >= 16:
        multiplier, shift, offset = data.u32("multiplier"), data.u32("shift"), data.u64("offset")
        header.clock = Clock(clock.name, multiplier, min(shift, 63), offset)
