"""Write perf.data and trace.dat from small typed records, as the tools do, so that a test can damage one thing.

The formats are those of ``perf.data-file-format.txt`` and of trace-cmd.dat(5). ``perf script`` and ``trace-cmd report``
read what is written here, which ``tests/trace_binary`` checks where the tools are installed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PAGE = 4096
PAGE_DATA = PAGE - 16


@dataclass(frozen=True)
class FieldSpec:
    """One field of an event's format."""

    declaration: str
    offset: int
    size: int
    signed: int = 0

    @property
    def name(self) -> str:
        return self.declaration.split()[-1]


COMMON = (
    FieldSpec("unsigned short common_type", 0, 2),
    FieldSpec("unsigned char common_flags", 2, 1),
    FieldSpec("unsigned char common_preempt_count", 3, 1),
    FieldSpec("int common_pid", 4, 4, 1),
)


@dataclass(frozen=True)
class EventType:
    """A tracepoint: its number and fields."""

    system: str
    name: str
    number: int
    fields: tuple[FieldSpec, ...]
    size: int

    def text(self) -> str:
        """The event's ``format`` file."""
        lines = [f"name: {self.name}", f"ID: {self.number}", "format:"]
        for group in (COMMON, self.fields):
            lines += [
                f"\tfield:{f.declaration};\toffset:{f.offset};\tsize:{f.size};\tsigned:{f.signed};" for f in group
            ]
            lines.append("")
        words = " ".join(f"{f.name} 0x%llx" for f in self.fields)
        arguments = ", ".join(f"(unsigned long long)REC->{f.name}" for f in self.fields)
        lines.append(f'print fmt: "{words}", {arguments}')
        return "\n".join(lines) + "\n"

    def pack(self, pid: int, values: Mapping[str, int]) -> bytes:
        """The event's bytes."""
        data = bytearray(self.size)
        struct.pack_into("<HBBi", data, 0, self.number, 0, 0, pid)
        for spec in self.fields:
            number = values.get(spec.name, 0) & ((1 << 8 * spec.size) - 1)
            data[spec.offset : spec.offset + spec.size] = number.to_bytes(spec.size, "little")
        return bytes(data)


_EXIT_FIELDS = (
    FieldSpec("unsigned int exit_reason", 8, 4),
    FieldSpec("unsigned long guest_rip", 16, 8),
    FieldSpec("u32 isa", 24, 4),
    FieldSpec("u64 info1", 32, 8),
    FieldSpec("u64 info2", 40, 8),
    FieldSpec("u32 intr_info", 48, 4),
    FieldSpec("u32 error_code", 52, 4),
    FieldSpec("unsigned int vcpu_id", 56, 4),
)

KVM_EXIT = EventType("kvm", "kvm_exit", 1701, (*_EXIT_FIELDS, FieldSpec("u64 requests", 64, 8)), 72)
KVM_EXIT_OLD = EventType("kvm", "kvm_exit", 1701, _EXIT_FIELDS[:5], 48)
"""As kernels had it before Linux 5.10: no interruption information, no VCPU."""
KVM_ENTRY = EventType(
    "kvm", "kvm_entry", 1702, (FieldSpec("unsigned int vcpu_id", 8, 4), FieldSpec("unsigned long rip", 16, 8)), 24
)
KVM_NESTED_VMEXIT = EventType("kvm", "kvm_nested_vmexit", 1703, _EXIT_FIELDS, 64)
KVM_NESTED_INJECT = EventType(
    "kvm",
    "kvm_nested_vmexit_inject",
    1704,
    (
        FieldSpec("__u32 exit_code", 8, 4),
        FieldSpec("__u64 exit_info1", 16, 8),
        FieldSpec("__u64 exit_info2", 24, 8),
        FieldSpec("__u32 exit_int_info", 32, 4),
        FieldSpec("__u32 exit_int_info_err", 36, 4),
        FieldSpec("__u32 isa", 40, 4),
    ),
    48,
)
KVM_NESTED_VMENTER = EventType(
    "kvm",
    "kvm_nested_vmenter",
    1705,
    (
        FieldSpec("__u64 rip", 8, 8),
        FieldSpec("__u64 vmcb", 16, 8),
        FieldSpec("__u64 nested_rip", 24, 8),
        FieldSpec("__u32 isa", 56, 4),
    ),
    64,
)
KVM_MSR = EventType(
    "kvm",
    "kvm_msr",
    1706,
    (FieldSpec("unsigned write", 8, 4), FieldSpec("u32 ecx", 12, 4), FieldSpec("u64 data", 16, 8)),
    32,
)
ALL_TYPES = (KVM_EXIT, KVM_ENTRY, KVM_NESTED_VMEXIT, KVM_NESTED_INJECT, KVM_NESTED_VMENTER, KVM_MSR)


@dataclass(frozen=True)
class Event:
    """One recorded event."""

    type: EventType
    time_ns: int
    cpu: int = 0
    pid: int = 1000
    values: Mapping[str, int] = field(default_factory=dict)

    def data(self) -> bytes:
        """The tracepoint's bytes."""
        return self.type.pack(self.pid, self.values)


def _sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


_HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    f"\tfield: char data;\toffset:16;\tsize:{PAGE_DATA};\tsigned:1;\n"
)
_HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n\n"
    "\tpadding     : type == 29\n\ttime_extend : type == 30\n\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)


def header_info() -> bytes:
    """The page and event headers."""
    return b"header_page\0" + _sized(_HEADER_PAGE.encode()) + b"header_event\0" + _sized(_HEADER_EVENT.encode())


def event_formats(types: Sequence[EventType]) -> bytes:
    """Systems with their events' formats."""
    systems = sorted({event.system for event in types})
    out = struct.pack("<I", len(systems))
    for system in systems:
        mine = [event for event in types if event.system == system]
        out += system.encode() + b"\0" + struct.pack("<I", len(mine))
        out += b"".join(_sized(event.text().encode()) for event in mine)
    return out


def tracing_metadata(types: Sequence[EventType], version: bytes = b"6") -> bytes:
    """The block with which trace.dat begins and that perf.data holds as its tracing data."""
    start = b"\x17\x08\x44tracing" + version + b"\0" + struct.pack("<BBI", 0, 8, PAGE)
    nothing = struct.pack("<I", 0)
    return start + header_info() + nothing + event_formats(types) + nothing + nothing + _sized(b"1000 qemu\n")


# perf.data

IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID, RAW = (1 << bit for bit in range(11))
IDENTIFIER = 1 << 16
DEFAULT_SAMPLE = IDENTIFIER | IP | TID | TIME | CPU | PERIOD | RAW
FINISHED_ROUND = struct.pack("<IHH", 68, 0, 8)
_ATTRIBUTE_SIZE = 128
_SAMPLE_ID_ALL = 1 << 18
_FEATURES = {"tracing_data": 1, "cpuid": 9}


@dataclass(frozen=True)
class PerfFile:
    """A perf.data recording. ``records`` holds events, and bytes for records that are there already."""

    records: Sequence[Event | bytes]
    types: Sequence[EventType] = ALL_TYPES
    sample_type: int = DEFAULT_SAMPLE
    read_format: int = 0
    callchain: int = 3
    read_group: int = 2

    def sample(self, event: Event) -> bytes:
        """A sample record."""
        number = self.types.index(event.type) + 1
        parts: list[bytes] = []
        fixed = {
            IDENTIFIER: number,
            IP: 0xFFFF_FFFF_8100_0000,
            TID: event.pid | event.pid << 32,
            TIME: event.time_ns,
            ADDR: 0xABC,
            ID: number,
            STREAM_ID: number,
            CPU: event.cpu,
            PERIOD: 1,
        }
        parts += [struct.pack("<Q", value) for part, value in fixed.items() if self.sample_type & part]
        if self.sample_type & READ:
            parts.append(self._read())
        if self.sample_type & CALLCHAIN:
            parts.append(struct.pack(f"<{self.callchain + 1}Q", self.callchain, *range(self.callchain)))
        if self.sample_type & RAW:
            raw = event.data()
            padded = -(-(len(raw) + 4) // 8) * 8 - 4
            parts.append(struct.pack("<I", padded) + raw.ljust(padded, b"\0"))
        body = b"".join(parts)
        return struct.pack("<IHH", 9, 1, len(body) + 8) + body

    def _read(self) -> bytes:
        each = 1 + bool(self.read_format & 4) + bool(self.read_format & 16)
        times = bool(self.read_format & 1) + bool(self.read_format & 2)
        if self.read_format & 8:
            return struct.pack(
                f"<{1 + times + each * self.read_group}Q", self.read_group, *[7] * (times + each * self.read_group)
            )
        return struct.pack(f"<{times + each}Q", *[7] * (times + each))

    def data(self) -> bytes:
        """All records."""
        return b"".join(record if isinstance(record, bytes) else self.sample(record) for record in self.records)

    def attribute(self, event: EventType) -> bytes:
        """The ``perf_event_attr`` of an event."""
        start = struct.pack(
            "<IIQQQQQ", 2, _ATTRIBUTE_SIZE, event.number, 1, self.sample_type, self.read_format, _SAMPLE_ID_ALL
        )
        return start.ljust(_ATTRIBUTE_SIZE, b"\0")

    def metadata(self) -> bytes:
        """The tracing data."""
        return tracing_metadata(self.types, b"0.6")

    def to_file(self) -> bytes:
        """The file form."""
        ids = b"".join(struct.pack("<Q", number + 1) for number in range(len(self.types)))
        attributes_offset = 104 + len(ids)
        entries = b"".join(
            self.attribute(event) + struct.pack("<QQ", 104 + 8 * index, 8) for index, event in enumerate(self.types)
        )
        data_offset = attributes_offset + len(entries)
        data = self.data()
        cpuid = b"GenuineIntel-6-55-4\0"
        features = [self.metadata(), struct.pack("<I", 64) + cpuid.ljust(64, b"\0")]
        place = data_offset + len(data) + 16 * len(features)
        table = b""
        for section in features:
            table += struct.pack("<QQ", place, len(section))
            place += len(section)
        bits = sum(1 << bit for bit in _FEATURES.values())
        header = b"PERFILE2" + struct.pack(
            "<8Q", 104, _ATTRIBUTE_SIZE + 16, attributes_offset, len(entries), data_offset, len(data), 0, 0
        )
        return header + bits.to_bytes(32, "little") + ids + entries + data + table + b"".join(features)

    def to_pipe(self) -> bytes:
        """The pipe form."""
        out = b"PERFILE2" + struct.pack("<Q", 16)
        for number, event in enumerate(self.types, start=1):
            body = self.attribute(event) + struct.pack("<Q", number)
            out += struct.pack("<IHH", 64, 0, len(body) + 8) + body
        metadata = self.metadata()
        padded = metadata.ljust(-(-len(metadata) // 8) * 8, b"\0")
        out += struct.pack("<IHHI", 66, 0, 12, len(padded)) + padded
        return out + self.data()


def lost_record(count: int) -> bytes:
    """PERF_RECORD_LOST of the first event, with the trailer that ``sample_id_all`` asks for."""
    trailer = struct.pack("<QQQQ", 1000 | 1000 << 32, 1, 0, 1)
    return struct.pack("<IHHQQ", 2, 0, 24 + len(trailer), 1, count) + trailer


def compressed_records(data: bytes, size: int = 20_000, kind: int = 81) -> list[bytes]:
    """The bytes of records packed as ``perf record -z`` packs them, in records of kind 81 or 83."""
    import zstandard

    packer = zstandard.ZstdCompressor(level=1).compressobj()
    records = []
    for start in range(0, len(data), size):
        packed = packer.compress(data[start : start + size]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if kind == 81:
            records.append(struct.pack("<IHH", 81, 0, 8 + len(packed)) + packed)
        else:
            padded = packed.ljust(-(-len(packed) // 8) * 8, b"\0")
            records.append(struct.pack("<IHHQ", 83, 0, 16 + len(padded), len(packed)) + padded)
    return records


# trace.dat

TIME_EXTEND, TIME_STAMP, PADDING = 30, 31, 29
MISSED_EVENTS, MISSED_STORED = 1 << 31, 1 << 30


@dataclass(frozen=True)
class TraceDat:
    """A trace.dat recording of version 6; ``trace-cmd convert`` makes one of version 7 from it."""

    events: Sequence[Event]
    types: Sequence[EventType] = ALL_TYPES
    cpus: int = 2
    clock: str = "local"
    missed: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """``(cpu, page)`` to the number of events lost before it; 0 for a page that does not say how many."""
    stamps: bool = False
    """Write long gaps as absolute time stamps instead of time extends."""
    discard: bool = False
    """Put a discarded event before each event."""

    def _event(self, event: Event, last: int) -> bytes:
        delta = event.time_ns - last
        out = b""
        if delta >= 1 << 27 or (self.stamps and delta > 1000):
            kind, value = (TIME_STAMP, event.time_ns) if self.stamps else (TIME_EXTEND, delta)
            out += struct.pack("<II", kind | (value & ((1 << 27) - 1)) << 5, value >> 27 & 0xFFFF_FFFF)
            delta = 0
        if self.discard and delta:
            out += struct.pack("<II8x", PADDING | 1 << 5, 12)
            delta -= 1
        data = event.data()
        data = data.ljust(-(-len(data) // 4) * 4, b"\0")
        if len(data) <= 28 * 4:
            return out + struct.pack("<I", len(data) // 4 | delta << 5) + data
        return out + struct.pack("<II", delta << 5, len(data) + 4) + data

    def pages(self, cpu: int) -> list[bytes]:
        """The ring-buffer pages of one CPU."""
        mine = sorted((event for event in self.events if event.cpu == cpu), key=lambda event: event.time_ns)
        pages: list[bytes] = []
        body, start, last = b"", 0, 0
        for event in mine:
            packed = self._event(event, last or event.time_ns)
            room = PAGE_DATA - (8 if (cpu, len(pages)) in self.missed else 0)
            if body and len(body) + len(packed) > room:
                pages.append(self._page(cpu, len(pages), start, body))
                body = b""
            if not body:
                start = event.time_ns
                packed = self._event(event, start)
            body += packed
            last = event.time_ns
        if body:
            pages.append(self._page(cpu, len(pages), start, body))
        return pages

    def _page(self, cpu: int, number: int, start: int, body: bytes) -> bytes:
        commit = len(body)
        tail = b""
        if (cpu, number) in self.missed:
            count = self.missed[cpu, number]
            commit |= MISSED_EVENTS | (MISSED_STORED if count else 0)
            tail = struct.pack("<Q", count) if count else b""
        return (struct.pack("<QQ", start, commit) + body + tail).ljust(PAGE, b"\0")

    def to_file(self) -> bytes:
        """The file."""
        out = tracing_metadata(self.types) + struct.pack("<I", self.cpus)
        clock = f"[{self.clock}] global counter\0".encode()
        out += b"options  \0" + struct.pack("<HI", 4, len(clock)) + clock + struct.pack("<H", 0)
        out += b"flyrecord\0"
        data = [b"".join(self.pages(cpu)) for cpu in range(self.cpus)]
        place = -(-(len(out) + 16 * self.cpus) // PAGE) * PAGE
        body = b""
        for pages in data:
            out += struct.pack("<QQ", place + len(body), len(pages))
            body += pages
        return out.ljust(place, b"\0") + body


class OneWay(io.BytesIO):
    """A stream that cannot seek, as a pipe."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("seek")
