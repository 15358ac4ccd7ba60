"""What the guest's registers, its instruction and the last trap say: the reading half of the processor.

Nothing here enters the guest or leaves it; :class:`lzero.cpu.processor.Processor` adds that.
"""

from __future__ import annotations

from lzero.cpu.clock import ProcessorClock
from lzero.cpu.configuration import Configuration
from lzero.cpu.engine import Engine
from lzero.cpu.instruction import Instruction, InstructionCache, Mnemonic
from lzero.cpu.instruction_information import instruction_information
from lzero.cpu.memory import PhysicalMemory
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.errors import GuestFault
from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.registers import Cr4
from lzero.sdm.vmcs_fields import Field

__all__ = ["GuestView"]

_P = FIELD_POSITION
_RIP, _RSP, _RFLAGS = _P[Field.GUEST_RIP], _P[Field.GUEST_RSP], _P[Field.GUEST_RFLAGS]
_EFER, _CS_RIGHTS = _P[Field.GUEST_IA32_EFER], _P[Field.GUEST_CS_ACCESS_RIGHTS]
_SEGMENT_BASE = [_P[Field.GUEST_ES_BASE] + n for n in range(6)]
_M64 = (1 << 64) - 1


class GuestView:
    """The guest as the current VMCS and the engine hold it while a trap is being handled.

    Parameters
    ----------
    engine, memory, clock:
        Of the processor.
    """

    words: memoryview
    configuration: Configuration

    def __init__(self, engine: Engine, memory: PhysicalMemory, clock: ProcessorClock) -> None:
        self.engine, self.memory, self.clock = engine, memory, clock
        self.gpr = engine.gpr
        self._slots, self._slot = engine.slots, engine.slot
        slot = engine.slot
        self._low, self._high, self._bits = slot["instruction_low"], slot["instruction_high"], slot["code_bits"]
        self._delivering = slot["delivering"]
        self._cr2 = engine.word("cr2")
        self._instructions = InstructionCache(instruction_information)
        self._first_pause = self._last_pause = 0

    def instruction(self) -> Instruction:
        """The instruction at RIP; :class:`GuestFault` if its bytes are no instruction."""
        slots = self._slots
        found = self._instructions.decode(slots[self._low], slots[self._high], slots[self._bits])
        if found is None:
            raise GuestFault(f"undecodable instruction at RIP {self.words[_RIP]:#x}")
        return found

    def try_instruction(self) -> Instruction | None:
        """The instruction at RIP, or None if its bytes are no instruction."""
        slots = self._slots
        return self._instructions.decode(slots[self._low], slots[self._high], slots[self._bits])

    def gpr_value(self, number: int) -> int:
        """A 64-bit general-purpose register; RSP comes from the VMCS."""
        return self.words[_RSP] if number == 4 else self.gpr[number]

    def set_gpr(self, number: int, value: int, size: int = 8) -> None:
        """Write a general-purpose register as an instruction of that operand size (bytes) does."""
        if size == 8:
            value &= _M64
        elif size == 4:
            value &= 0xFFFF_FFFF
        else:
            keep = self.gpr_value(number)
            mask = (1 << (8 * size)) - 1
            value = (keep & ~mask) | (value & mask)
        if number == 4:
            self.words[_RSP] = value
        else:
            self.gpr[number] = value

    def string_operand(self, *, is_in: bool) -> int:
        """Linear address of the memory operand of the INS or OUTS at RIP, with the registers as they are now."""
        i = self.instruction()
        register, segment = (7, 0) if is_in else (6, i.segment)
        offset = self.gpr[register] & ((1 << i.address_bits) - 1)
        return (self.segment_base(segment) + offset) & (_M64 if self.long_mode_code else 0xFFFF_FFFF)

    @property
    def cr2(self) -> int:
        """The page-fault linear address."""
        return self.engine.state[self._cr2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.engine.state[self._cr2] = value & _M64

    def segment_base(self, segment: int) -> int:
        """Base that addressing adds: 0 in 64-bit code except for FS and GS."""
        if self._slots[self._bits] == 64 and segment < 4:
            return 0
        return self.words[_SEGMENT_BASE[segment]]

    def linear_address(self, i: Instruction) -> int:
        """Linear address of an instruction's memory operand."""
        offset = i.offset(self.gpr, self.words[_RSP], self.words[_RIP] + i.length)
        linear = self.segment_base(i.segment) + offset
        return linear & (_M64 if self._slots[self._bits] == 64 else 0xFFFF_FFFF)

    def guest_physical(self, linear: int, *, write: bool) -> int | None:
        """Guest-physical address of a linear one for a supervisor access; None where it would fault."""
        return self.engine.walk_guest(linear, write=write)

    def walk_failure(self) -> tuple[int, int]:
        """Exception vector and error code of the last address that could not be translated."""
        slots, slot = self._slots, self._slot
        return slots[slot["walk_vector"]], slots[slot["walk_error"]]

    def walk_trap(self) -> int:
        """The trap that ended the last translation, or 0."""
        return self._slots[self._slot["walk_trap"]]

    def trap_parameter(self) -> int:
        """The number that came with the trap: error code, port and size, or MSR direction."""
        return self._slots[self._slot["trap_param"]]

    def translation_fault(self) -> tuple[int, int, int]:
        """Exit qualification, guest-physical and guest-linear address of a failed EPT translation."""
        slots, slot = self._slots, self._slot
        return slots[slot["qualification"]], slots[slot["gpa"]], slots[slot["gla"]]

    def fault_address(self) -> int:
        """Linear address of an intercepted page fault; CR2 keeps its value."""
        return self._slots[self._slot["fault_address"]]

    @property
    def delivering(self) -> bool:
        """Whether an event is being delivered."""
        return bool(self._slots[self._delivering])

    def guest_tsc(self) -> int:
        """The TSC as the guest reads it: scaled, then offset (SDM 3C 26.3)."""
        slots, slot = self._slots, self._slot
        return ((self.clock.tsc() * slots[slot["tsc_multiplier"]] >> 48) + slots[slot["tsc_offset"]]) & _M64

    def in_pause_loop(self) -> bool:
        """Whether a PAUSE at CPL 0 belongs to a loop longer than PLE_Window (SDM 3C 26.1.3)."""
        words = self.words
        if not self.configuration.proc2 & ProcBased2.PAUSE_LOOP_EXITING or self.cpl:
            return False
        now = self.clock.tsc()
        if now - self._last_pause > words[_P[Field.PLE_GAP]]:
            self._first_pause = now
        self._last_pause = now
        return now - self._first_pause > words[_P[Field.PLE_WINDOW]]

    def port_exits(self, port: int, size: int) -> bool:
        """Whether an access to I/O ports exits (SDM 3C 26.1.3)."""
        proc = self.configuration.proc
        if not proc & ProcBased.USE_IO_BITMAPS:
            return bool(proc & ProcBased.UNCONDITIONAL_IO_EXITING)
        if port + size > 0x10000:
            return True
        for number in range(port, port + size):
            field = Field.IO_BITMAP_A_ADDRESS if number < 0x8000 else Field.IO_BITMAP_B_ADDRESS
            byte = self.memory.read(self.words[_P[field]] + (number & 0x7FFF) // 8, 1)[0]
            if byte >> (number & 7) & 1:
                return True
        return False

    def vmx_instruction_defined(self, i: Instruction) -> bool:
        """Whether a VMX instruction is defined here, or #UD comes before the VM exit (SDM 3C chapter 31)."""
        words = self.words
        if i.mnemonic == Mnemonic.VMCALL:
            return True
        if not words[_P[Field.GUEST_CR0]] & 1 or words[_RFLAGS] >> 17 & 1:
            return False
        if words[_EFER] >> 10 & 1 and not words[_CS_RIGHTS] >> 13 & 1:
            return False
        return i.mnemonic != Mnemonic.VMXON or bool(words[_P[Field.GUEST_CR4]] >> 13 & 1)

    @property
    def cpl(self) -> int:
        """The guest's privilege level."""
        return self.words[_P[Field.GUEST_SS_ACCESS_RIGHTS]] >> 5 & 3

    def pcid_valid(self, kind: int, descriptor: bytes) -> bool:
        """Whether INVPCID accepts a descriptor: no PCID without CR4.PCIDE, a canonical address (2A INVPCID)."""
        pcid, address = int.from_bytes(descriptor[:2], "little"), int.from_bytes(descriptor[8:], "little")
        if kind < 2 and pcid and not self.words[_P[Field.GUEST_CR4]] & Cr4.PCIDE:
            return False
        return kind != 0 or address >> 47 in (0, 0x1FFFF)

    @property
    def long_mode_code(self) -> bool:
        """Whether the guest executes 64-bit code."""
        return self._slots[self._bits] == 64
