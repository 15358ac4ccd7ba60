"""The describing parts of a perf.data file: attributes of the events, feature sections, event formats.

Facts: ``tools/perf/Documentation/perf.data-file-format.txt`` and ``include/uapi/linux/perf_event.h`` of the Linux
source.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.cursor import Cursor, go_to
from lzero.trace.readers.binary.formats import EventFormat, read_metadata

__all__ = ["Attribute", "PerfHeader", "SampleLayout", "parse_attribute", "read_file_header"]

PERF_MAGIC: Final = b"PERFILE2"
PERF_MAGIC_SWAPPED: Final = b"2ELIFREP"
FILE_HEADER_BYTES: Final = 104
PIPE_HEADER_BYTES: Final = 16
TYPE_TRACEPOINT: Final = 2

_FEATURE_TRACING_DATA: Final = 1
_FEATURE_BITS: Final = 256
_MAX_ATTRIBUTES: Final = 100_000
_MAX_IDS: Final = 10_000_000
_MAX_METADATA: Final = 256 << 20
_ATTRIBUTE_VER0: Final = 64

SAMPLE_IP, SAMPLE_TID, SAMPLE_TIME, SAMPLE_ADDR, SAMPLE_READ, SAMPLE_CALLCHAIN = (1 << bit for bit in range(6))
SAMPLE_ID, SAMPLE_CPU, SAMPLE_PERIOD, SAMPLE_STREAM_ID, SAMPLE_RAW = (1 << bit for bit in range(6, 11))
SAMPLE_IDENTIFIER: Final = 1 << 16

READ_ENABLED, READ_RUNNING, READ_ID, READ_GROUP, READ_LOST = (1 << bit for bit in range(5))

_FIXED_ORDER: Final = (
    SAMPLE_IDENTIFIER,
    SAMPLE_IP,
    SAMPLE_TID,
    SAMPLE_TIME,
    SAMPLE_ADDR,
    SAMPLE_ID,
    SAMPLE_STREAM_ID,
    SAMPLE_CPU,
    SAMPLE_PERIOD,
)
"""The 8-byte parts of a sample, in the order in which they stand."""


@dataclass(frozen=True, slots=True)
class SampleLayout:
    """Where the parts of a sample stand, in 8-byte words from the record's start; None for parts it does not have."""

    sample_type: int
    read_format: int
    id: int | None
    tid: int | None
    time: int | None
    cpu: int | None
    variable: int
    """Where the parts of variable size begin."""

    @classmethod
    def of(cls, sample_type: int, read_format: int) -> SampleLayout:
        """The layout that a ``sample_type`` makes."""
        at: dict[int, int] = {}
        word = 1
        for part in _FIXED_ORDER:
            if sample_type & part:
                at[part] = word
                word += 1
        return cls(
            sample_type=sample_type,
            read_format=read_format,
            id=at.get(SAMPLE_IDENTIFIER, at.get(SAMPLE_ID)),
            tid=at.get(SAMPLE_TID),
            time=at.get(SAMPLE_TIME),
            cpu=at.get(SAMPLE_CPU),
            variable=word,
        )

    @property
    def has_raw(self) -> bool:
        """Whether samples carry the tracepoint's bytes."""
        return bool(self.sample_type & SAMPLE_RAW)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One event that was recorded, and the ids under which its samples come."""

    type: int
    config: int
    layout: SampleLayout
    ids: tuple[int, ...]


@dataclass(slots=True)
class PerfHeader:
    """What is known before the first sample."""

    attributes: list[Attribute] = field(default_factory=list)
    events: dict[int, EventFormat] = field(default_factory=dict)
    data_offset: int = 0
    data_size: int | None = None
    """None: the data go on to the end of the stream."""


def parse_attribute(data: bytes, ids: Sequence[int], source: str) -> Attribute:
    """A ``struct perf_event_attr`` of any version."""
    if len(data) < _ATTRIBUTE_VER0:
        raise TraceFormatError(f"{source}: an event attribute of {len(data)} bytes is none: the file is damaged")
    kind, _, config, _, sample_type, read_format = struct.unpack_from("<IIQQQQ", data)
    return Attribute(kind, config, SampleLayout.of(sample_type, read_format), tuple(ids))


def read_file_header(file: BinaryIO, source: str) -> PerfHeader:
    """Read the header, attributes and formats of a seekable perf.data file.

    Raises
    ------
    TraceFormatError
        The header cannot be read. A file cut short while its data were written has a data size of 0 or no feature
        sections, which is said in the message where it makes the samples unreadable.
    """
    file.seek(0, 2)
    file_size = file.tell()
    file.seek(0)
    start = Cursor(file.read(FILE_HEADER_BYTES), source)
    start.take(8, "magic")
    header_size, attribute_size = start.u64("header size"), start.u64("attribute size")
    attributes = (start.u64("attributes' offset"), start.u64("attributes' size"))
    data = (start.u64("data's offset"), start.u64("data's size"))
    start.take(16, "event types")
    features = int.from_bytes(start.take(_FEATURE_BITS // 8, "features"), "little")
    if header_size < FILE_HEADER_BYTES or attribute_size < _ATTRIBUTE_VER0 + 16:
        raise TraceFormatError(f"{source}: header of {header_size} and attributes of {attribute_size} bytes: damaged")
    header = PerfHeader(data_offset=data[0], data_size=data[1])
    if data[1] == 0:
        # perf writes the size last: a recording that was killed still holds its samples, but not its formats.
        header.data_size = max(file_size - data[0], 0)
    header.attributes = _attributes(file, source, attributes, attribute_size)
    header.events = _tracing_data(file, source, data[0] + data[1], features) if data[1] else {}
    return header


def _block(file: BinaryIO, source: str, offset: int, size: int, what: str) -> Cursor:
    if size > _MAX_METADATA:
        raise TraceFormatError(f"{source}: {what} of {size} bytes: the file is damaged")
    go_to(file, offset, source, what)
    data = file.read(size)
    if len(data) < size:
        raise TraceFormatError(
            f"{source}: offset {offset:#x}: truncated: {what} needs {size} bytes, {len(data)} are left"
        )
    return Cursor(data, source, offset)


def _attributes(file: BinaryIO, source: str, place: tuple[int, int], entry: int) -> list[Attribute]:
    if place[1] // entry > _MAX_ATTRIBUTES:
        raise TraceFormatError(f"{source}: {place[1] // entry} events: the header is damaged")
    cursor = _block(file, source, place[0], place[1], "event attributes")
    found: list[Attribute] = []
    while cursor.left >= entry:
        data = cursor.take(entry - 16, "event attribute")
        ids_offset, ids_size = cursor.u64("ids' offset"), cursor.u64("ids' size")
        if ids_size // 8 > _MAX_IDS:
            raise TraceFormatError(f"{source}: {ids_size // 8} ids of one event: the header is damaged")
        ids = _block(file, source, ids_offset, ids_size // 8 * 8, "event ids")
        found.append(parse_attribute(data, struct.unpack(f"<{ids_size // 8}Q", ids.take(ids.left, "ids")), source))
    return found


def _tracing_data(file: BinaryIO, source: str, sections: int, features: int) -> dict[int, EventFormat]:
    """Formats from the tracing-data section; the section table has an entry per feature bit, in order of the bits."""
    if not features >> _FEATURE_TRACING_DATA & 1:
        return {}
    before = bin(features & ((1 << _FEATURE_TRACING_DATA) - 1)).count("1")
    entry = _block(file, source, sections + 16 * before, 16, "feature section table")
    offset, size = entry.u64("tracing data's offset"), entry.u64("tracing data's size")
    return read_metadata(_block(file, source, offset, size, "tracing data")).events
