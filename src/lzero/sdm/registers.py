"""Bits of control, debug and flag registers, and segment access rights (SDM vol. 3, 2.3, 2.5, 18.2; 25.4.1).

The classes are ``IntFlag``; ``*_RESERVED`` constants are masks of bits that must be written as 0 on any processor.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "BUSY_TSS",
    "BUSY_TSS_16",
    "LDT",
    "CR0_RESERVED",
    "CR4_RESERVED",
    "DR6_ALWAYS_ONE",
    "DR7_ALWAYS_ONE",
    "DR7_RESERVED",
    "RFLAGS_ALWAYS_ONE",
    "RFLAGS_RESERVED",
    "AccessRights",
    "ApicBase",
    "Cr0",
    "Cr4",
    "DebugCtl",
    "Dr6",
    "Dr7",
    "Efer",
    "PageFaultCode",
    "Rflags",
    "SegmentType",
    "access_rights",
    "access_rights_from_descriptor",
    "descriptor_attributes",
    "dpl_of",
    "is_canonical",
    "is_present",
    "is_unusable",
    "segment_type",
]


class Cr0(IntFlag):
    """CR0 (2.5)."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


CR0_RESERVED = 0xFFFF_FFFF_FFFF_FFFF & ~sum(Cr0)
"""Bits of CR0 that are not defined (bits 63:32 cause #GP, the others are ignored by MOV to CR0)."""


class Cr4(IntFlag):
    """CR4 (2.5)."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24
    UINTR = 1 << 25
    LAM_SUP = 1 << 28
    FRED = 1 << 32


CR4_RESERVED = 0xFFFF_FFFF_FFFF_FFFF & ~sum(Cr4)
"""Bits of CR4 that no processor defines."""


class Efer(IntFlag):
    """IA32_EFER (2.2.1)."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


class Rflags(IntFlag):
    """RFLAGS (2.3 and vol. 1, 3.4.3)."""

    CF = 1 << 0
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


RFLAGS_ALWAYS_ONE = 1 << 1
"""Bit 1 of RFLAGS reads as 1."""
RFLAGS_RESERVED = 0xFFFF_FFFF_FFC0_8028
"""Bits of RFLAGS that must be 0: 63:22, 15, 5 and 3."""


class Dr6(IntFlag):
    """DR6, debug status (18.2.3). ``BLD`` and ``RTM`` are active low."""

    B0 = 1 << 0
    B1 = 1 << 1
    B2 = 1 << 2
    B3 = 1 << 3
    BLD = 1 << 11
    BD = 1 << 13
    BS = 1 << 14
    BT = 1 << 15
    RTM = 1 << 16


DR6_ALWAYS_ONE = 0xFFFF_0FF0
"""DR6 as it is after reset: what is written as 1 and reads as 1 without a debug event."""


class Dr7(IntFlag):
    """DR7, debug control (18.2.4); the R/W and LEN fields are two bits each from bit 16 up."""

    L0 = 1 << 0
    G0 = 1 << 1
    L1 = 1 << 2
    G1 = 1 << 3
    L2 = 1 << 4
    G2 = 1 << 5
    L3 = 1 << 6
    G3 = 1 << 7
    LE = 1 << 8
    GE = 1 << 9
    RTM = 1 << 11
    GD = 1 << 13


DR7_ALWAYS_ONE = 1 << 10
"""Bit 10 of DR7 reads as 1; 0x400 is the value after reset and after a VM exit."""
DR7_RESERVED = 0xFFFF_FFFF_0000_D000
"""Bits of DR7 that read as 0: 63:32 (writing 1 is #GP), 15, 14 and 12."""


class DebugCtl(IntFlag):
    """IA32_DEBUGCTL (18.4.1)."""

    LBR = 1 << 0
    BTF = 1 << 1
    BUS_LOCK_DETECT = 1 << 2
    TR = 1 << 6
    BTS = 1 << 7
    BTINT = 1 << 8
    BTS_OFF_OS = 1 << 9
    BTS_OFF_USR = 1 << 10
    FREEZE_LBRS_ON_PMI = 1 << 11
    FREEZE_PERFMON_ON_PMI = 1 << 12
    ENABLE_UNCORE_PMI = 1 << 13
    FREEZE_WHILE_SMM = 1 << 14
    RTM = 1 << 15


class ApicBase(IntFlag):
    """IA32_APIC_BASE (11.4.4, 11.12.1); the base address is in bits MAXPHYADDR-1:12."""

    BSP = 1 << 8
    EXTD = 1 << 10
    ENABLE = 1 << 11


class PageFaultCode(IntFlag):
    """Error code of a page fault (4.7, figure 4-12)."""

    PRESENT = 1 << 0
    WRITE = 1 << 1
    USER = 1 << 2
    RESERVED = 1 << 3
    FETCH = 1 << 4
    PROTECTION_KEY = 1 << 5
    SHADOW_STACK = 1 << 6
    SGX = 1 << 15


class AccessRights(IntFlag):
    """Segment access rights as a VMCS holds them (25.4.1, table 25-2); TYPE and DPL are fields."""

    TYPE = 0xF
    S = 1 << 4
    DPL = 3 << 5
    P = 1 << 7
    AVL = 1 << 12
    L = 1 << 13
    DB = 1 << 14
    G = 1 << 15
    UNUSABLE = 1 << 16


class SegmentType(IntEnum):
    """Types that a VMCS's access rights may hold for the usable registers (27.3.1.2)."""

    DATA_READ_WRITE_ACCESSED = 3
    DATA_READ_WRITE_EXPAND_DOWN_ACCESSED = 7
    CODE_EXECUTE_ACCESSED = 9
    CODE_EXECUTE_READ_ACCESSED = 11
    CODE_CONFORMING_EXECUTE_ACCESSED = 13
    CODE_CONFORMING_EXECUTE_READ_ACCESSED = 15


LDT = 2
"""System type of a local descriptor table."""
BUSY_TSS_16 = 3
"""System type of a busy 16-bit task-state segment."""
BUSY_TSS = 11
"""System type of a busy 32-bit or 64-bit task-state segment."""


def segment_type(rights: int) -> int:
    """Bits 3:0 of access rights."""
    return rights & 0xF


def dpl_of(rights: int) -> int:
    """Descriptor privilege level, bits 6:5 of access rights."""
    return rights >> 5 & 3


def is_present(rights: int) -> bool:
    """Bit 7 of access rights."""
    return bool(rights & 0x80)


def is_unusable(rights: int) -> bool:
    """Bit 16 of access rights: the register holds no segment."""
    return bool(rights & 0x1_0000)


def access_rights(
    type_: int,
    *,
    s: bool = True,
    dpl: int = 0,
    present: bool = True,
    avl: bool = False,
    long: bool = False,
    db: bool = False,
    granularity: bool = False,
) -> int:
    """Access rights of a usable segment register.

    Raises
    ------
    ValueError
        ``type_`` is not in 0 to 15 or ``dpl`` not in 0 to 3.
    """
    if not 0 <= type_ <= 15:
        raise ValueError(f"segment type {type_} is not in 0..15")
    if not 0 <= dpl <= 3:
        raise ValueError(f"DPL {dpl} is not in 0..3")
    return type_ | s << 4 | dpl << 5 | present << 7 | avl << 12 | long << 13 | db << 14 | granularity << 15


def access_rights_from_descriptor(descriptor: int) -> int:
    """Access rights of an 8-byte descriptor: its bits 47:40 and 55:52, with the limit's bits left out."""
    return descriptor >> 40 & 0xF0FF


def descriptor_attributes(rights: int) -> int:
    """Bits of an 8-byte descriptor that these access rights stand for (inverse of the above)."""
    return (rights & 0xF0FF) << 40


def is_canonical(address: int, width: int = 48) -> bool:
    """A linear address whose bits from ``width - 1`` up are all equal (vol. 1, 3.3.7.1)."""
    top = address >> (width - 1)
    return top == 0 or top == (1 << (65 - width)) - 1
