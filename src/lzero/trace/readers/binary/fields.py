"""From the bytes of KVM's tracepoints to rows of :func:`lzero.trace.readers.events.event_dtype`, many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lzero.trace.readers.binary.formats import EventFormat, Field
from lzero.trace.readers.events import EventKind, event_dtype

__all__ = ["Buffer", "EventPlan", "Indices", "KVM_EVENTS", "Places", "RowMatrix", "Rows", "plan_events", "take_rows"]

Indices = NDArray[np.int64]
Rows = NDArray[Any]
Places = NDArray[np.int64] | slice

KVM_EVENTS: Final[Mapping[str, EventKind]] = {
    "kvm_exit": EventKind.EXIT,
    "kvm_entry": EventKind.ENTRY,
    "kvm_nested_vmexit": EventKind.NESTED_VMEXIT,
    "kvm_nested_vmexit_inject": EventKind.NESTED_INJECT,
    "kvm_nested_vmenter": EventKind.NESTED_VMENTER,
    "kvm_nested_vmrun": EventKind.NESTED_VMENTER,
}
"""Tracepoints that the schema has a use for; ``kvm_nested_vmrun`` is the name before Linux 6.3."""

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "vcpu": ("vcpu_id",),
    "reason": ("exit_reason", "exit_code"),
    "isa": ("isa",),
    "rip": ("guest_rip", "rip"),
    "info1": ("info1", "exit_info1"),
    "info2": ("info2", "exit_info2"),
    "intr_info": ("intr_info", "exit_int_info"),
    "error_code": ("error_code", "exit_int_info_err"),
}
"""Column to the names that kernels have given the field, newest first."""

_DTYPE: Final = event_dtype()
_WORD_OF: Final = {name: int(place) // 4 for name, (_, place, *_) in (_DTYPE.fields or {}).items()}
_WIDE: Final = frozenset({"rip", "info1", "info2"})
_NO_VCPU: Final = 0xFFFF_FFFF


class Buffer:
    """Bytes seen as 8-, 16-, 32- and 64-bit words at once; its start is aligned to 8 bytes and its size a multiple of
    8.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.bytes = data
        self.words16 = data.view("<u2")
        self.words32 = data.view("<u4")
        self.words64 = data.view("<u8")

    def gather(self, at: Indices, size: int) -> NDArray[np.uint64]:
        """The unsigned numbers of ``size`` bytes (1 to 8) at byte offsets ``at``."""
        low, high = self.halves(at, size)
        value = low.astype(np.uint64)
        return value if isinstance(high, int) else value | (high.astype(np.uint64) << np.uint64(32))

    def halves(self, at: Indices, size: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32] | int]:
        """The same as two 32-bit halves."""
        if size <= 4:
            return self.low(at, size), 0
        return self.low(at, 4), self.low(at + 4, size - 4)

    def low(self, at: Indices, size: int) -> NDArray[np.uint32]:
        """The unsigned numbers of the first 4 of ``size`` bytes at byte offsets ``at``, which share their alignment."""
        align = int(at[0]) if at.size else 0
        if size >= 4 and align % 4 == 0:
            return self.words32.take(at >> 2)
        if size == 2 and align % 2 == 0:
            return self.words16.take(at >> 1).astype(np.uint32)
        value = np.zeros(at.size, np.uint32)
        for byte in range(min(size, 4)):
            value |= self.bytes.take(at + byte).astype(np.uint32) << np.uint32(8 * byte)
        return value


class RowMatrix:
    """Rows under construction, as a matrix of 32-bit words.

    The columns of an event all start at multiples of 4 bytes, but not of 8: numpy fills a column of aligned 32-bit
    words several times faster than one of a packed structure.
    """

    def __init__(self, count: int) -> None:
        self.words = np.zeros((count, _DTYPE.itemsize // 4), np.uint32)

    def set_first(self, places: Places, kind: EventKind, isa: NDArray[np.uint32] | int) -> None:
        """Set ``kind`` and ``isa``, which share the first word with ``cpu``."""
        self.words[places, 0] |= np.uint32(int(kind)) | (np.asarray(isa, np.uint32) & np.uint32(0xFF)) << np.uint32(8)

    def set_cpu(self, cpu: NDArray[np.uint64] | int) -> None:
        """Set ``cpu`` of all rows."""
        self.words[:, 0] |= (np.asarray(cpu).astype(np.uint32) & np.uint32(0xFFFF)) << np.uint32(16)

    def set32(self, column: str, places: Places, values: NDArray[Any] | int) -> None:
        """Set a column of 32 bits."""
        self.words[places, _WORD_OF[column]] = values

    def set64(self, column: str, places: Places, low: NDArray[Any], high: NDArray[Any] | int) -> None:
        """Set the two halves of a column of 64 bits."""
        self.words[places, _WORD_OF[column]] = low
        self.words[places, _WORD_OF[column] + 1] = high

    def rows(self) -> Rows:
        """The rows."""
        return self.words.view(_DTYPE).reshape(-1)


def take_rows(rows: Rows, order: NDArray[np.int64]) -> Rows:
    """``rows[order]``, several times faster than numpy copies structures one by one."""
    words = rows.view(np.uint32).reshape(rows.size, _DTYPE.itemsize // 4)
    return words.take(order, axis=0).view(_DTYPE).reshape(-1)


@dataclass(frozen=True, slots=True)
class EventPlan:
    """How one tracepoint's bytes become columns."""

    kind: EventKind
    columns: tuple[tuple[str, Field], ...]
    size: int
    """Bytes of the event that the columns need."""

    def fill(self, buffer: Buffer, at: Indices, matrix: RowMatrix, places: Places) -> None:
        """Set the columns of the rows ``places`` from the events that start at byte offsets ``at``."""
        # The oldest kernels had no isa field; VT-x's numbers are taken.
        isa: NDArray[np.uint32] | int = 1
        if not any(name == "vcpu" for name, _ in self.columns):
            matrix.set32("vcpu", places, _NO_VCPU)
        for name, field in self.columns:
            if name == "isa":
                isa = buffer.low(at + field.offset, field.size)
            elif name in _WIDE:
                low, high = buffer.halves(at + field.offset, field.size)
                matrix.set64(name, places, low, high)
            else:
                matrix.set32(name, places, buffer.low(at + field.offset, field.size))
        matrix.set_first(places, self.kind, isa)


def plan_events(events: Mapping[int, EventFormat]) -> dict[int, EventPlan]:
    """Plans by event number for the tracepoints of :data:`KVM_EVENTS` that a recording describes."""
    return {
        number: _plan(KVM_EVENTS[event.name], event)
        for number, event in events.items()
        if event.system in ("kvm", "kvmmmu", "") and event.name in KVM_EVENTS
    }


def _plan(kind: EventKind, event: EventFormat) -> EventPlan:
    columns: list[tuple[str, Field]] = []
    for column, names in _NAMES.items():
        field = next((event.fields[name] for name in names if name in event.fields), None)
        if field is not None and 1 <= field.size <= 8:
            columns.append((column, field))
    size = max((field.offset + field.size for _, field in columns), default=0)
    return EventPlan(kind, tuple(columns), size)
