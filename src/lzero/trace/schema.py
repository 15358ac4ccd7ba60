"""The columns of a recorded exit: one row per VM exit, whoever recorded it.

The table :data:`COLUMNS` is the schema. The recorder's binary layout, the Parquet files, the readers of other tools'
recordings and ``docs/traces.md`` are derived from it, so a column is added here and nowhere else.

Every column always has a value. What a source does not tell has the column's ``unknown`` value (a duration of 0 is
*unknown*, never "no time"), so that no reader needs to deal with nulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = [
    "COLUMNS",
    "COLUMN_NAMES",
    "SCHEMA_VERSION",
    "Column",
    "HandledBy",
    "Isa",
    "numpy_dtype",
    "polars_schema",
]

SCHEMA_VERSION: Final = 1
"""Written into every Parquet file as ``lzero.trace.schema``; a reader refuses a newer one."""


class HandledBy(IntEnum):
    """Who dealt with the event of a row (column ``handled_by``)."""

    PROCESSOR = 0
    """The processor itself, without an exit: a VMREAD or VMWRITE that the shadow VMCS served. Not counted as an exit.
    """
    L0 = 1
    """The hypervisor under all others."""
    L1 = 2
    """An exit of L2 that L0 reflected to L1."""


class Isa(IntEnum):
    """Which virtualisation extension the reason number belongs to (column ``isa``; same values as KVM's ``kvm_exit``
    event).
    """

    VMX = 1
    SVM = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, numpy type code, the value that means *unknown*, and what it holds."""

    name: str
    type: str
    unknown: int
    meaning: str


COLUMNS: Final[tuple[Column, ...]] = (
    Column("seq", "u8", 0, "number of the exit, rising by time over the whole trace, starting at 0"),
    Column(
        "parent",
        "i8",
        -1,
        "seq of the L2 exit on whose behalf L1 was running when this exit happened (set from its reflection up to "
        "and including the VMRESUME or VMLAUNCH that lets L2 run again); -1: none",
    ),
    Column("parent_reason", "i4", -1, "basic reason of that L2 exit; -1: none"),
    Column("vcpu", "u2", 0, "virtual CPU"),
    Column("level", "u1", 1, "who exited: 1 the guest of L0 (L1), 2 the guest's guest (L2)"),
    Column(
        "reason",
        "u2",
        0,
        "basic exit reason (SDM Appendix C), or the SVM exit code's low 16 bits (APM vol. 2 appendix C)",
    ),
    Column("failed_entry", "?", 0, "bit 31 of the exit reason: the VM entry failed"),
    Column("qualification", "u8", 0, "exit qualification; EXITINFO1 on SVM"),
    Column("rip", "u8", 0, "guest RIP at the exit"),
    Column(
        "instruction_length", "u1", 0, "VM-exit instruction length in bytes; 0: unknown or not defined for the reason"
    ),
    Column("interruption_info", "u4", 0, "VM-exit interruption information; 0: not valid or unknown"),
    Column("error_code", "u4", 0, "VM-exit interruption error code"),
    Column(
        "idt_vectoring", "u4", 0, "IDT-vectoring information; EXITINTINFO's low half on SVM; 0: not valid or unknown"
    ),
    Column(
        "guest_physical_address",
        "u8",
        0,
        "guest-physical address of an EPT violation or misconfiguration (EXITINFO2 of an SVM "
        "nested page fault); 0: unknown",
    ),
    Column("vmcs_field", "i4", -1, "encoding of the field that a VMREAD or VMWRITE names; -1: none or unknown"),
    Column("tsc", "u8", 0, "guest TSC at the exit; 0: unknown"),
    Column(
        "host_ns", "u8", 0, "host time of the exit in ns, from the start of the recording or of the host's trace clock"
    ),
    Column("duration_ns", "u8", 0, "host ns from the exit to the next entry of the VCPU; 0: unknown"),
    Column("handled_by", "u1", 1, "0 the processor (no exit), 1 L0, 2 L1 (reflected): see HandledBy"),
    Column("isa", "u1", 1, "1 VMX, 2 SVM: see Isa"),
    Column("cpu", "i2", -1, "physical CPU; -1: unknown"),
    Column("thread", "i4", -1, "host thread of the VCPU, which tells machines in one trace apart; -1: unknown"),
)

COLUMN_NAMES: Final[tuple[str, ...]] = tuple(column.name for column in COLUMNS)


def numpy_dtype() -> np.dtype[Any]:
    """The packed little-endian structured dtype of a batch of rows."""
    import numpy as np

    return np.dtype([(column.name, column.type if column.type == "?" else "<" + column.type) for column in COLUMNS])


def polars_schema() -> pl.Schema:
    """The same columns as Polars types, in order."""
    import polars as pl

    types: dict[str, type[pl.DataType]] = {
        "u8": pl.UInt64,
        "i8": pl.Int64,
        "u4": pl.UInt32,
        "i4": pl.Int32,
        "u2": pl.UInt16,
        "i2": pl.Int16,
        "u1": pl.UInt8,
        "?": pl.Boolean,
    }
    return pl.Schema({column.name: types[column.type] for column in COLUMNS})
