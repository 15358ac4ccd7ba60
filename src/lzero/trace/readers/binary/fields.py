"""From the bytes of KVM's tracepoints to rows of :func:`lzero.trace.readers.events.event_dtype`, many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lzero.trace.readers.binary.formats import EventFormat, Field
from lzero.trace.readers.events import EventKind, event_dtype

__all__ = ["Buffer", "EventPlan", "Indices", "KVM_EVENTS", "Rows", "plan_events"]

Indices = NDArray[np.int64]
Rows = NDArray[Any]

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

_DTYPE = {
    name: event_dtype()[name] for name in ("vcpu", "reason", "isa", "rip", "info1", "info2", "intr_info", "error_code")
}


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
        """The unsigned numbers of ``size`` bytes (1 to 8) at byte offsets ``at``, which must share their alignment."""
        align = int(at[0]) if at.size else 0
        value: NDArray[np.uint64]
        if size == 8 and align % 8 == 0:
            value = self.words64[at >> 3]
        elif size == 8 and align % 4 == 0:
            low = at >> 2
            high = self.words32[low + 1].astype(np.uint64)
            value = self.words32[low].astype(np.uint64) | (high << np.uint64(32))
        elif size == 4 and align % 4 == 0:
            value = self.words32[at >> 2].astype(np.uint64)
        elif size == 2 and align % 2 == 0:
            value = self.words16[at >> 1].astype(np.uint64)
        else:
            value = np.zeros(at.size, np.uint64)
            for byte in range(size):
                value |= self.bytes[at + byte].astype(np.uint64) << np.uint64(8 * byte)
        return value


@dataclass(frozen=True, slots=True)
class EventPlan:
    """How one tracepoint's bytes become columns."""

    kind: EventKind
    columns: tuple[tuple[str, Field], ...]
    size: int
    """Bytes of the event that the columns need."""
    default_isa: int

    def fill(self, buffer: Buffer, at: Indices, rows: Rows, places: NDArray[Any]) -> None:
        """Set the columns of ``rows[places]`` from the events that start at byte offsets ``at``."""
        rows["kind"][places] = int(self.kind)
        if not any(name == "isa" for name, _ in self.columns):
            rows["isa"][places] = self.default_isa
        if not any(name == "vcpu" for name, _ in self.columns):
            rows["vcpu"][places] = -1
        for name, field in self.columns:
            values = buffer.gather(at + field.offset, field.size)
            rows[name][places] = values.astype(_DTYPE[name], copy=False)


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
    # Before 2010 the event had no isa field and only VT-x printed through these names.
    return EventPlan(kind, tuple(columns), size, default_isa=1)
