"""The native forms of decoding, ordering and adding up events; everything works without them, only slower.

The library is built with the package, or on first use where a C compiler is found. ``LZERO_NATIVE=0`` in the
environment turns it off, which the tests use to hold both forms equal.
"""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lzero.native_build import NativeBuildError, build_library, source_digest
from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.readers.binary.fields import EventPlan, Rows
from lzero.trace.readers.binary.perf_header import SAMPLE_CALLCHAIN, SAMPLE_READ, SampleLayout
from lzero.trace.readers.binary.ring_pages import PageLayout
from lzero.trace.readers.events import Diagnosis, event_dtype

__all__ = [
    "NativeDecoder",
    "NativePageDecoder",
    "NativePages",
    "NativeTotals",
    "library",
    "native_totals",
    "order_rows",
]

_SOURCES: Final = Path(__file__).parent.parent / "native"
_PREBUILT: Final = Path(__file__).parent.parent / "_native.so"
_COLUMNS: Final = ("vcpu", "reason", "isa", "rip", "info1", "info2", "intr_info", "error_code")
_NOTES: Final = 4096


class _Plan(C.Structure):
    _fields_ = (
        ("event", C.c_uint32),
        ("kind", C.c_uint32),
        ("size", C.c_uint32),
        ("offset", C.c_uint32 * len(_COLUMNS)),
        ("width", C.c_uint32 * len(_COLUMNS)),
    )


class _Layout(C.Structure):
    _fields_ = (
        ("tid", C.c_int32),
        ("time", C.c_int32),
        ("cpu", C.c_int32),
        ("variable", C.c_int32),
        ("has_read", C.c_uint32),
        ("read_format", C.c_uint32),
        ("has_callchain", C.c_uint32),
    )


class _Decode(C.Structure):
    _fields_ = (
        ("newest", C.c_uint64),
        ("newest_at_round", C.c_uint64),
        ("safe_until", C.c_uint64),
        ("end", C.c_uint64),
        ("rows", C.c_uint64),
        ("others", C.c_uint64),
        ("notes", C.c_uint64),
        ("stopped", C.c_uint32),
    )


_EXIT_TOTALS: Final = np.dtype(
    [("level", "<u4"), ("code", "<u4")]
    + [(name, "<u8") for name in ("count", "timed", "total_ns", "min_ns", "max_ns", "reflected")]
    + [("squares", "<f8")]
)
_CAUSED_TOTALS: Final = np.dtype([("parent", "<u4"), ("code", "<u4"), ("count", "<u8")])


def library() -> C.CDLL | None:
    """The native library, or None where it is turned off or can be neither found nor built."""
    return None if os.environ.get("LZERO_NATIVE") == "0" else _load()


@cache
def _load() -> C.CDLL | None:
    digest = source_digest(_SOURCES)
    native = _open(_PREBUILT)
    if native is None or C.cast(native.lz_digest(), C.c_char_p).value != digest.encode():
        native = _open(_build(digest))
    if native is None:
        return None
    pointer, number = C.c_void_p, C.c_uint64
    native.lz_decode.argtypes = [pointer, number, pointer, pointer, C.c_uint32, pointer, pointer, number, pointer]
    native.lz_decode.restype = None
    native.lz_pages.argtypes = [
        pointer,
        number,
        pointer,
        pointer,
        C.c_uint32,
        C.c_int32,
        pointer,
        pointer,
        number,
        pointer,
    ]
    native.lz_pages.restype = None
    native.lz_order.argtypes = [pointer, number, pointer]
    native.lz_totals_new.restype = pointer
    native.lz_totals_free.argtypes = [pointer]
    native.lz_totals_free.restype = None
    native.lz_totals_feed.argtypes = [pointer, pointer, number]
    native.lz_totals_finish.argtypes = [pointer]
    for function in (native.lz_totals_exits, native.lz_totals_caused):
        function.argtypes = [pointer, pointer, number]
        function.restype = number
    native.lz_totals_backwards.argtypes = [pointer, pointer]
    native.lz_totals_backwards.restype = number
    return native


def _open(path: Path | None) -> C.CDLL | None:
    """The library at a path, None where there is none that can be loaded."""
    if path is None or not path.exists():
        return None
    try:
        native = C.CDLL(str(path))
        native.lz_digest.restype = C.c_void_p
    except (OSError, AttributeError):
        return None
    return native


def _build(digest: str) -> Path | None:
    """Out of the user's cache; None without a compiler."""
    try:
        return build_library("_events", sorted(_SOURCES.glob("*.c")), digest)
    except NativeBuildError:
        return None


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


class NativeDecoder:
    """Decodes blocks of perf records whose samples all have one layout."""

    def __init__(self, native: C.CDLL, layout: SampleLayout, plans: dict[int, EventPlan]) -> None:
        self._native = native
        part = {name: -1 if word is None else word for name, word in (("tid", layout.tid), ("time", layout.time))}
        self._layout = _Layout(
            part["tid"],
            part["time"],
            -1 if layout.cpu is None else layout.cpu,
            layout.variable,
            bool(layout.sample_type & SAMPLE_READ),
            layout.read_format,
            bool(layout.sample_type & SAMPLE_CALLCHAIN),
        )
        self._smallest = layout.variable + 1
        self._plans = (_Plan * len(plans))(*(_native_plan(event, plan) for event, plan in plans.items()))
        self._notes = np.empty(_NOTES, np.uint64)
        self.state = _Decode()

    def decode(self, words: NDArray[np.uint64]) -> tuple[Rows, NDArray[np.uint64]]:
        """Rows of the samples of a block, and the words at which records of lost events start.

        :attr:`state` says where decoding ended and whether it was stopped by a record that the caller has to look at.
        """
        rows = np.empty(words.size // self._smallest + 1, event_dtype())
        self._native.lz_decode(
            _address(words),
            words.size,
            C.byref(self._layout),
            self._plans,
            len(self._plans),
            _address(rows),
            _address(self._notes),
            self._notes.size,
            C.byref(self.state),
        )
        return rows[: self.state.rows], self._notes[: self.state.notes]


class _PageLayout(C.Structure):
    _fields_ = (("page_size", C.c_uint32), ("timestamp", C.c_uint32), ("commit", C.c_uint32), ("data", C.c_uint32))


class _PageDecode(C.Structure):
    _fields_ = tuple((name, C.c_uint64) for name in ("reached", "rows", "others", "shorts", "first_short", "notes"))


_PAGE_NOTE: Final = np.dtype([("page", "<u8"), ("number", "<u8"), ("kind", "<u4"), ("unused", "<u4")])
_PAGE_DAMAGED: Final = 1
_SMALLEST_EVENT: Final = 8


@dataclass(frozen=True, slots=True)
class NativePages:
    """What :meth:`NativePageDecoder.decode` found; fields as of
    :class:`~lzero.trace.readers.binary.ring_pages.PageEvents`.
    """

    rows: Rows
    reached: int
    """Time stamp of the last event of the block, of any kind; 0 without one."""
    others: int
    shorts: int
    first_short: int
    missed: tuple[tuple[int, int], ...]
    damaged: tuple[int, ...]


class NativePageDecoder:
    """Decodes blocks of ring-buffer pages."""

    def __init__(self, native: C.CDLL, layout: PageLayout, plans: dict[int, EventPlan]) -> None:
        self._native = native
        self._layout = layout
        self._smallest = max(min((plan.size for plan in plans.values()), default=0), _SMALLEST_EVENT)
        self._plans = (_Plan * len(plans))(*(_native_plan(event, plan) for event, plan in plans.items()))

    def decode(self, pages: NDArray[np.uint8], page_size: int, cpu: int) -> NativePages:
        """The rows of whole pages, with time stamps as they are."""
        count = pages.size // page_size
        layout = _PageLayout(page_size, self._layout.timestamp, self._layout.commit, self._layout.data)
        rows = np.empty(pages.size // (4 + self._smallest) + 1, event_dtype())
        notes = np.zeros(2 * count, _PAGE_NOTE)
        state = _PageDecode()
        self._native.lz_pages(
            _address(pages),
            count,
            C.byref(layout),
            self._plans,
            len(self._plans),
            cpu,
            _address(rows),
            _address(notes),
            notes.size,
            C.byref(state),
        )
        found = notes[: state.notes].tolist()
        return NativePages(
            rows=rows[: state.rows],
            reached=state.reached,
            others=state.others,
            shorts=state.shorts,
            first_short=state.first_short,
            missed=tuple((page, number) for page, number, kind, _ in found if kind != _PAGE_DAMAGED),
            damaged=tuple(page for page, _, kind, _ in found if kind == _PAGE_DAMAGED),
        )


def _native_plan(event: int, plan: EventPlan) -> _Plan:
    native = _Plan(event, int(plan.kind), plan.size)
    for name, field in plan.columns:
        column = _COLUMNS.index(name)
        native.offset[column], native.width[column] = field.offset, field.size
    return native


def order_rows(rows: Sequence[Rows]) -> Rows | None:
    """Several arrays of rows as one in order of time; None without the library."""
    native = library()
    if native is None:
        return None
    every = rows[0] if len(rows) == 1 else np.concatenate(rows)
    every = np.ascontiguousarray(every)
    ordered = np.empty_like(every)
    if native.lz_order(_address(every), every.size, _address(ordered)):
        raise MemoryError(f"no memory to order {every.size} events")
    return ordered


def native_totals(read: Callable[[], Iterator[Rows]], diagnosis: Diagnosis) -> Aggregates | None:
    """Totals of the events that ``read()`` delivers; None, with nothing read, where there is no library."""
    native = library()
    if native is None:
        return None
    totals = NativeTotals(native)
    for events in read():
        totals.feed(events)
    return totals.finish(diagnosis)


class NativeTotals:
    """Adds up events as :mod:`lzero.trace.assemble` and :mod:`lzero.trace.aggregates` together do, without rows
    between.
    """

    def __init__(self, native: C.CDLL) -> None:
        self._native = native
        self._totals = self._checked(native.lz_totals_new())

    def _checked(self, pointer: int | None) -> int:
        if pointer is None:
            raise MemoryError("no memory for totals")
        return pointer

    def feed(self, events: Rows) -> None:
        """Take further events, in the order of the recording."""
        events = np.ascontiguousarray(events)
        if self._native.lz_totals_feed(self._totals, _address(events), events.size):
            raise MemoryError("no memory for totals")

    def finish(self, diagnosis: Diagnosis) -> Aggregates:
        """The totals of everything fed; the object cannot be used afterwards."""
        if self._native.lz_totals_finish(self._totals):
            raise MemoryError("no memory for totals")
        aggregates = Aggregates()
        for row in self._read(self._native.lz_totals_exits, _EXIT_TOTALS):
            level, code, count, timed, total, low, high, reflected, squares = row
            aggregates.exits[level, code] = Totals(count, timed, total, low, high, squares)
            if reflected:
                aggregates.reflected[code] = reflected
        for parent, code, count in self._read(self._native.lz_totals_caused, _CAUSED_TOTALS):
            aggregates.caused[parent, code] = count
        first = C.c_uint64()
        backwards = int(self._native.lz_totals_backwards(self._totals, C.byref(first)))
        self.close()
        if backwards:
            text = "the clock of a VCPU goes backwards; the duration of the exit is unknown"
            diagnosis.problem("clock goes backwards", f"time {first.value / 1e9:.6f}", text, backwards)
        return aggregates

    def _read(self, function: Any, dtype: np.dtype[Any]) -> list[tuple[Any, ...]]:
        count = int(function(self._totals, None, 0))
        rows = np.empty(count, dtype)
        function(self._totals, _address(rows), count)
        return list(rows.tolist())

    def close(self) -> None:
        """Free the totals."""
        if self._totals:
            self._native.lz_totals_free(self._totals)
            self._totals = 0

    def __del__(self) -> None:
        self.close()
