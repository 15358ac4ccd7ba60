"""A processor, a VMCS and a page of guest code: nothing else. For tests that read as the manual does.

::

    guest = bench.guest(LONG, "cpuid")
    assert guest.enter() == Exit(ExitReason.CPUID, length=2)

Guest code is followed by VMCALL, which exits in every mode, and so is each handler that the guest's IDT names.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

from guestasm import assemble
from lzero.cpu.processor import Processor
from lzero.cpu.vmcs import Vmcs
from lzero.errors import GuestFault
from lzero.hypervisor.features import PROCESSOR
from lzero.sdm.controls import ControlFlag, PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

__all__ = [
    "CODE", "COMPATIBILITY", "DATA", "LONG", "LONG_USER", "MODES", "PAE", "PAGED", "PROTECTED", "REAL", "STACK",
    "USER32", "V86", "Bench", "Exit", "Guest", "Mode", "call", "handler",
]  # fmt: skip

RAM: Final = 4 << 20
GDT, IDT, TSS, HANDLERS, LDT = 0x1000, 0x2000, 0x3000, 0x5000, 0x6800
STACK, USER_STACK = 0x7000, 0x7800
CODE, DATA = 0x8000, 0xA000
PML4, PDPT, PD, PT0, PT1 = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000
PD32, PT32, PDPT_PAE, PD_PAE, PT_PAE0, PT_PAE1 = 0x18000, 0x19000, 0x1A000, 0x1B000, 0x13000, 0x14000
HANDLER_SIZE = 16
VMCALL = b"\x0f\x01\xc1"
CODE64, DATA0, TR, CODE32, USER_CODE64, USER_DATA, USER_CODE32 = 0x08, 0x10, 0x18, 0x28, 0x3B, 0x43, 0x4B
UNUSABLE = 1 << 16
RFLAGS = 2


@dataclass(frozen=True)
class Mode:
    """How the guest executes: what the VMCS says for it."""

    name: str
    bits: int
    cr0: int = int(Cr0.PE | Cr0.NE | Cr0.ET | Cr0.PG)
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    cs: tuple[int, int] = (CODE32, 0xC09B)
    data: tuple[int, int] = (DATA0, 0xC093)
    rflags: int = RFLAGS
    stack: int = STACK

    @property
    def cpl(self) -> int:
        """Privilege level."""
        return self.data[1] >> 5 & 3

    def __str__(self) -> str:
        return self.name


_UNPAGED = int(Cr0.PE | Cr0.NE | Cr0.ET)
_LONG = {"cr3": PML4, "cr4": int(Cr4.PAE), "efer": int(Efer.LME | Efer.LMA | Efer.NXE | Efer.SCE)}
REAL = Mode("real", 16, cr0=int(Cr0.NE | Cr0.ET), cs=(0, 0x9B), data=(0, 0x93))
V86 = Mode("virtual-8086", 16, cr3=PD32, cs=(0, 0xF3), data=(0, 0xF3), rflags=RFLAGS | 1 << 17)
PROTECTED = Mode("protected", 32, cr0=_UNPAGED)
PAGED = Mode("32-bit paging", 32, cr3=PD32)
PAE = Mode("PAE paging", 32, cr3=PDPT_PAE, cr4=int(Cr4.PAE))
USER32 = Mode("32-bit user", 32, cr3=PD32, cs=(USER_CODE32, 0xC0FB), data=(USER_DATA, 0xC0F3), stack=USER_STACK)
LONG = Mode("64-bit", 64, cs=(CODE64, 0xA09B), **_LONG)
LONG_USER = Mode("64-bit user", 64, cs=(USER_CODE64, 0xA0FB), data=(USER_DATA, 0xC0F3), stack=USER_STACK, **_LONG)
COMPATIBILITY = Mode("compatibility", 32, **_LONG)
MODES = (REAL, V86, PROTECTED, PAGED, PAE, USER32, LONG, LONG_USER, COMPATIBILITY)


@dataclass(frozen=True)
class Exit:
    """What a VM exit recorded. Equality is strict: what the manual does not define for an exit is 0.

    ``at`` is RIP, relative to the guest's code.
    """

    reason: int
    qualification: int = 0
    at: int = 0
    length: int = 0
    information: int = 0
    interruption: int = 0
    error_code: int = 0
    vectoring: int = 0
    vectoring_error: int = 0
    linear: int = 0
    physical: int = 0

    def __repr__(self) -> str:
        name = ExitReason(self.reason & 0xFFFF).name
        parts = [f"{k}={v:#x}" for k, v in self.__dict__.items() if v and k != "reason"]
        return f"Exit({', '.join([name + (' (entry failed)' if self.reason >> 31 else ''), *parts])})"


_EXIT_FIELDS = {
    "reason": Field.EXIT_REASON,
    "qualification": Field.EXIT_QUALIFICATION,
    "length": Field.VM_EXIT_INSTRUCTION_LENGTH,
    "information": Field.VM_EXIT_INSTRUCTION_INFORMATION,
    "interruption": Field.VM_EXIT_INTERRUPTION_INFORMATION,
    "error_code": Field.VM_EXIT_INTERRUPTION_ERROR_CODE,
    "vectoring": Field.IDT_VECTORING_INFORMATION,
    "vectoring_error": Field.IDT_VECTORING_ERROR_CODE,
    "linear": Field.GUEST_LINEAR_ADDRESS,
    "physical": Field.GUEST_PHYSICAL_ADDRESS,
}


def call(at: int, **more: int) -> Exit:
    """The VMCALL that ends guest code, or a handler."""
    return Exit(ExitReason.VMCALL, at=at, length=3, **more)


def handler(vector: int) -> Exit:
    """The VMCALL of the handler for a vector: the event was delivered through the IDT."""
    return call(HANDLERS + vector * HANDLER_SIZE - CODE)


@dataclass
class Bench:
    """One processor with memory, used for one guest after another."""

    processor: Processor = field(default_factory=lambda: Processor(PROCESSOR))

    def __post_init__(self) -> None:
        self.ram = mmap.mmap(-1, RAM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = self.processor.memory
        memory.map(0, self.ram, 0, RAM)
        self.pages = {name: memory.allocate_page() for name in (
            "pml4", "pdpt", "pd", "pt0", "pt1", "msr", "io_a", "io_b", "apic", "access", "pml", "vmread", "vmwrite",
            "eptp", "ve",
        )}  # fmt: skip

    def close(self) -> None:
        """Release the processor."""
        self.processor.close()

    def guest(self, mode: Mode, code: str | bytes = "", *controls: ControlFlag, **fields: int) -> Guest:
        """A guest that passes the checks of VM entry, in `mode`, about to execute `code`.

        Parameters
        ----------
        controls:
            Set in addition to those that the mode needs.
        fields:
            VMCS fields by name, written last.
        """
        self.ram.madvise(mmap.MADV_DONTNEED)  # private pages come back zeroed
        self.processor.engine.code_changed(0, RAM)
        for page in self.pages.values():
            self.processor.memory.write(page, bytes(4096))
        return Guest(self, mode, code, controls, fields)


def _descriptor(base: int, limit: int, rights: int) -> bytes:
    low = (limit & 0xFFFF) | (base & 0xFFFFFF) << 16 | (rights & 0xFF) << 40
    return (low | (limit >> 16 & 0xF) << 48 | (rights >> 12 & 0xF) << 52 | (base >> 24 & 0xFF) << 56).to_bytes(
        8, "little"
    )


def _gate(mode: Mode, offset: int, selector: int | None, rights: int, ist: int = 0) -> bytes:
    if not mode.cr0 & Cr0.PE:
        return struct.pack("<HH", offset & 0xFFFF, 0)
    long_mode = bool(mode.efer & Efer.LMA)
    selector = selector if selector is not None else CODE64 if long_mode else CODE32
    low = struct.pack("<HHBBH", offset & 0xFFFF, selector, ist, rights, offset >> 16 & 0xFFFF)
    return low + struct.pack("<II", offset >> 32, 0) if long_mode else low


@cache
def _gates(mode: Mode) -> bytes:
    """An IDT whose every gate leads to its handler; INT3, INTO and INT 0x80 are open to ring 3."""
    rights = [0xEE if vector in (3, 4, 0x80) else 0x8E for vector in range(256)]
    return b"".join(_gate(mode, HANDLERS + HANDLER_SIZE * n, None, rights[n]) for n in range(256))


_IDENTITY64 = struct.pack("<1024Q", *(n << 12 | 0x67 for n in range(1024)))
_IDENTITY32 = struct.pack("<1024I", *(n << 12 | 0x67 for n in range(1024)))
_EPT = [struct.pack("<512Q", *((start + n) << 12 | 0x37 for n in range(512))) for start in (0, 512)]


class Guest:
    """A guest and its VMCS."""

    def __init__(
        self, bench: Bench, mode: Mode, code: str | bytes, controls: tuple[ControlFlag, ...], fields: dict[str, int]
    ) -> None:
        self.bench, self.mode, self.processor = bench, mode, bench.processor
        self.gpr = self.processor.gpr
        for number in range(16):
            self.gpr[number] = 0
        self.processor.cr2 = 0
        self.processor.shadow_vmcs = None
        self.processor.on_shadow_access = None
        self.polls = 0
        self.processor.poll = self._poll
        self.vmcs = Vmcs()
        self.processor.vmptrld(self.vmcs)
        self.bytes = assemble(code, mode.bits, CODE) if not isinstance(code, bytes) else code
        self.size = len(self.bytes)
        self.write(CODE, self.bytes + VMCALL)
        self._tables()
        self._page_tables()
        self._controls(controls)
        self._state()
        for name, value in fields.items():
            self[Field[name]] = value
        self.processor.invept()

    def _poll(self) -> None:
        self.polls += 1
        if self.polls > 20:
            raise GuestFault("guest code does not come to an end")

    # --- memory --------------------------------------------------------------------------------------------------

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory (or L0's)."""
        self.processor.memory.write(address, data)

    def write_u64(self, address: int, *values: int) -> None:
        """Write 64-bit words."""
        self.write(address, struct.pack(f"<{len(values)}Q", *values))

    def read(self, address: int, size: int) -> int:
        """A little-endian number in guest memory."""
        return int.from_bytes(self.processor.memory.read(address, size), "little")

    def gate(self, vector: int, offset: int, *, selector: int | None = None, rights: int = 0x8E, ist: int = 0) -> None:
        """Change one gate of the IDT, in the format of the mode."""
        entry = _gate(self.mode, offset, selector, rights, ist)
        self.write(IDT + len(entry) * vector, entry)

    def _tables(self) -> None:
        descriptors = {
            CODE64: (0, 0xFFFFF, 0xA09B), DATA0: (0, 0xFFFFF, 0xC093), CODE32: (0, 0xFFFFF, 0xC09B),
            USER_CODE64: (0, 0xFFFFF, 0xA0FB), USER_DATA: (0, 0xFFFFF, 0xC0F3), USER_CODE32: (0, 0xFFFFF, 0xC0FB),
            TR: (TSS, 0x67, 0x8B),
        }  # fmt: skip
        for selector, parts in descriptors.items():
            self.write(GDT + (selector & ~7), _descriptor(*parts))
        self.write(IDT, _gates(self.mode))
        self.write(HANDLERS, VMCALL.ljust(HANDLER_SIZE, b"\0") * 256)
        self.write(TSS + 102, struct.pack("<H", 0x68))  # no I/O permission bitmap
        if self.mode.efer & Efer.LMA:
            self.write_u64(TSS + 4, STACK)
        else:
            self.write(TSS + 4, struct.pack("<II", STACK, DATA0))

    def _page_tables(self) -> None:
        self.write_u64(PML4, PDPT | 7)
        self.write_u64(PDPT, PD | 7)
        self.write_u64(PD, PT0 | 7, PT1 | 7)
        self.write(PT0, _IDENTITY64)
        self.write_u64(PDPT_PAE, PD_PAE | 1, 0, 0, 0)
        self.write_u64(PD_PAE, PT_PAE0 | 7, PT_PAE1 | 7)
        self.write(PD32, struct.pack("<I", PT32 | 7))
        self.write(PT32, _IDENTITY32)
        if not self.mode.efer & Efer.LMA and self.mode.cr4 & Cr4.PAE:
            for number in range(4):
                self[Field(Field.GUEST_PDPTE0 + 2 * number)] = self.read(self.mode.cr3 + 8 * number, 8)
        page = self.bench.pages
        self.write_u64(page["pml4"], page["pdpt"] | 7)
        self.write_u64(page["pdpt"], page["pd"] | 7)
        self.write_u64(page["pd"], page["pt0"] | 7, page["pt1"] | 7)
        for name, entries in zip(("pt0", "pt1"), _EPT, strict=True):
            self.write(page[name], entries)

    def ept_slot(self, guest_physical: int) -> int:
        """Where the EPT entry of a guest page lives."""
        number = guest_physical >> 12
        return self.bench.pages["pt0" if number < 512 else "pt1"] + (number & 511) * 8

    def map(self, guest_physical: int, *, rights: int = 7, to: int | None = None, flags: int = 0x30) -> None:
        """Change the EPT entry of a guest page; turns EPT on."""
        self.on(ProcBased2.ENABLE_EPT)
        target = guest_physical & ~0xFFF if to is None else to
        self.write_u64(self.ept_slot(guest_physical), target | rights | flags)
        self.processor.invept()

    def page(self, linear: int, entry: int) -> None:
        """Set the guest's own page-table entry for a linear page (the number of its page may be in `entry`)."""
        if self.mode.cr4 & Cr4.PAE:
            self.write_u64(PT0 + (linear >> 12) * 8, entry)
        else:
            self.write(PT32 + (linear >> 12) * 4, struct.pack("<I", entry))
        self.processor.invept()

    # --- the VMCS ------------------------------------------------------------------------------------------------

    def __getitem__(self, name: Field) -> int:
        return self.processor.vmread(name)

    def __setitem__(self, name: Field, value: int) -> None:
        self.processor.vmwrite(name, int(value))

    def on(self, *controls: ControlFlag) -> Guest:
        """Set controls."""
        for control in controls:
            where = _CONTROL_FIELD[type(control)]
            self[where] = self[where] | int(control)
            if isinstance(control, ProcBased2):
                primary = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
                self[primary] = self[primary] | ProcBased.ACTIVATE_SECONDARY_CONTROLS
        return self

    def off(self, *controls: ControlFlag) -> Guest:
        """Clear controls."""
        for control in controls:
            where = _CONTROL_FIELD[type(control)]
            self[where] = self[where] & ~int(control)
        return self

    def _controls(self, controls: tuple[ControlFlag, ...]) -> None:
        caps = self.processor.capabilities
        page = self.bench.pages
        self[Field.PIN_BASED_VM_EXECUTION_CONTROLS] = caps.pin.allowed0 | PinBased.EXTERNAL_INTERRUPT_EXITING
        # "1-settings" that the processor requires, without the CR3 exits that no test expects unasked.
        self[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS] = caps.proc.allowed0
        self[Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS] = caps.proc2.allowed0
        self[Field.VM_EXIT_CONTROLS] = caps.exit.allowed0 | (
            VmExit.HOST_ADDRESS_SPACE_SIZE | VmExit.SAVE_IA32_EFER | VmExit.LOAD_IA32_EFER
        )
        self[Field.VM_ENTRY_CONTROLS] = caps.entry.allowed0 | VmEntry.LOAD_IA32_EFER | VmEntry.LOAD_DEBUG_CONTROLS
        if self.mode.efer & Efer.LMA:
            self.on(VmEntry.IA32E_MODE_GUEST)
        if not self.mode.cr0 & Cr0.PG:
            self.on(ProcBased2.ENABLE_EPT, ProcBased2.UNRESTRICTED_GUEST)
        self.on(*controls)
        for name, value in {
            Field.EPT_POINTER: page["pml4"] | 0x1E,
            Field.MSR_BITMAPS_ADDRESS: page["msr"],
            Field.IO_BITMAP_A_ADDRESS: page["io_a"],
            Field.IO_BITMAP_B_ADDRESS: page["io_b"],
            Field.VIRTUAL_APIC_ADDRESS: page["apic"],
            Field.APIC_ACCESS_ADDRESS: page["access"],
            Field.VMREAD_BITMAP_ADDRESS: page["vmread"],
            Field.VMWRITE_BITMAP_ADDRESS: page["vmwrite"],
            Field.PML_ADDRESS: page["pml"],
            Field.EPTP_LIST_ADDRESS: page["eptp"],
            Field.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS: page["ve"],
            Field.VPID: 1
            if self[Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS] & ProcBased2.ENABLE_VPID
            else 0,
            Field.VMCS_LINK_POINTER: (1 << 64) - 1,
            Field.TSC_MULTIPLIER: 1 << 48,
            Field.HOST_CR0: Cr0.PE | Cr0.PG | Cr0.NE | Cr0.ET,
            Field.HOST_CR4: Cr4.PAE | Cr4.VMXE,
            Field.HOST_CS_SELECTOR: 8,
            Field.HOST_TR_SELECTOR: 24,
            Field.HOST_IA32_EFER: Efer.LME | Efer.LMA,
        }.items():
            self[name] = int(value)

    def _state(self) -> None:
        mode = self.mode
        limit = 0xFFFF if mode in (REAL, V86) else 0xFFFF_FFFF
        for name in "ES CS SS DS FS GS".split():
            selector, rights = mode.cs if name == "CS" else mode.data
            self[Field[f"GUEST_{name}_SELECTOR"]] = selector
            self[Field[f"GUEST_{name}_LIMIT"]] = limit
            self[Field[f"GUEST_{name}_ACCESS_RIGHTS"]] = rights
        for name, value in {
            Field.GUEST_TR_SELECTOR: TR, Field.GUEST_TR_BASE: TSS, Field.GUEST_TR_LIMIT: 0x67,
            Field.GUEST_TR_ACCESS_RIGHTS: 0x8B, Field.GUEST_LDTR_ACCESS_RIGHTS: UNUSABLE,
            Field.GUEST_GDTR_BASE: GDT, Field.GUEST_GDTR_LIMIT: 0xFF, Field.GUEST_IDTR_BASE: IDT,
            Field.GUEST_IDTR_LIMIT: 0xFFF, Field.GUEST_CR0: mode.cr0, Field.GUEST_CR3: mode.cr3,
            Field.GUEST_CR4: mode.cr4 | Cr4.VMXE, Field.GUEST_IA32_EFER: mode.efer, Field.GUEST_RIP: CODE,
            Field.GUEST_RSP: mode.stack, Field.GUEST_RFLAGS: mode.rflags, Field.GUEST_DR7: 0x400,
            Field.GUEST_IA32_PAT: 0x0007_0406_0007_0406,
        }.items():  # fmt: skip
            self[name] = int(value)

    # --- run -----------------------------------------------------------------------------------------------------

    def enter(self) -> Exit:
        """VMLAUNCH or VMRESUME; returns at the next VM exit."""
        self.processor.run(lambda reason: False)
        values = {name: self[where] for name, where in _EXIT_FIELDS.items()}
        return Exit(at=self[Field.GUEST_RIP] - CODE, **values)

    def skip(self) -> Guest:
        """Step RIP over the instruction that exited."""
        self[Field.GUEST_RIP] = self[Field.GUEST_RIP] + self[Field.VM_EXIT_INSTRUCTION_LENGTH]
        return self

    def end(self, **more: int) -> Exit:
        """The VMCALL that follows the guest's code."""
        return replace(call(self.size), **more)


_CONTROL_FIELD: dict[type, Field] = {
    PinBased: Field.PIN_BASED_VM_EXECUTION_CONTROLS,
    ProcBased: Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    ProcBased2: Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    VmExit: Field.VM_EXIT_CONTROLS,
    VmEntry: Field.VM_ENTRY_CONTROLS,
}
