"""What RDMSR and WRMSR do for the guest: one row per MSR (SDM 4, chapter 2).

An MSR that has no row is unknown: #GP, or 0 and one warning under ``ignore_msrs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lzero.platform.interrupts.lapic import MsrFault
from lzero.sdm.msrs import X2APIC_FIRST, X2APIC_LAST, Msr
from lzero.sdm.registers import Cr0, Efer, is_canonical
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["MsrFault", "MsrPolicy"]

Read = Callable[["Vcpu"], int]
Write = Callable[["Vcpu", int], None]
_M64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Row:
    """How one MSR behaves; no ``write`` means read-only (a write is #GP)."""

    read: Read
    write: Write | None


def _constant(value: int) -> _Row:
    return _Row(lambda vcpu: value, None)


def _ignored(value: int = 0) -> _Row:
    """Reads as a constant, takes any write and forgets it."""
    return _Row(lambda vcpu: value, lambda vcpu, new: None)


def _stored(index: int, initial: int, valid: int = _M64) -> _Row:
    """Keeps what is written; bits outside `valid` are #GP."""

    def read(vcpu: Vcpu) -> int:
        return vcpu.msrs.values.get(index, initial)

    def write(vcpu: Vcpu, value: int) -> None:
        if value & ~valid:
            raise MsrFault("WRMSR: value or register not accepted")
        vcpu.msrs.values[index] = value

    return _Row(read, write)


def _field(field: Field, *, canonical: bool = False, valid: int = _M64) -> _Row:
    """An MSR that the processor keeps in the VMCS."""

    def write(vcpu: Vcpu, value: int) -> None:
        if (canonical and not is_canonical(value)) or value & ~valid:
            raise MsrFault("WRMSR: value or register not accepted")
        vcpu.cpu.vmwrite(field, value)

    return _Row(lambda vcpu: vcpu.cpu.vmread(field), write)


def _register(name: str, *, canonical: bool = False, mask: int = _M64) -> _Row:
    """An MSR that L0 shares with its guest: it keeps the guest's value in the processor while the guest runs."""

    def write(vcpu: Vcpu, value: int) -> None:
        if canonical and not is_canonical(value):
            raise MsrFault("WRMSR: value or register not accepted")
        vcpu.cpu.wrmsr(name, value & mask)

    return _Row(lambda vcpu: vcpu.cpu.rdmsr(name), write)


def _write_efer(vcpu: Vcpu, value: int) -> None:
    known = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE
    old = vcpu.cpu.vmread(Field.GUEST_IA32_EFER)
    if value & ~known or ((old ^ value) & Efer.LME and vcpu.cpu.vmread(Field.GUEST_CR0) & Cr0.PG):
        raise MsrFault("WRMSR: value or register not accepted")
    vcpu.cpu.vmwrite(Field.GUEST_IA32_EFER, (value & ~Efer.LMA) | (old & Efer.LMA))


def _write_pat(vcpu: Vcpu, value: int) -> None:
    if any((value >> shift & 0xFF) not in (0, 1, 4, 5, 6, 7) for shift in range(0, 64, 8)):
        raise MsrFault("WRMSR: value or register not accepted")
    vcpu.cpu.vmwrite(Field.GUEST_IA32_PAT, value)


def _write_apic_base(vcpu: Vcpu, value: int) -> None:
    vcpu.pc.lapic.base = value
    vcpu.place_apic()


def _write_tsc_adjust(vcpu: Vcpu, value: int) -> None:
    delta = value - vcpu.msrs.values.get(Msr.IA32_TSC_ADJUST, 0)
    vcpu.msrs.values[Msr.IA32_TSC_ADJUST] = value
    vcpu.set_tsc(vcpu.pc.clock.tsc() + delta)


def _write_tsc(vcpu: Vcpu, value: int) -> None:
    adjust = vcpu.msrs.values.get(Msr.IA32_TSC_ADJUST, 0)
    vcpu.msrs.values[Msr.IA32_TSC_ADJUST] = (adjust + value - vcpu.pc.clock.tsc()) & _M64
    vcpu.set_tsc(value)


def _read_feature_control(vcpu: Vcpu) -> int:
    """Locked, as firmware leaves it where there is no VMX; else open until the guest locks it."""
    return vcpu.msrs.feature_control if vcpu.offers_vmx else 1


def _write_feature_control(vcpu: Vcpu, value: int) -> None:
    if vcpu.msrs.feature_control & 1 or not vcpu.offers_vmx:
        raise MsrFault("WRMSR: value or register not accepted")
    vcpu.msrs.feature_control = value


_ARCH_CAPABILITY_BITS = {
    "RDCL_NO": 0, "SKIP_L1DFL_VMENTRY": 3, "SSB_NO": 4, "MDS_NO": 5, "IF_PSCHANGE_MC_NO": 6, "TAA_NO": 8,
    "SBDR_SSDP_NO": 13, "FBSDP_NO": 14, "PSDP_NO": 15, "BHI_NO": 20, "PBRSB_NO": 24, "GDS_NO": 26, "RFDS_NO": 27,
    "ITS_NO": 62,
}  # fmt: skip
"""IA32_ARCH_CAPABILITIES: nothing here executes ahead of time in a way that a guest could see."""
_ARCH_CAPABILITIES = sum(1 << bit for bit in _ARCH_CAPABILITY_BITS.values())


def _mtrr_rows() -> dict[int, _Row]:
    fixed = [Msr.IA32_MTRR_FIX64K_00000, Msr.IA32_MTRR_FIX16K_80000, Msr.IA32_MTRR_FIX16K_A0000]
    fixed += [Msr(n) for n in range(Msr.IA32_MTRR_FIX4K_C0000, Msr.IA32_MTRR_FIX4K_F8000 + 1)]
    variable = range(Msr.IA32_MTRR_PHYSBASE0, Msr.IA32_MTRR_PHYSMASK7 + 1)
    rows = {int(n): _stored(int(n), 0) for n in (*fixed, *variable)}
    rows[Msr.IA32_MTRRCAP] = _constant(0x508)
    rows[Msr.IA32_MTRR_DEF_TYPE] = _stored(Msr.IA32_MTRR_DEF_TYPE, 0xC06, 0xCFF)
    return rows


def _rows() -> dict[int, _Row]:
    rows: dict[int, _Row] = {
        Msr.IA32_TIME_STAMP_COUNTER: _Row(lambda vcpu: vcpu.pc.clock.tsc(), _write_tsc),
        Msr.IA32_TSC_ADJUST: _Row(lambda vcpu: vcpu.msrs.values.get(Msr.IA32_TSC_ADJUST, 0), _write_tsc_adjust),
        Msr.IA32_APIC_BASE: _Row(lambda vcpu: vcpu.pc.lapic.base, _write_apic_base),
        Msr.IA32_FEATURE_CONTROL: _Row(_read_feature_control, _write_feature_control),
        Msr.IA32_PLATFORM_ID: _constant(0),
        Msr.IA32_BIOS_SIGN_ID: _ignored(0),
        Msr.IA32_BIOS_UPDT_TRIG: _Row(lambda vcpu: 0, lambda vcpu, value: None),
        Msr.MSR_PLATFORM_INFO: _Row(lambda vcpu: (vcpu.pc.clock.tsc_hz // 100_000_000) << 8, None),
        Msr.IA32_ARCH_CAPABILITIES: _constant(_ARCH_CAPABILITIES),
        Msr.IA32_MCG_CAP: _constant(0),
        Msr.IA32_MCG_STATUS: _stored(Msr.IA32_MCG_STATUS, 0),
        Msr.IA32_MISC_ENABLE: _stored(Msr.IA32_MISC_ENABLE, 1 | 1 << 11 | 1 << 12),
        Msr.IA32_DEBUGCTL: _field(Field.GUEST_IA32_DEBUGCTL, valid=3),
        Msr.IA32_EFER: _Row(lambda vcpu: vcpu.cpu.vmread(Field.GUEST_IA32_EFER), _write_efer),
        Msr.IA32_PAT: _Row(lambda vcpu: vcpu.cpu.vmread(Field.GUEST_IA32_PAT), _write_pat),
        Msr.IA32_SYSENTER_CS: _field(Field.GUEST_IA32_SYSENTER_CS),
        Msr.IA32_SYSENTER_ESP: _field(Field.GUEST_IA32_SYSENTER_ESP, canonical=True),
        Msr.IA32_SYSENTER_EIP: _field(Field.GUEST_IA32_SYSENTER_EIP, canonical=True),
        Msr.IA32_FS_BASE: _field(Field.GUEST_FS_BASE, canonical=True),
        Msr.IA32_GS_BASE: _field(Field.GUEST_GS_BASE, canonical=True),
        Msr.IA32_KERNEL_GS_BASE: _register("kernel_gs_base", canonical=True),
        Msr.IA32_STAR: _register("star"),
        Msr.IA32_LSTAR: _register("lstar", canonical=True),
        Msr.IA32_CSTAR: _register("cstar", canonical=True),
        Msr.IA32_FMASK: _register("fmask", mask=0xFFFF_FFFF),
        Msr.IA32_TSC_AUX: _register("tsc_aux", mask=0xFFFF_FFFF),
        Msr.IA32_TSC_DEADLINE: _Row(lambda vcpu: vcpu.pc.lapic.timer.tsc_deadline, _write_tsc_deadline),
    }
    rows.update(_mtrr_rows())
    return rows


def _write_tsc_deadline(vcpu: Vcpu, value: int) -> None:
    vcpu.pc.lapic.timer.tsc_deadline = value


_ROWS = _rows()


class MsrPolicy:
    """The MSRs of one VCPU.

    Parameters
    ----------
    vcpu:
        Whose MSRs they are.
    ignore_unknown:
        Unknown MSRs read as 0 and take writes, with one warning each.
    warn:
        Receives the warnings.
    """

    def __init__(self, vcpu: Vcpu, *, ignore_unknown: bool, warn: Callable[[str], None]) -> None:
        self._vcpu = vcpu
        self._ignore_unknown = ignore_unknown
        self._warn = warn
        self._warned: set[int] = set()
        self.values: dict[int, int] = {}
        self.feature_control = 0
        self.more: dict[int, int] = {}
        """Read-only MSRs that other parts of L0 add, such as the VMX capabilities."""

    def read(self, index: int) -> int:
        """RDMSR.

        Raises
        ------
        MsrFault
            The access is #GP.
        """
        row = _ROWS.get(index)
        if row is not None:
            return row.read(self._vcpu) & _M64
        if X2APIC_FIRST <= index <= X2APIC_LAST:
            return self._vcpu.pc.lapic.read_msr(index)
        if index in self.more:
            return self.more[index]
        return self._unknown(index, "read")

    def write(self, index: int, value: int) -> None:
        """WRMSR; raises :class:`MsrFault` where it is #GP."""
        row = _ROWS.get(index)
        if row is not None:
            if row.write is None:
                raise MsrFault("WRMSR: value or register not accepted")
            row.write(self._vcpu, value)
        elif X2APIC_FIRST <= index <= X2APIC_LAST:
            self._vcpu.pc.lapic.write_msr(index, value)
        elif index in self.more:
            raise MsrFault("WRMSR: value or register not accepted")
        else:
            self._unknown(index, f"write of {value:#x}")

    def _unknown(self, index: int, what: str) -> int:
        if not self._ignore_unknown:
            raise MsrFault("WRMSR: value or register not accepted")
        if index not in self._warned:
            self._warned.add(index)
            self._warn(f"unknown MSR {index:#x}: {what} ignored (--ignore-msrs)")
        return 0
