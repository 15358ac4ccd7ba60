"""Exception and interrupt vectors 0 to 31 (SDM vol. 3, chapter 6, tables 6-1 and 6-4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

__all__ = ["VECTORS", "ExceptionClass", "ExceptionKind", "Vector", "VectorRow", "has_error_code"]


class Vector(IntEnum):
    """Architecturally defined vectors by mnemonic."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    CSO = 9
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21

    @property
    def has_error_code(self) -> bool:
        """Delivery pushes an error code (in protected mode)."""
        return VECTORS[self].has_error_code

    @property
    def exception_class(self) -> ExceptionClass:
        """Class that decides whether a second exception makes a double fault."""
        return VECTORS[self].exception_class

    @property
    def is_contributory(self) -> bool:
        """A contributory exception in the sense of table 6-4."""
        return VECTORS[self].exception_class is ExceptionClass.CONTRIBUTORY

    @property
    def is_fault(self) -> bool:
        """The saved RIP points at the instruction (#DB can be either: then this is False)."""
        return VECTORS[self].kind is ExceptionKind.FAULT

    @property
    def is_trap(self) -> bool:
        """The saved RIP points after the instruction."""
        return VECTORS[self].kind is ExceptionKind.TRAP

    @property
    def is_abort(self) -> bool:
        """The program cannot be restarted."""
        return VECTORS[self].kind is ExceptionKind.ABORT


class ExceptionKind(Enum):
    """How an exception reports its place (6.5)."""

    FAULT = "fault"
    TRAP = "trap"
    ABORT = "abort"
    FAULT_OR_TRAP = "fault or trap"
    INTERRUPT = "interrupt"


class ExceptionClass(Enum):
    """Classes of the double-fault rule (table 6-4, "Interrupt and Exception Classes")."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    PAGE_FAULT = "page fault"
    DOUBLE_FAULT = "double fault"


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One vector, with the manual's section."""

    vector: Vector
    sdm_name: str
    kind: ExceptionKind
    has_error_code: bool
    exception_class: ExceptionClass
    section: str


_K, _C = ExceptionKind, ExceptionClass
_ROWS = (
    VectorRow(Vector.DE, "Divide Error", _K.FAULT, False, _C.CONTRIBUTORY, "6.15"),
    VectorRow(Vector.DB, "Debug Exception", _K.FAULT_OR_TRAP, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.NMI, "NMI Interrupt", _K.INTERRUPT, False, _C.BENIGN, "6.7"),
    VectorRow(Vector.BP, "Breakpoint", _K.TRAP, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.OF, "Overflow", _K.TRAP, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.BR, "BOUND Range Exceeded", _K.FAULT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.UD, "Invalid Opcode", _K.FAULT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.NM, "Device Not Available", _K.FAULT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.DF, "Double Fault", _K.ABORT, True, _C.DOUBLE_FAULT, "6.15"),
    VectorRow(Vector.CSO, "Coprocessor Segment Overrun", _K.FAULT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.TS, "Invalid TSS", _K.FAULT, True, _C.CONTRIBUTORY, "6.15"),
    VectorRow(Vector.NP, "Segment Not Present", _K.FAULT, True, _C.CONTRIBUTORY, "6.15"),
    VectorRow(Vector.SS, "Stack-Segment Fault", _K.FAULT, True, _C.CONTRIBUTORY, "6.15"),
    VectorRow(Vector.GP, "General Protection", _K.FAULT, True, _C.CONTRIBUTORY, "6.15"),
    VectorRow(Vector.PF, "Page Fault", _K.FAULT, True, _C.PAGE_FAULT, "6.15"),
    VectorRow(Vector.MF, "x87 FPU Floating-Point Error", _K.FAULT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.AC, "Alignment Check", _K.FAULT, True, _C.BENIGN, "6.15"),
    VectorRow(Vector.MC, "Machine Check", _K.ABORT, False, _C.BENIGN, "6.15"),
    VectorRow(Vector.XM, "SIMD Floating-Point Exception", _K.FAULT, False, _C.BENIGN, "6.15"),
    # A virtualization exception takes part in the double-fault rule as a page fault does (26.5.7).
    VectorRow(Vector.VE, "Virtualization Exception", _K.FAULT, False, _C.PAGE_FAULT, "26.5.7"),
    VectorRow(Vector.CP, "Control Protection Exception", _K.FAULT, True, _C.CONTRIBUTORY, "6.15"),
)

VECTORS: Mapping[int, VectorRow] = MappingProxyType({int(row.vector): row for row in _ROWS})
"""Known vectors by number; vectors 15 and 22 to 31 are reserved."""

_ERROR_CODE_VECTORS = frozenset(int(row.vector) for row in _ROWS if row.has_error_code)


def has_error_code(vector: int) -> bool:
    """Delivery of this vector as a hardware exception pushes an error code; any int is accepted."""
    return vector in _ERROR_CODE_VECTORS
