"""The processor's state at the guest's first instruction, as each boot protocol defines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lzero.platform.memory import GuestMemory

__all__ = [
    "EntryMode",
    "EntryState",
    "Segment",
    "identity_map",
    "long_mode_entry",
    "protected_mode_entry",
    "real_mode_entry",
]

# Where the loaders put what a boot protocol needs below 640 KiB. Nothing of it overlaps, whatever the protocol.
GDT_ADDRESS = 0x1000
ZERO_PAGE_ADDRESS = 0x2000
PAGE_TABLE_ADDRESS = 0x3000
MULTIBOOT_INFO_ADDRESS = 0x9000
COMMAND_LINE_ADDRESS = 0x2_0000
COMMAND_LINE_LIMIT = 0x1_0000
STACK_TOP = 0x8_0000

CR0_PE, CR0_ET, CR0_NE, CR0_PG = 1 << 0, 1 << 4, 1 << 5, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_RESERVED_ONE = 2

# Access rights as in the VMCS (SDM Vol. 3, 25.4.1): type 3:0, S 4, DPL 6:5, P 7, L 13, D/B 14, G 15, unusable 16.
CODE32, CODE64, DATA32 = 0xC09B, 0xA09B, 0xC093
CODE16, DATA16 = 0x9B, 0x93
TSS_BUSY, LDT_UNUSABLE = 0x8B, 0x1_0082
PAGE_PRESENT_WRITABLE, PAGE_LARGE = 3, 0x80
LARGE_PAGE = 2 << 20


class EntryMode(StrEnum):
    """Processor mode at entry."""

    REAL16 = "real16"
    PROTECTED32 = "protected32"
    LONG64 = "long64"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part; ``access_rights`` in the VMCS's format."""

    selector: int
    base: int
    limit: int
    access_rights: int


@dataclass(frozen=True, slots=True)
class EntryState:
    """Everything the processor needs to enter a guest.

    Parameters
    ----------
    mode:
        Real, protected or 64-bit mode.
    rip, rsp, rflags:
        Where it starts.
    registers:
        General registers that the boot protocol gives a value, by name (``rax`` … ``r15``); all others are 0.
    cr0, cr3, cr4, efer:
        Control registers.
    gdt_base, gdt_limit, idt_base, idt_limit:
        Descriptor-table registers.
    segments:
        ``cs ss ds es fs gs tr ldtr``.
    """

    mode: EntryMode
    rip: int
    rsp: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    gdt_base: int
    gdt_limit: int
    idt_base: int
    idt_limit: int
    segments: Mapping[str, Segment]
    registers: Mapping[str, int] = field(default_factory=dict)
    rflags: int = RFLAGS_RESERVED_ONE


def _segments(code: Segment, data: Segment) -> dict[str, Segment]:
    segments = {name: data for name in ("ss", "ds", "es", "fs", "gs")}
    segments["cs"] = code
    segments["tr"] = Segment(0, 0, 0xFFFF, TSS_BUSY)
    segments["ldtr"] = Segment(0, 0, 0, LDT_UNUSABLE)
    return segments


def _descriptor(access_rights: int) -> int:
    """A flat descriptor, base 0 and limit 4 GiB, with these access rights."""
    return 0xFFFF | (access_rights & 0xFF) << 40 | 0xF << 48 | (access_rights >> 12 & 0xF) << 52


def _write_gdt(memory: GuestMemory, code_selector: int, data_selector: int, code_rights: int) -> int:
    """Write a GDT with a flat code and a flat data segment at these selectors; its limit."""
    entries = [0] * (max(code_selector, data_selector) // 8 + 1)
    entries[code_selector // 8] = _descriptor(code_rights)
    entries[data_selector // 8] = _descriptor(DATA32)
    memory.write(GDT_ADDRESS, b"".join(entry.to_bytes(8, "little") for entry in entries))
    return 8 * len(entries) - 1


def identity_map(memory: GuestMemory) -> int:
    """Page tables that map the first 4 GiB onto themselves with 2 MiB pages; the address for CR3."""
    pml4, pdpt, directories = PAGE_TABLE_ADDRESS, PAGE_TABLE_ADDRESS + 0x1000, PAGE_TABLE_ADDRESS + 0x2000
    memory.fill(pml4, 0x2000)
    memory.write_u64(pml4, pdpt | PAGE_PRESENT_WRITABLE)
    for i in range(4):
        memory.write_u64(pdpt + 8 * i, directories + 0x1000 * i | PAGE_PRESENT_WRITABLE)
    pages = (LARGE_PAGE * i | PAGE_LARGE | PAGE_PRESENT_WRITABLE for i in range(4 * 512))
    memory.write(directories, b"".join(page.to_bytes(8, "little") for page in pages))
    return pml4


def long_mode_entry(memory: GuestMemory, rip: int, registers: Mapping[str, int]) -> EntryState:
    """64-bit mode over identity page tables, selectors 0x10 and 0x18 as the Linux boot protocol asks for."""
    limit = _write_gdt(memory, 0x10, 0x18, CODE64)
    return EntryState(
        mode=EntryMode.LONG64,
        rip=rip,
        rsp=STACK_TOP,
        cr0=CR0_PE | CR0_ET | CR0_NE | CR0_PG,
        cr3=identity_map(memory),
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        gdt_base=GDT_ADDRESS,
        gdt_limit=limit,
        idt_base=0,
        idt_limit=0,
        segments=_segments(Segment(0x10, 0, 0xFFFF_FFFF, CODE64), Segment(0x18, 0, 0xFFFF_FFFF, DATA32)),
        registers=registers,
    )


def protected_mode_entry(memory: GuestMemory, rip: int, registers: Mapping[str, int]) -> EntryState:
    """32-bit protected mode without paging, flat segments."""
    limit = _write_gdt(memory, 0x8, 0x10, CODE32)
    return EntryState(
        mode=EntryMode.PROTECTED32,
        rip=rip,
        rsp=STACK_TOP,
        cr0=CR0_PE | CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        gdt_base=GDT_ADDRESS,
        gdt_limit=limit,
        idt_base=0,
        idt_limit=0,
        segments=_segments(Segment(0x8, 0, 0xFFFF_FFFF, CODE32), Segment(0x10, 0, 0xFFFF_FFFF, DATA32)),
        registers=registers,
    )


def real_mode_entry(address: int) -> EntryState:
    """Real mode at a linear address below 1 MiB, as firmware enters a boot sector."""
    selector = address >> 4 & 0xF000 if address > 0xFFFF else 0
    return EntryState(
        mode=EntryMode.REAL16,
        rip=address - (selector << 4),
        rsp=0x7C00,
        cr0=CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        gdt_base=0,
        gdt_limit=0xFFFF,
        idt_base=0,
        idt_limit=0x3FF,
        segments=_segments(Segment(selector, selector << 4, 0xFFFF, CODE16), Segment(0, 0, 0xFFFF, DATA16)),
    )
