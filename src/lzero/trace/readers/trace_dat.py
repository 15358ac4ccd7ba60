"""Read trace.dat, as ``trace-cmd record -e kvm`` writes it, without trace-cmd: versions 6 and 7, packed or not.

The file's own event formats say where each field is, its page header where the parts of a page are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.cursor import go_to, seekable
from lzero.trace.readers.binary.fields import Buffer, EventPlan, Indices, RowMatrix, Rows, plan_events
from lzero.trace.readers.binary.formats import TRACING_MAGIC
from lzero.trace.readers.binary.native import NativePageDecoder, library
from lzero.trace.readers.binary.ordering import TimeOrder
from lzero.trace.readers.binary.ring_pages import PageEvents, PageLayout, read_pages
from lzero.trace.readers.binary.trace_dat_header import Clock, CpuData, read_trace_dat_header, unpacker
from lzero.trace.readers.events import Diagnosis, event_dtype

__all__ = ["is_trace_dat", "read_trace_dat"]

Where = Callable[[int], str]
Pages = tuple[tuple[int, int], ...]

CHUNK_BYTES: Final = 16 << 20

_MIN_PAGES: Final = 16
_ENOUGH: Final = 100_000
_MAX_PACKED_CHUNK: Final = 256 << 20
_SMALLEST_PAGE, _LARGEST_PAGE = 4096, 1 << 24


def is_trace_dat(start: bytes) -> bool:
    """Whether a file that begins with these bytes (10 or more) is a trace.dat recording."""
    return start.startswith(TRACING_MAGIC)


def read_trace_dat(stream: BinaryIO, diagnosis: Diagnosis, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Rows]:
    """Yield the KVM events of a recording as arrays of :func:`~lzero.trace.readers.events.event_dtype`, in order of
    time.

    Parameters
    ----------
    stream:
        The recording from its first byte; one that cannot seek is copied to disk first.
    diagnosis:
        Receives counts and the places of what could not be read.
    chunk_bytes:
        How much is looked at at once, over all CPUs; memory use is a small multiple of it.

    Raises
    ------
    TraceFormatError
        The header cannot be read; or, in strict mode, anything cannot.
    """
    source = diagnosis.source
    with seekable(stream) as file:
        header = read_trace_dat_header(file, source)
        if not header.metadata.events:
            raise TraceFormatError(f"{source}: it describes no events; was the recording killed before it ended?")
        if not header.clock.counts_ns:
            name = header.clock.name
            diagnosis.problem(
                "time in other units", "header", f"the clock {name!r} does not count ns: times are its units"
            )
        decoder = _Decoder(
            plan_events(header.metadata.events), PageLayout.of(header.metadata.page_fields), header.clock
        )
        unpack = unpacker(header.compression, source) if any(cpu.packed for cpu in header.cpus) else None
        per_cpu = chunk_bytes // max(len(header.cpus), 1)
        streams = [_CpuStream(file, cpu, per_cpu, unpack, decoder, diagnosis) for cpu in header.cpus if cpu.size]
        yield from _merge(streams, diagnosis)


def _merge(streams: list[_CpuStream], diagnosis: Diagnosis) -> Iterator[Rows]:
    """Events of all CPUs by time: what lies before the last event seen of every CPU that goes on is complete."""
    order = TimeOrder()
    going = list(streams)
    enough = _ENOUGH
    while going:
        behind = min(going, key=lambda stream: stream.reached)
        rows = behind.next()
        if rows is None:
            going.remove(behind)
        else:
            diagnosis.events += rows.size
            order.add(rows)
            # Putting what is held in order costs its length, so it is done only when enough has come to be let go.
            if order.held < enough:
                continue
            # The events at the limit itself may have equals still to come on another CPU.
            limit = min((stream.reached for stream in going), default=0)
            for part in (order.release(limit - 1) if limit else None, order.overflow()):
                if part is not None:
                    yield part
            enough = 2 * order.held + _ENOUGH
    rest = order.drain()
    if rest is not None:
        yield rest
    if order.late:
        diagnosis.problem("event out of order", "whole file", count=order.late)


class _Decoder:
    """Pages to rows."""

    def __init__(self, plans: dict[int, EventPlan], layout: PageLayout, clock: Clock) -> None:
        self._plans = plans
        self.layout = layout
        self._clock = clock
        native = library()
        self._native = None if native is None else NativePageDecoder(native, layout, plans)

    def decode(self, pages: NDArray[np.uint8], cpu: CpuData, where: Where, diagnosis: Diagnosis) -> tuple[Rows, int]:
        """The KVM events of whole pages, and the time of the last event of any kind (0 without one)."""
        if self._native is not None:
            found = self._native.decode(pages, cpu.page_size, cpu.cpu)
            rows, reached = found.rows, found.reached
            diagnosis.others += found.others
            if found.shorts:
                diagnosis.problem("event shorter than its format", where(found.first_short), count=found.shorts)
            self._report(found.missed, found.damaged, cpu.page_size, where, diagnosis)
            if self._clock.converts:
                rows["time_ns"] = self.nanoseconds(rows["time_ns"])
        else:
            buffer = Buffer(pages.copy())
            events = read_pages(buffer, cpu.page_size, self.layout)
            self._report(events.missed, events.damaged, cpu.page_size, where, diagnosis)
            rows = self._rows(buffer, events, cpu.cpu, where, diagnosis)
            reached = int(events.time[-1]) if events.time.size else 0
        return rows, int(self.nanoseconds(np.array([reached], np.uint64))[0]) if reached else 0

    def _report(
        self, missed: Pages, damaged: tuple[int, ...], page_size: int, where: Where, diagnosis: Diagnosis
    ) -> None:
        for page in damaged:
            diagnosis.problem("damaged page", where(page * page_size))
        for page, count in missed:
            place = where(page * page_size)
            if count:
                diagnosis.lose(count, place)
            else:
                diagnosis.problem("lost events", place, "events were lost here; the kernel did not count them")

    def _rows(self, buffer: Buffer, events: PageEvents, cpu: int, where: Where, diagnosis: Diagnosis) -> Rows:
        fits = events.room >= 8
        at, room, time = events.at[fits], events.room[fits], events.time[fits]
        number = buffer.low(at, 2)
        wanted = np.zeros(at.size, bool)
        chosen: list[tuple[EventPlan, Indices]] = []
        for event, plan in self._plans.items():
            match = number == np.uint32(event)
            short = match & (room < plan.size)
            if short.any():
                first = where(int(at[short][0]))
                diagnosis.problem("event shorter than its format", first, count=int(np.count_nonzero(short)))
                match &= ~short
            wanted |= match
            chosen.append((plan, np.flatnonzero(match)))
        selected = np.flatnonzero(wanted)
        diagnosis.others += int(events.at.size - selected.size)
        places = np.full(at.size, -1, np.int64)
        places[selected] = np.arange(selected.size)
        matrix = RowMatrix(selected.size)
        stamps = self.nanoseconds(time[selected])
        matrix.set64("time_ns", slice(None), stamps.astype(np.uint32), (stamps >> np.uint64(32)).astype(np.uint32))
        matrix.set32("thread", slice(None), buffer.low(at[selected] + 4, 4))
        matrix.set_cpu(np.full(selected.size, cpu, np.uint64))
        for plan, mine in chosen:
            if mine.size:
                plan.fill(buffer, at[mine], matrix, places[mine])
        return matrix.rows()

    def nanoseconds(self, time: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Time stamps of the trace clock as nanoseconds."""
        clock = self._clock
        if not clock.converts:
            return time
        # (stamp * multiplier) >> shift needs 96 bits: the halves are multiplied apart.
        multiplier, shift = np.uint64(clock.multiplier), np.uint64(clock.shift)
        high, low = time >> np.uint64(32), time & np.uint64(0xFFFF_FFFF)
        whole = (high * multiplier) << np.uint64(max(32 - clock.shift, 0))
        if clock.shift > 32:
            whole = (high * multiplier) >> np.uint64(clock.shift - 32)
        converted: NDArray[np.uint64] = whole + ((low * multiplier) >> shift) - np.uint64(clock.offset)
        return converted


class _CpuStream:
    """The pages of one CPU, a block at a time."""

    def __init__(
        self,
        file: BinaryIO,
        place: CpuData,
        chunk_bytes: int,
        unpack: Callable[[bytes, int], bytes] | None,
        decoder: _Decoder,
        diagnosis: Diagnosis,
    ) -> None:
        self._file = file
        self._place = place
        self._decoder = decoder
        self._diagnosis = diagnosis
        page = place.page_size
        if not _SMALLEST_PAGE <= page <= _LARGEST_PAGE or page % _SMALLEST_PAGE:
            raise TraceFormatError(f"{diagnosis.source}: pages of {page} bytes: the file is damaged")
        self._block = max(chunk_bytes // page, _MIN_PAGES) * page
        self._blocks = self._packed(unpack) if place.packed and unpack is not None else self._plain()
        self.reached = 0
        """Time of the last event delivered."""

    def next(self) -> Rows | None:
        """The next rows, which may be none; None at the end."""
        found = next(self._blocks, None)
        if found is None:
            return None
        data, place = found
        page_size = self._place.page_size
        whole = len(data) // page_size * page_size
        if whole < len(data):
            self._diagnosis.problem("truncated page", place(whole))
        if not whole:
            return np.zeros(0, event_dtype())
        rows, reached = self._decoder.decode(np.frombuffer(data, np.uint8, whole), self._place, place, self._diagnosis)
        self.reached = max(self.reached, reached)
        return rows

    def _plain(self) -> Iterator[tuple[bytes, Callable[[int], str]]]:
        done = 0
        while done < self._place.size:
            start = self._place.offset + done
            go_to(self._file, start, self._diagnosis.source, "pages")
            wanted = min(self._block, self._place.size - done)
            data = self._file.read(wanted)
            done += wanted
            if len(data) < wanted:
                missing = self._place.size - done + wanted - len(data)
                what = f"{missing} bytes of CPU {self._place.cpu} are missing"
                self._diagnosis.problem("truncated file", f"offset {start + len(data):#x}", what)
                done = self._place.size
            if data:
                yield data, partial(_place, "offset", start)

    def _packed(self, unpack: Callable[[bytes, int], bytes]) -> Iterator[tuple[bytes, Callable[[int], str]]]:
        """Chunks, each packed by itself."""
        offset = self._place.offset
        go_to(self._file, offset, self._diagnosis.source, "pages")
        (count,) = struct.unpack("<I", self._file.read(4).ljust(4, b"\0"))
        offset += 4
        for number in range(count):
            self._file.seek(offset)
            head = self._file.read(8)
            packed, unpacked = struct.unpack("<II", head.ljust(8, b"\0"))
            body = self._file.read(packed) if unpacked <= _MAX_PACKED_CHUNK else b""
            # The size that the file gives for the CPU leaves out the chunks' headers, so it bounds nothing.
            if len(head) < 8 or len(body) < packed or unpacked > _MAX_PACKED_CHUNK:
                what = f"chunk {number} of {count} of CPU {self._place.cpu} is cut short"
                self._diagnosis.problem("truncated file", f"offset {offset:#x}", what)
                return
            try:
                data = unpack(body, unpacked)
            except TraceFormatError as error:
                self._diagnosis.problem("damaged compressed chunk", f"offset {offset:#x}", str(error))
                data = b""
            name = f"chunk at offset {offset:#x}, byte"
            for start in range(0, len(data), self._block):
                part = data[start : start + self._block]
                yield part, partial(_place, name, start)
            offset += 8 + packed


def _place(name: str, start: int, distance: int) -> str:
    return f"{name} {start + distance:#x}"
