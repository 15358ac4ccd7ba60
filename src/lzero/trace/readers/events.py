"""What every reader of another tool's recording delivers: batches of host trace events, and a diagnosis of what it
could not read.

A reader yields arrays of :func:`event_dtype`, in the order of the recording; :mod:`lzero.trace.assemble` turns them
into rows of the schema (exit paired with the next entry, level and parent from the nested events). A reader never
raises for bad input after its header: it keeps what it can, and counts and locates the rest in :class:`Diagnosis`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from lzero.errors import TraceFormatError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EVENT_FIELDS", "Diagnosis", "EventKind", "Problem", "event_dtype"]

_KEPT_PROBLEMS: Final = 20


class EventKind(IntEnum):
    """Which KVM tracepoint an event is (field ``kind``)."""

    EXIT = 1
    """kvm_exit."""
    ENTRY = 2
    """kvm_entry."""
    NESTED_VMEXIT = 3
    """kvm_nested_vmexit: the kvm_exit before it on this VCPU was of L2."""
    NESTED_INJECT = 4
    """kvm_nested_vmexit_inject: L0 reflects an exit to L1; L1 runs next."""
    NESTED_VMENTER = 5
    """kvm_nested_vmenter (kvm_nested_vmrun before Linux 6.3): L2 runs next."""


EVENT_FIELDS: Final = (
    ("kind", "u1"),  # EventKind
    ("isa", "u1"),  # 1 VMX, 2 SVM
    ("cpu", "<i2"),  # physical CPU, -1 unknown
    ("thread", "<i4"),  # host thread, -1 unknown
    ("vcpu", "<i4"),  # -1 unknown
    ("time_ns", "<u8"),  # host trace clock
    ("reason", "<u4"),  # whole exit reason, bit 31 failed entry
    ("rip", "<u8"),
    ("info1", "<u8"),
    ("info2", "<u8"),
    ("intr_info", "<u4"),
    ("error_code", "<u4"),
)


def event_dtype() -> np.dtype[Any]:
    """The structured dtype of a batch of events; fields an event does not have are 0."""
    import numpy as np

    return np.dtype(list(EVENT_FIELDS))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be read: what, and where (``line 12``, ``offset 0x40``)."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(slots=True)
class Diagnosis:
    """What a reader met. With ``strict`` the first problem raises instead of being counted.

    Attributes
    ----------
    source:
        Name of the input, for messages.
    strict:
        Whether a problem is an error.
    events:
        Events delivered.
    others:
        Well-formed events of other kinds, which the schema has no use for.
    lost:
        Events the recording tool says it lost.
    problems:
        Number of problems per kind (``cut line``, ``unknown reason``, ...).
    located:
        The first problems, with their places.
    """

    source: str
    strict: bool = False
    events: int = 0
    others: int = 0
    lost: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    located: list[Problem] = field(default_factory=list)

    def problem(self, kind: str, where: str, what: str | None = None, count: int = 1) -> None:
        """Count a problem of `kind` found at `where` (``line 12``, ``offset 0x40``); `what` gives the detail.

        Raises
        ------
        TraceFormatError
            In strict mode.
        """
        if self.strict:
            raise TraceFormatError(f"{self.source}: {where}: {what or kind}")
        self.problems[kind] += count
        if len(self.located) < _KEPT_PROBLEMS:
            self.located.append(Problem(what or kind, where))

    def lose(self, count: int, where: str) -> None:
        """Count `count` events (at least 1) that the recording tool lost, as told at `where`."""
        self.lost += count
        self.problem("lost events", where, f"{count} events were lost by the recording tool")

    def summary(self) -> list[str]:
        """Lines for people: nothing when everything was read."""
        if not self.problems:
            return []
        kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(self.problems.items()))
        lines = [f"{self.source}: read {self.events} events; {kinds}"]
        if self.lost:
            lines.append(f"  {self.lost} events were lost while recording: counts are too low")
        lines += [f"  {problem}" for problem in self.located]
        hidden = sum(self.problems.values()) - len(self.located)
        if hidden > 0:
            lines.append(f"  and {hidden} more")
        return lines
