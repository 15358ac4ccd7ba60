"""Moves to and from control registers in VMX non-root operation (SDM 3C 26.1.3, 26.3; 3A 2.5).

Native code traps every write of CR0, CR4 and CR8: the engine checks no reserved bits, and the guest/host masks decide
what the guest may change. What remains after the masks is carried out here as the processor does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lzero.cpu.instruction import Instruction, Mnemonic
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.formats import CrAccessQualification, CrAccessType
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["load_cr0", "load_cr4", "read_control_register", "write_control_register"]

_CR0 = FIELD_POSITION[Field.GUEST_CR0]
_CR3 = FIELD_POSITION[Field.GUEST_CR3]
_CR4 = FIELD_POSITION[Field.GUEST_CR4]
_EFER = FIELD_POSITION[Field.GUEST_IA32_EFER]
_CS_RIGHTS = FIELD_POSITION[Field.GUEST_CS_ACCESS_RIGHTS]
_CR3_TARGETS = [FIELD_POSITION[Field.CR3_TARGET_VALUE_0] + n for n in range(4)]
_CR3_TARGET_COUNT = FIELD_POSITION[Field.CR3_TARGET_COUNT]
_CR0_DEFINED = sum(int(bit) for bit in Cr0)
_M64 = (1 << 64) - 1


def _exit(p: Processor, i: Instruction, number: int, kind: CrAccessType, general: int = 0, **more: Any) -> int:
    qualification = CrAccessQualification(register=number, access_type=kind, general_register=general, **more)
    linear = p.linear_address(i) if more.get("lmsw_memory_operand") else 0
    return p.instruction_exit(ExitReason.CR_ACCESS, i, qualification.pack(), guest_linear_address=linear)


def read_control_register(p: Processor, number: int) -> int:
    """MOV from CR0, CR3, CR4 or CR8, and SMSW."""
    i = p.instruction()
    proc = p.configuration.proc
    if i.mnemonic == Mnemonic.SMSW:
        return _store_machine_status_word(p, i)
    general = i.register(0)[0]
    if number == 3 and proc & ProcBased.CR3_STORE_EXITING:
        return _exit(p, i, 3, CrAccessType.MOV_FROM_CR, general)
    if number == 8:
        if proc & ProcBased.CR8_STORE_EXITING:
            return _exit(p, i, 8, CrAccessType.MOV_FROM_CR, general)
        value = p.apic.read_tpr() >> 4 if proc & ProcBased.USE_TPR_SHADOW else 0
        p.set_gpr(general, value)
        return p.complete(i)
    p.set_gpr(general, _visible(p, number))
    return p.complete(i)


def _visible(p: Processor, number: int) -> int:
    words = p.words
    if number == 3:
        return int(words[_CR3])
    mask, shadow, real = (
        (Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW, _CR0)
        if number == 0
        else (Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW, _CR4)
    )
    owned = p.vmread(mask)
    return int((words[real] & ~owned) | (p.vmread(shadow) & owned))


def _store_machine_status_word(p: Processor, i: Instruction) -> int:
    value = _visible(p, 0)
    if i.is_register(0):
        number, size, _ = i.register(0)
        p.set_gpr(number, value, size)
        return p.complete(i)
    if not p.write_linear(p.linear_address(i), (value & 0xFFFF).to_bytes(2, "little")):
        return p.after_fault
    return p.complete(i)


def write_control_register(p: Processor, number: int) -> int:
    """MOV to CR0, CR3, CR4 or CR8, CLTS and LMSW."""
    i = p.instruction()
    if i.mnemonic == Mnemonic.CLTS:
        return _clear_task_switched(p, i)
    if i.mnemonic == Mnemonic.LMSW:
        return _load_machine_status_word(p, i)
    general = i.register(1)[0]
    value = p.gpr_value(general)
    if number == 3:
        return _write_cr3(p, i, general, value)
    if number == 8:
        return _write_cr8(p, i, general, value)
    fields = (
        (Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW)
        if number == 0
        else (
            Field.CR4_GUEST_HOST_MASK,
            Field.CR4_READ_SHADOW,
        )
    )
    mask, shadow = (p.vmread(field) for field in fields)
    if (value ^ shadow) & mask:
        return _exit(p, i, number, CrAccessType.MOV_TO_CR, general)
    real = p.words[_CR0 if number == 0 else _CR4]
    merged = (value & ~mask) | (real & mask)
    ok = load_cr0(p, merged) if number == 0 else load_cr4(p, merged)
    return p.complete(i) if ok else p.raise_exception(Vector.GP, 0)


def _clear_task_switched(p: Processor, i: Instruction) -> int:
    mask, shadow = p.vmread(Field.CR0_GUEST_HOST_MASK), p.vmread(Field.CR0_READ_SHADOW)
    if mask & Cr0.TS:
        if shadow & Cr0.TS:
            return _exit(p, i, 0, CrAccessType.CLTS)
        return p.complete(i)
    load_cr0(p, p.words[_CR0] & ~Cr0.TS)
    return p.complete(i)


def _load_machine_status_word(p: Processor, i: Instruction) -> int:
    if i.is_register(0):
        source = p.gpr_value(i.register(0)[0]) & 0xFFFF
    else:
        data = p.read_linear(p.linear_address(i), 2)
        if data is None:
            return p.after_fault
        source = int.from_bytes(data, "little")
    mask, shadow = p.vmread(Field.CR0_GUEST_HOST_MASK), p.vmread(Field.CR0_READ_SHADOW)
    changes_owned = (source ^ shadow) & mask & 0xE
    sets_pe = source & mask & 1 and not shadow & 1
    if changes_owned or sets_pe:
        return _exit(p, i, 0, CrAccessType.LMSW, lmsw_source=source, lmsw_memory_operand=not i.is_register(0))
    writable = 0xF & ~mask
    current = p.words[_CR0]
    value = (current & ~(writable & 0xE)) | (source & writable)  # PE can be set but not cleared
    return p.complete(i) if load_cr0(p, value) else p.raise_exception(Vector.GP, 0)


def _write_cr8(p: Processor, i: Instruction, general: int, value: int) -> int:
    proc = p.configuration.proc
    # The exit comes before the fault on reserved bits (SDM 3C 26.1.1).
    if proc & ProcBased.CR8_LOAD_EXITING:
        return _exit(p, i, 8, CrAccessType.MOV_TO_CR, general)
    if value >> 4:
        return p.raise_exception(Vector.GP, 0)
    if proc & ProcBased.USE_TPR_SHADOW:
        p.advance(i)
        return p.apic.write_tpr(value << 4)
    return p.complete(i)


def _write_cr3(p: Processor, i: Instruction, general: int, value: int) -> int:
    words = p.words
    if p.configuration.proc & ProcBased.CR3_LOAD_EXITING:
        targets = [words[where] for where in _CR3_TARGETS[: words[_CR3_TARGET_COUNT]]]
        if value not in targets:
            return _exit(p, i, 3, CrAccessType.MOV_TO_CR, general)
    if words[_EFER] & Efer.LMA:
        if words[_CR4] & Cr4.PCIDE:
            value &= ~(1 << 63)
        if value >> p.capabilities.physical_address_width:
            return p.raise_exception(Vector.GP, 0)
    elif _pae_paging(words[_CR0], words[_CR4], words[_EFER]) and not p.load_pdptes(value):
        return p.raise_exception(Vector.GP, 0)
    words[_CR3] = value
    p.flush_translations()
    return p.complete(i)


def _pae_paging(cr0: int, cr4: int, efer: int) -> bool:
    return bool(cr0 & Cr0.PG and cr4 & Cr4.PAE and not efer & Efer.LMA)


def _cr0_allowed(p: Processor, value: int) -> bool:
    if value >> 32 or (value & Cr0.PG and not value & Cr0.PE) or (value & Cr0.NW and not value & Cr0.CD):
        return False
    fixed0, fixed1 = p.capabilities.cr0_fixed0, p.capabilities.cr0_fixed1
    if p.configuration.proc2 & ProcBased2.UNRESTRICTED_GUEST:
        fixed0 &= ~(Cr0.PE | Cr0.PG)
    return not fixed0 & ~value and not value & ~fixed1 & _CR0_DEFINED


def load_cr0(p: Processor, value: int) -> bool:
    """Carry out a write of CR0; False means #GP(0)."""
    words = p.words
    old, cr4, efer = words[_CR0], words[_CR4], words[_EFER]
    value = (value & (_CR0_DEFINED | ~0xFFFF_FFFF)) | Cr0.ET
    if not _cr0_allowed(p, value):
        return False
    if value & Cr0.PG and not old & Cr0.PG:
        if efer & Efer.LME:
            if not cr4 & Cr4.PAE or words[_CS_RIGHTS] >> 13 & 1:
                return False
            efer |= Efer.LMA
        elif cr4 & Cr4.PAE and not p.load_pdptes(words[_CR3]):
            return False
    elif old & Cr0.PG and not value & Cr0.PG:
        if cr4 & Cr4.PCIDE or (efer & Efer.LMA and words[_CS_RIGHTS] >> 13 & 1):
            return False
        efer &= ~Efer.LMA
    elif _pae_paging(value, cr4, efer) and (old ^ value) & (Cr0.CD | Cr0.NW) and not p.load_pdptes(words[_CR3]):
        return False
    words[_CR0], words[_EFER] = int(value), int(efer) & _M64
    return True


def load_cr4(p: Processor, value: int) -> bool:
    """Carry out a write of CR4; False means #GP(0)."""
    words = p.words
    old, cr0, efer = words[_CR4], words[_CR0], words[_EFER]
    caps = p.capabilities
    if caps.cr4_fixed0 & ~value or value & ~caps.cr4_fixed1:
        return False
    if efer & Efer.LMA and (not value & Cr4.PAE or (old ^ value) & Cr4.LA57):
        return False
    if value & ~old & Cr4.PCIDE and (not efer & Efer.LMA or words[_CR3] & 0xFFF):
        return False
    reload_bits = Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP
    if _pae_paging(cr0, value, efer) and (old ^ value) & reload_bits and not p.load_pdptes(words[_CR3]):
        return False
    words[_CR4] = value
    return True
