"""Read perf.data, as ``perf record -e 'kvm:*'`` and ``perf kvm stat record`` write it, without perf.

The file's own event formats say where each field is. Both the file form and the pipe form are read, and recordings
compressed with ``-z``. Events come in the order of their times as far as perf's own rounds allow, which is what
``perf script`` prints.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, cast

import numpy as np

from lzero.errors import TraceFormatError
from lzero.trace.readers.binary.ahead import ahead
from lzero.trace.readers.binary.cursor import Cursor, go_to, seekable
from lzero.trace.readers.binary.fields import Buffer, Indices, Rows, plan_events
from lzero.trace.readers.binary.formats import read_metadata
from lzero.trace.readers.binary.native import NativeDecoder, library
from lzero.trace.readers.binary.ordering import TimeOrder
from lzero.trace.readers.binary.perf_header import (
    PERF_MAGIC,
    PERF_MAGIC_SWAPPED,
    PIPE_HEADER_BYTES,
    TYPE_TRACEPOINT,
    PerfHeader,
    parse_attribute,
    read_file_header,
)
from lzero.trace.readers.binary.samples import SampleReader
from lzero.trace.readers.binary.walk import Words, next_plausible, walk_records
from lzero.trace.readers.binary.window import MIN_WINDOW, StreamSource, Window
from lzero.trace.readers.events import Diagnosis, event_dtype

__all__ = ["is_perf_data", "read_perf_data"]

Block = tuple[Rows, int]

CHUNK_BYTES: Final = 2 << 20

_LOST, _SAMPLE, _LOST_SAMPLES = 2, 9, 13
_HEADER_ATTR, _HEADER_TRACING_DATA, _FINISHED_ROUND, _AUXTRACE = 64, 66, 68, 71
_COMPRESSED, _COMPRESSED2 = 81, 83

_SPECIAL: Final = frozenset({_HEADER_ATTR, _HEADER_TRACING_DATA, _AUXTRACE, _COMPRESSED, _COMPRESSED2})
"""Records that the fast walk leaves to ``_Reader._special``: they describe events, or bytes that are no records
follow them.
"""

_MAX_TRACING_DATA: Final = 256 << 20


def is_perf_data(start: bytes) -> bool:
    """Whether a file that begins with these bytes (8 or more) is a perf.data recording of either byte order."""
    return start[:8] in (PERF_MAGIC, PERF_MAGIC_SWAPPED)


def read_perf_data(stream: BinaryIO, diagnosis: Diagnosis, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Rows]:
    """Yield the KVM events of a recording as arrays of :func:`~lzero.trace.readers.events.event_dtype`, in order of
    time.

    Parameters
    ----------
    stream:
        The recording from its first byte. One in pipe form is read as it comes; another is copied to disk first if
        it cannot seek.
    diagnosis:
        Receives counts and the places of what could not be read.
    chunk_bytes:
        How much is looked at at once; memory use is a small multiple of it.

    Raises
    ------
    TraceFormatError
        The header cannot be read; or, in strict mode, anything cannot.
    """
    source = diagnosis.source
    start = stream.read(PIPE_HEADER_BYTES)
    if start[:8] == PERF_MAGIC_SWAPPED:
        raise TraceFormatError(f"{source}: recorded on a big-endian machine; KVM on x86 is little-endian")
    if start[:8] != PERF_MAGIC or len(start) < PIPE_HEADER_BYTES:
        raise TraceFormatError(f"{source}: not a perf.data file (it begins with {start[:8].hex(' ') or 'nothing'})")
    (header_size,) = struct.unpack_from("<Q", start, 8)
    if header_size == PIPE_HEADER_BYTES:
        yield from _Reader(PerfHeader(), stream, PIPE_HEADER_BYTES, diagnosis, chunk_bytes).events()
        return
    whole = stream if stream.seekable() else cast(BinaryIO, _Rejoined(start, stream))
    with seekable(whole) as data:
        header = read_file_header(data, source)
        _require_formats(header, source)
        go_to(data, header.data_offset, source, "samples")
        yield from _Reader(header, data, header.data_offset, diagnosis, chunk_bytes).events()


def _require_formats(header: PerfHeader, source: str) -> None:
    if not header.attributes:
        raise TraceFormatError(f"{source}: it describes no events; was the recording killed before it ended?")
    if not header.events and any(attribute.type == TYPE_TRACEPOINT for attribute in header.attributes):
        raise TraceFormatError(
            f"{source}: it has tracepoint samples but not their formats, which perf writes when the recording ends; "
            "record again and end perf with Ctrl-C or SIGINT, or record with 'perf record -o -'"
        )


class _Rejoined:
    """A stream that cannot seek and whose first bytes were read already."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """The bytes read before, then those of the stream."""
        start, self._start = self._start, b""
        return start or self._stream.read(size)


class _Reader:
    """Turns a stream of records into ordered events."""

    def __init__(self, header: PerfHeader, data: BinaryIO, base: int, diagnosis: Diagnosis, chunk_bytes: int) -> None:
        self._header = header
        self._source = StreamSource(data, header.data_size)
        self._is_file = header.data_size is not None
        self._diagnosis = diagnosis
        self._samples: SampleReader | None = None
        self._native: NativeDecoder | None = None
        self._newest = 0
        self._newest_at_round = 0
        self._safe_until = 0
        self._window = Window(chunk_bytes, base)
        self._unpacked = Window(MIN_WINDOW, 0, "offset in the unpacked data")
        self._decompressor: Any = None

    def events(self) -> Iterator[Rows]:
        """All events of the stream, in order of time."""
        order = TimeOrder()
        blocks = self._blocks()
        # A live stream may be silent for ever, and a thread that waits for it could not be ended.
        for rows, safe_until in ahead(blocks) if self._is_file else blocks:
            order.add(rows)
            yield from _some(order.release(safe_until))
            yield from _some(order.overflow())
        yield from _some(order.drain())
        if order.late:
            self._diagnosis.problem("event out of order", "whole file", count=order.late)

    def _blocks(self) -> Iterator[Block]:
        """The events as they stand in the stream, with the time up to which none can come any more."""
        while self._window.fill(self._source):
            yield from self._records(self._window)
        yield from self._records(self._unpacked)
        for window in (self._window, self._unpacked):
            if window.used:
                self._diagnosis.problem("truncated record", window.where())
        if self._source.left:
            what = f"{self._source.left} bytes of samples are missing"
            self._diagnosis.problem("truncated file", self._window.where(), what)

    def _records(self, window: Window) -> Iterator[Block]:
        """Decode what a window holds, as far as whole records go."""
        while True:
            if window is self._window and self._unpacked.used:
                # Ordinary records come after the packed ones before them: the end of a round is one.
                yield from self._records(self._unpacked)
            rows, stopped = self._natively(window)
            yield rows, self._safe_until
            if stopped is None:
                data = window.held()
                walk = walk_records(data.view("<u8"), _SPECIAL)
                if walk.starts.size:
                    yield self._ordinary(Buffer(data), walk.starts, window), self._safe_until
                window.consume(8 * walk.end)
                stopped = walk.stopped
            if not stopped:
                return
            more = self._special(window)
            if self._unpacked.used >= MIN_WINDOW and window is self._window:
                yield from self._records(self._unpacked)
            if not more:
                return

    def _natively(self, window: Window) -> tuple[Rows, bool | None]:
        """Decode the window's whole records with the native library.

        Returns
        -------
        rows, stopped
            ``stopped`` is False when what is left is no whole record, None when the next record, or all, is for the
            slower way.
        """
        decoder = self._native_decoder()
        if decoder is None:
            return np.zeros(0, event_dtype()), None
        words = window.held().view("<u8")
        state = decoder.state
        state.newest, state.newest_at_round, state.safe_until = self._newest, self._newest_at_round, self._safe_until
        rows, lost = decoder.decode(words)
        self._newest, self._newest_at_round, self._safe_until = state.newest, state.newest_at_round, state.safe_until
        self._diagnosis.events += rows.size
        self._diagnosis.others += state.others
        for start in lost.tolist():
            self._lost(words, start, window)
        window.consume(8 * state.end)
        return rows, None if state.stopped else False

    def _native_decoder(self) -> NativeDecoder | None:
        """The decoder, if the library is there and all samples have one layout."""
        if self._native is None and self._samples is None:
            native = library()
            layouts = {(attribute.layout, attribute.type) for attribute in self._header.attributes}
            if native is not None and len(layouts) == 1:
                ((layout, kind),) = layouts
                if kind == TYPE_TRACEPOINT and layout.has_raw:
                    self._native = NativeDecoder(native, layout, plan_events(self._header.events))
        return self._native

    def _lost(self, words: Words, start: int, window: Window) -> None:
        """A record that says how many events were lost."""
        header = int(words[start])
        word = 2 if header & 0xFFFF_FFFF == _LOST else 1
        count = int(words[start + word]) if header >> 51 > word else 0
        if count:
            self._diagnosis.lose(min(count, 1 << 62), window.where(8 * start))

    def _ordinary(self, buffer: Buffer, starts: Indices, window: Window) -> Rows:
        headers = buffer.words64[starts]
        kinds = headers & np.uint64(0xFFFF_FFFF)
        sizes = (headers >> np.uint64(51)).astype(np.int64)
        sampled = np.flatnonzero(kinds == np.uint64(_SAMPLE))
        if self._samples is None:
            plans = plan_events(self._header.events)
            self._samples = SampleReader(self._header.attributes, plans, self._diagnosis)
        rows, which = self._samples.read(buffer, starts[sampled], sizes[sampled], window.where)
        self._diagnosis.events += rows.size
        self._rounds(np.flatnonzero(kinds == np.uint64(_FINISHED_ROUND)), rows, sampled[which])
        for index in np.flatnonzero((kinds == np.uint64(_LOST)) | (kinds == np.uint64(_LOST_SAMPLES))):
            self._lost(buffer.words64, int(starts[index]), window)
        return rows

    def _rounds(self, ends: Indices, rows: Rows, came: Indices) -> None:
        """Note up to which time every event has come.

        In each round perf empties the buffer of each CPU once. So at the end of a round nothing can come any more
        that is older than the newest event at the end of the round before. ``came`` says which record each row is, as
        ``ends`` does for the ends.
        """
        newest = np.maximum.accumulate(rows["time_ns"])
        before = np.searchsorted(came, ends)
        for count in before[-2:].tolist():
            self._safe_until = self._newest_at_round
            self._newest_at_round = max(self._newest, int(newest[count - 1]) if count else 0)
        if rows.size:
            self._newest = max(self._newest, int(newest[-1]))

    def _special(self, window: Window) -> bool:
        """Deal with the record at the window's start, at which the walk stopped; False when it is not there as a
        whole yet.
        """
        kind, _, size = struct.unpack("<IHH", window.peek(8))
        while size >= 8 and (kind in _SPECIAL or kind >= _HEADER_ATTR):
            if window.used < size or not self._describing(window, kind, size):
                return False
            if window.used < 8:
                return False
            packed = kind in (_COMPRESSED, _COMPRESSED2)
            kind, _, size = struct.unpack("<IHH", window.peek(8))
            # Packed records come in rows; walking the window anew for each would move all that follows it.
            if not packed or kind not in (_COMPRESSED, _COMPRESSED2) or self._unpacked.used >= MIN_WINDOW:
                return True
        start = window.where()
        skipped = 8 * next_plausible(window.held().view("<u8"), 1)
        self._diagnosis.problem("impossible record", start, f"a record of type {kind} and {size} bytes is none")
        window.consume(min(skipped, window.used))
        return window.used >= 8

    def _describing(self, window: Window, kind: int, size: int) -> bool:
        """A record that describes events, has bytes after it, is packed, or has an odd size as some of perf's own
        have.
        """
        record = window.peek(size)
        if kind == _HEADER_TRACING_DATA and size >= 12:
            return self._tracing_data(window, size, struct.unpack_from("<I", record, 8)[0])
        if kind == _AUXTRACE and size >= 16:
            return self._skip(window, size + struct.unpack_from("<Q", record, 8)[0])
        where = window.where()
        window.consume(size)
        if kind == _HEADER_ATTR:
            self._attribute(record)
        elif kind in (_COMPRESSED, _COMPRESSED2):
            self._unpack(record, kind, where)
        return True

    def _attribute(self, record: bytes) -> None:
        declared = struct.unpack_from("<I", record, 12)[0] if len(record) >= 16 else 0
        end = min(8 + (declared or 64), len(record))
        count = (len(record) - end) // 8
        ids = struct.unpack_from(f"<{count}Q", record, end)
        self._header.attributes.append(parse_attribute(record[8:end], ids, self._diagnosis.source))
        self._samples = self._native = None

    def _tracing_data(self, window: Window, size: int, payload: int) -> bool:
        if payload > _MAX_TRACING_DATA:
            raise TraceFormatError(f"{self._diagnosis.source}: {payload} bytes of event formats: the stream is damaged")
        offset = window.offset + size
        window.consume(size)
        data = self._take(window, payload)
        self._header.events = read_metadata(Cursor(data, self._diagnosis.source, offset)).events
        self._samples = self._native = None
        return True

    def _take(self, window: Window, size: int) -> bytes:
        """The next bytes of the stream, of which the window holds the first."""
        data = bytearray(window.peek(size))
        window.consume(len(data))
        while len(data) < size:
            room = bytearray(min(size - len(data), 1 << 20))
            got = self._source(memoryview(room))
            if not got:
                break
            data += room[:got]
            window.offset += got
        return bytes(data)

    def _skip(self, window: Window, size: int) -> bool:
        while size > 0:
            got = len(self._take(window, min(size, 1 << 20)))
            if not got:
                self._diagnosis.problem("truncated record", window.where())
                return False
            size -= got
        return True

    def _unpack(self, record: bytes, kind: int, where: str) -> None:
        import zstandard

        packed = record[8:]
        if kind == _COMPRESSED2:
            # The size of the data stands before them, since the record is padded.
            packed = packed[8:][: int.from_bytes(packed[:8], "little")]
        if self._decompressor is None or self._decompressor.eof:
            self._decompressor = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._unpacked.append(self._decompressor.decompress(packed))
        except zstandard.ZstdError as error:
            self._diagnosis.problem("damaged compressed record", where, f"compressed record: {error}")
            self._decompressor = None


def _some(rows: Rows | None) -> Iterator[Rows]:
    if rows is not None and rows.size:
        yield rows
