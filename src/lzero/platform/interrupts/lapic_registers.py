"""The local APIC's registers as data: offset, access in both modes, writable bits, section of the manual.

The MMIO offset is ``index << 4`` in xAPIC mode and the MSR is ``0x800 + index`` in x2APIC mode (SDM Vol. 3, table
11-6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from lzero.platform.registers import Access

__all__ = ["APIC_REGISTERS", "ApicRegister", "ApicRegisterRow", "LVT_COUNT", "X2APIC_MSR_BASE"]

X2APIC_MSR_BASE = 0x800
LVT_COUNT = 6
BITS_32 = 0xFFFF_FFFF


class ApicRegister(IntEnum):
    """Register indexes."""

    ID = 0x02
    VERSION = 0x03
    TPR = 0x08
    APR = 0x09
    PPR = 0x0A
    EOI = 0x0B
    RRD = 0x0C
    LDR = 0x0D
    DFR = 0x0E
    SVR = 0x0F
    ISR = 0x10
    TMR = 0x18
    IRR = 0x20
    ESR = 0x28
    ICR_LOW = 0x30
    ICR_HIGH = 0x31
    LVT_TIMER = 0x32
    LVT_THERMAL = 0x33
    LVT_PERFORMANCE = 0x34
    LVT_LINT0 = 0x35
    LVT_LINT1 = 0x36
    LVT_ERROR = 0x37
    TIMER_INITIAL_COUNT = 0x38
    TIMER_CURRENT_COUNT = 0x39
    TIMER_DIVIDE = 0x3E
    SELF_IPI = 0x3F


@dataclass(frozen=True, slots=True)
class ApicRegisterRow:
    """One local APIC register.

    Parameters
    ----------
    name:
        The manual's name.
    index:
        Number of the (first) register.
    xapic:
        Access by MMIO; None where xAPIC mode has no such register.
    x2apic:
        Access by MSR; None where x2APIC mode has no such register.
    writable:
        Bits that software may set. In x2APIC mode setting another bit is a #GP; by MMIO it is ignored.
    section:
        Section of SDM Vol. 3.
    count:
        Number of consecutive registers (the three 256-bit vectors have eight).
    """

    name: str
    index: int
    xapic: Access | None
    x2apic: Access | None
    writable: int
    section: str
    count: int = 1


_R, _W, _RW = Access.READ, Access.WRITE, Access.READ_WRITE

_ROWS = (
    ApicRegisterRow("Local APIC ID", ApicRegister.ID, _RW, _R, 0xFF00_0000, "11.4.6"),
    ApicRegisterRow("Local APIC Version", ApicRegister.VERSION, _R, _R, 0, "11.4.8"),
    ApicRegisterRow("Task Priority", ApicRegister.TPR, _RW, _RW, 0xFF, "11.8.3.1"),
    ApicRegisterRow("Arbitration Priority", ApicRegister.APR, _R, None, 0, "11.6.2.4"),
    ApicRegisterRow("Processor Priority", ApicRegister.PPR, _R, _R, 0, "11.8.3.1"),
    ApicRegisterRow("EOI", ApicRegister.EOI, _W, _W, 0, "11.8.5"),
    ApicRegisterRow("Remote Read", ApicRegister.RRD, _R, None, 0, "11.4.1"),
    ApicRegisterRow("Logical Destination", ApicRegister.LDR, _RW, _R, 0xFF00_0000, "11.6.2.2"),
    ApicRegisterRow("Destination Format", ApicRegister.DFR, _RW, None, 0xF000_0000, "11.6.2.2"),
    ApicRegisterRow("Spurious Interrupt Vector", ApicRegister.SVR, _RW, _RW, 0x3FF, "11.9"),
    ApicRegisterRow("In-Service", ApicRegister.ISR, _R, _R, 0, "11.8.4", 8),
    ApicRegisterRow("Trigger Mode", ApicRegister.TMR, _R, _R, 0, "11.8.4", 8),
    ApicRegisterRow("Interrupt Request", ApicRegister.IRR, _R, _R, 0, "11.8.4", 8),
    ApicRegisterRow("Error Status", ApicRegister.ESR, _RW, _RW, 0, "11.5.3"),
    ApicRegisterRow("Interrupt Command (low)", ApicRegister.ICR_LOW, _RW, _RW, 0xC_CFFF, "11.6.1"),
    ApicRegisterRow("Interrupt Command (high)", ApicRegister.ICR_HIGH, _RW, None, 0xFF00_0000, "11.6.1"),
    ApicRegisterRow("LVT Timer", ApicRegister.LVT_TIMER, _RW, _RW, 0x7_00FF, "11.5.1"),
    ApicRegisterRow("LVT Thermal Sensor", ApicRegister.LVT_THERMAL, _RW, _RW, 0x1_07FF, "11.5.1"),
    ApicRegisterRow("LVT Performance", ApicRegister.LVT_PERFORMANCE, _RW, _RW, 0x1_07FF, "11.5.1"),
    ApicRegisterRow("LVT LINT0", ApicRegister.LVT_LINT0, _RW, _RW, 0x1_A7FF, "11.5.1"),
    ApicRegisterRow("LVT LINT1", ApicRegister.LVT_LINT1, _RW, _RW, 0x1_A7FF, "11.5.1"),
    ApicRegisterRow("LVT Error", ApicRegister.LVT_ERROR, _RW, _RW, 0x1_00FF, "11.5.1"),
    ApicRegisterRow("Initial Count", ApicRegister.TIMER_INITIAL_COUNT, _RW, _RW, BITS_32, "11.5.4"),
    ApicRegisterRow("Current Count", ApicRegister.TIMER_CURRENT_COUNT, _R, _R, 0, "11.5.4"),
    ApicRegisterRow("Divide Configuration", ApicRegister.TIMER_DIVIDE, _RW, _RW, 0xB, "11.5.4"),
    ApicRegisterRow("SELF IPI", ApicRegister.SELF_IPI, None, _W, 0xFF, "11.12.11"),
)

APIC_REGISTERS: Mapping[int, ApicRegisterRow] = {row.index + i: row for row in _ROWS for i in range(row.count)}
"""Row by register index."""
