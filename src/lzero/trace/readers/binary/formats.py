"""Event formats as the kernel's tracing files describe them, and the block of them that recordings carry.

perf.data (its *tracing data* section) and trace.dat version 6 begin with the same block: page and event headers, then
the text of each event's ``format`` file. What the block says of an event is used as it stands, whatever kernel wrote
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.cursor import Cursor

__all__ = [
    "EventFormat",
    "Field",
    "TracingMetadata",
    "parse_format",
    "read_event_formats",
    "read_metadata",
    "read_page_header",
]

TRACING_MAGIC = b"\x17\x08\x44tracing"
_MAX_FORMAT = 1 << 20
_MAX_SYSTEMS = 10_000
_MAX_EVENTS = 100_000

_FIELD = re.compile(
    r"^\s*field:(?P<declaration>[^;]*);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);(?:\s*signed:(?P<signed>\d+);)?",
    re.MULTILINE,
)
_NAME = re.compile(r"^name:\s*(\S+)", re.MULTILINE)
_ID = re.compile(r"^ID:\s*(\d+)", re.MULTILINE)
_LAST_WORD = re.compile(r"(\w+)\s*(?:\[[^\]]*\])?\s*$")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event: where it is in the event's bytes."""

    name: str
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One event: its number in this recording and its fields by name."""

    system: str
    name: str
    number: int
    fields: Mapping[str, Field]


@dataclass(slots=True)
class TracingMetadata:
    """The block of formats."""

    version: str
    long_size: int
    page_size: int
    page_fields: Mapping[str, Field] = field(default_factory=dict)
    events: dict[int, EventFormat] = field(default_factory=dict)


def _fields(text: str) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for match in _FIELD.finditer(text):
        name = _LAST_WORD.search(match["declaration"])
        if name is not None and len(match["offset"]) < 10 and len(match["size"]) < 10:
            signed = match["signed"] == "1"
            found[name[1]] = Field(name[1], int(match["offset"]), int(match["size"]), signed)
    return found


def parse_format(system: str, text: str) -> EventFormat | None:
    """An event's ``format`` file; None when it has no name or number."""
    name, number = _NAME.search(text), _ID.search(text)
    if name is None or number is None or len(number[1]) > 9:
        return None
    return EventFormat(system, name[1], int(number[1]), _fields(text))


def read_page_header(cursor: Cursor) -> Mapping[str, Field]:
    """The ``header_page`` and ``header_event`` blocks; the fields of a ring-buffer page."""
    if cursor.string("header_page") != "header_page":
        raise TraceFormatError(f"{cursor.source}: no header_page where the tracing data should have it: a foreign file")
    page = _text(cursor, "header_page")
    if cursor.string("header_event") != "header_event":
        raise TraceFormatError(
            f"{cursor.source}: no header_event where the tracing data should have it: a foreign file"
        )
    _text(cursor, "header_event")
    return _fields(page)


def read_ftrace_formats(cursor: Cursor) -> Iterator[EventFormat]:
    """Formats of ftrace's own events."""
    for _ in range(_count(cursor, "number of ftrace events", _MAX_EVENTS)):
        parsed = parse_format("ftrace", _text(cursor, "ftrace event format"))
        if parsed is not None:
            yield parsed


def read_event_formats(cursor: Cursor) -> Iterator[EventFormat]:
    """Formats of the tracepoints, system by system."""
    for _ in range(_count(cursor, "number of event systems", _MAX_SYSTEMS)):
        system = cursor.string("event system")
        for _ in range(_count(cursor, "number of events", _MAX_EVENTS)):
            parsed = parse_format(system, _text(cursor, "event format"))
            if parsed is not None:
                yield parsed


def read_start(cursor: Cursor) -> TracingMetadata:
    """Magic, version, byte order, sizes."""
    if cursor.take(len(TRACING_MAGIC), "magic") != TRACING_MAGIC:
        raise TraceFormatError(f"{cursor.source}: the tracing data does not begin with its magic: a foreign file")
    version = cursor.string("version", 16)
    if cursor.u8("byte order") != 0:
        raise TraceFormatError(f"{cursor.source}: recorded on a big-endian machine; KVM on x86 is little-endian")
    return TracingMetadata(version, cursor.u8("size of long"), cursor.u32("page size"))


def read_metadata(cursor: Cursor) -> TracingMetadata:
    """The whole block, up to and with the saved command lines (which version 0.6 of perf and trace.dat 6 have).

    Raises
    ------
    TraceFormatError
        The block is cut short or is none.
    """
    metadata = read_start(cursor)
    metadata.page_fields = read_page_header(cursor)
    for parsed in (*read_ftrace_formats(cursor), *read_event_formats(cursor)):
        metadata.events[parsed.number] = parsed
    cursor.take(cursor.u32("size of kallsyms"), "kallsyms")
    cursor.take(cursor.u32("size of printk formats"), "printk formats")
    if metadata.version not in ("0.5", "0.4"):
        cursor.take(cursor.u64("size of command lines"), "command lines")
    return metadata


def _text(cursor: Cursor, what: str) -> str:
    size = cursor.u64(f"size of {what}")
    if size > _MAX_FORMAT:
        raise TraceFormatError(f"{cursor.source}: a {what} of {size} bytes is none: the file is damaged")
    return cursor.take(size, what).decode("ascii", "replace")


def _count(cursor: Cursor, what: str, limit: int) -> int:
    count = cursor.u32(what)
    if count > limit:
        raise TraceFormatError(f"{cursor.source}: {what} is {count}: the file is damaged")
    return count
