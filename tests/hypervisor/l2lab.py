"""An L2 for tests of nested VMX features: controls, code, extended page tables, one entry, and what L1 gets to see."""

from __future__ import annotations

from collections.abc import Callable

from nestedlab import L2_CODE, L2_STACK, Lab, prepare_l2

from guestasm import assemble
from lzero.cpu.memory import HOST_BASE
from lzero.hypervisor.nested.shadow_fields import ShadowFields
from lzero.hypervisor.nested.vmcs12 import Vmcs12
from lzero.platform.interrupts.lapic import InterruptMessage
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vmcs_fields import Field

DATA = 0x40_0000
EPT_TABLES, PAGES, IDT, HANDLERS, GDT = 0x50_0000, 0x60_0000, 0x70_0000, 0x70_2000, 0x70_6000
READ, WRITE, EXECUTE, USER_EXECUTE = 1, 2, 4, 1 << 10
ACCESSED, DIRTY, LARGE, SUPPRESS_VE = 1 << 8, 1 << 9, 1 << 7, 1 << 63
WRITE_BACK = 6 << 3
AD_FLAGS = 0x40
LEVELS = {1 << 12: 12, 1 << 21: 21, 1 << 30: 30}
ADDRESS = 0x000F_FFFF_FFFF_F000
VALID = 1 << 31
OUTSIDE = [0xFEC0_0000, 0x10_0000_0000, HOST_BASE]
"""A device, an address that nothing answers, L0's own memory."""

Control = PinBased | ProcBased | ProcBased2 | VmExit | VmEntry
_WORD: dict[type, Field] = {
    PinBased: Field.PIN_BASED_VM_EXECUTION_CONTROLS,
    ProcBased: Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    ProcBased2: Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    VmExit: Field.VM_EXIT_CONTROLS,
    VmEntry: Field.VM_ENTRY_CONTROLS,
}


class L1Ept:
    """Extended page tables that L1 writes in its memory: all of RAM one to one with 2 MiB pages, unless told otherwise.

    Parameters
    ----------
    lab:
        Whose memory.
    base:
        Where the tables start.
    """

    def __init__(self, lab: Lab, base: int = EPT_TABLES) -> None:
        self._memory = lab.memory
        self.root = self._next = base
        self._table()
        for address in range(0, lab.memory.size, 1 << 21):
            self.map(address, size=1 << 21)

    def _table(self) -> int:
        page, self._next = self._next, self._next + 4096
        self._memory.write(page, bytes(4096))
        return page

    @property
    def pointer(self) -> int:
        return self.root | 3 << 3 | 6

    def slot(self, address: int, shift: int = 12) -> int:
        """Address of the entry for a guest-physical address at a level; tables are made, large pages split."""
        table = self.root
        for level in range(39, shift, -9):
            slot = table + (address >> level & 511) * 8
            entry = self._memory.read_u64(slot)
            if entry & LARGE and level < 39:
                table = self._table()
                large = LARGE if level - 9 > 12 else 0
                for number in range(512):
                    part = (entry & ~LARGE & 0xFFF) | large
                    self._memory.write_u64(table + 8 * number, (entry & ADDRESS) + (number << (level - 9)) | part)
                self._memory.write_u64(slot, table | 7)
            elif not entry & 7:
                table = self._table()
                self._memory.write_u64(slot, table | 7)
            else:
                table = entry & ADDRESS
        return table + (address >> shift & 511) * 8

    def map(self, address: int, to: int | None = None, *, size: int = 4096, bits: int = 7 | WRITE_BACK) -> None:
        """Map one page; `bits` are the low and the high flags of its entry."""
        where = address if to is None else to
        self._memory.write_u64(self.slot(address, LEVELS[size]), where | bits | (LARGE if size > 4096 else 0))

    def entry(self, address: int, shift: int = 12) -> int:
        return self._memory.read_u64(self.slot(address, shift))


class L2:
    """One L2 in 64-bit mode at CPL 0 that exits on HLT."""

    def __init__(self, shadow_fields: ShadowFields | None = None, *, fill: int = 0) -> None:
        self.lab = Lab(shadow_fields, fill=fill)
        self.lab.start_vmx()
        prepare_l2(self.lab)
        del self.lab.vcpu.inject_exception  # L2 gets its exceptions
        self.memory = self.lab.memory
        self.cpu = self.lab.cpu
        self._pages = PAGES

    def close(self) -> None:
        self.lab.close()

    @property
    def vmcs(self) -> Vmcs12:
        """L0's copy of the current VMCS."""
        vmcs12 = self.lab.vcpu.nested.state.vmcs12
        assert vmcs12 is not None
        return vmcs12

    def __getitem__(self, field: Field) -> int:
        return self.vmcs.read(field)

    def __setitem__(self, field: Field, value: int) -> None:
        self.vmcs.write(field, value)

    def want(self, *controls: Control) -> None:
        """Set control bits."""
        for control in controls:
            if isinstance(control, ProcBased2):
                self.want(ProcBased.ACTIVATE_SECONDARY_CONTROLS)
            self[_WORD[type(control)]] |= int(control)

    def refuse(self, *controls: Control) -> None:
        """Clear control bits."""
        for control in controls:
            self[_WORD[type(control)]] &= ~int(control)

    def page(self, fill: int = 0) -> int:
        """A new page of L1's memory."""
        page, self._pages = self._pages, self._pages + 4096
        self.memory.write(page, bytes([fill]) * 4096)
        return page

    def use_ept(self, *, flags: int = 0) -> L1Ept:
        """Switch EPT on with L1's tables."""
        ept = L1Ept(self.lab)
        self.want(ProcBased2.ENABLE_EPT)
        self[Field.EPT_POINTER] = ept.pointer | flags
        return ept

    def use_idt(self) -> None:
        """Every vector leads to a VMCALL at HANDLERS + 16 * vector."""
        for vector in range(256):
            target = HANDLERS + 16 * vector
            gate = (target & 0xFFFF) | 0x10 << 16 | 0x8E << 40 | (target >> 16 & 0xFFFF) << 48
            self.memory.write(IDT + 16 * vector, gate.to_bytes(8, "little") + bytes(8))
            self.memory.write(target, assemble("vmcall", 64))
        rights = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
        self.memory.write(GDT, b"".join(value.to_bytes(8, "little") for value in (0, 0, *rights)))
        self[Field.GUEST_IDTR_BASE], self[Field.GUEST_IDTR_LIMIT] = IDT, 0xFFF
        self[Field.GUEST_GDTR_BASE], self[Field.GUEST_GDTR_LIMIT] = GDT, 31

    def code(self, text: str, bits: int = 64, at: int = L2_CODE) -> None:
        """What L2 executes next."""
        self.cpu.memory.write(at, assemble(text, bits, at))  # the processor forgets what was there
        self[Field.GUEST_RIP] = at
        self[Field.GUEST_RSP] = L2_STACK + 0x800

    def enter(self, *, rax: int = 0, **registers: int) -> ExitReason:
        """VMLAUNCH or VMRESUME; the basic exit reason that L1 reads."""
        for name, value in registers.items():
            self.cpu.gpr[{"rcx": 1, "rdx": 2, "rsi": 6}[name]] = value
        self.lab.step("vmresume" if self.vmcs.launched else "vmlaunch", rax=rax)
        assert self.lab.vcpu.stop_reason == "hlt", self.lab.vcpu.stop_reason
        assert self.lab.vcpu.level == 1
        return ExitReason(self[Field.EXIT_REASON] & 0xFFFF)

    def run(self, text: str, **registers: int) -> ExitReason:
        """Enter at this code."""
        self.code(text)
        return self.enter(**registers)

    @property
    def rip(self) -> int:
        """RIP of L2 relative to its code."""
        return self[Field.GUEST_RIP] - L2_CODE

    @property
    def qualification(self) -> int:
        return self[Field.EXIT_QUALIFICATION]

    @property
    def delivered(self) -> int:
        """The vector whose handler in L2 was reached, after a VMCALL exit."""
        assert self[Field.EXIT_REASON] == ExitReason.VMCALL
        return (self[Field.GUEST_RIP] - HANDLERS) // 16

    @property
    def rax(self) -> int:
        return self.cpu.gpr[0]

    def interrupt(self, vector: int) -> None:
        """An interrupt of L1's platform becomes pending."""
        lapic = self.lab.pc.lapic
        lapic.mmio_write(0xF0, 4, 0x1FF)
        lapic.request(vector, False)

    def nmi(self) -> None:
        """An NMI becomes pending."""
        self.lab.pc.lapic.receive(InterruptMessage(vector=0, mode=4, destination=0, logical=False, level=False))

    def soon(self, happens: Callable[[], None]) -> None:
        """In 10 µs of guest time, while L2 runs."""
        clock = self.lab.clock
        clock.call_at(clock.now_ns() + 10_000, happens)
