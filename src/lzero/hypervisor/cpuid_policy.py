"""What CPUID tells the guest: one row per leaf (SDM 2A, CPUID)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lzero.platform.interrupts.lapic_timer import APIC_TIMER_HZ
from lzero.sdm.cpuid import (
    ExtendedEcx1,
    ExtendedEdx1,
    ExtendedEdx7,
    Leaf,
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Edx,
    vendor_registers,
)

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["Registers", "cpuid"]

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

_SIGNATURE = 0x0005_0657
"""Family 6, model 0x55, stepping 7."""
_BRAND = "lzero virtual processor".ljust(48, "\0")

_LEAF1_EDX = (
    Leaf1Edx.FPU | Leaf1Edx.VME | Leaf1Edx.DE | Leaf1Edx.PSE | Leaf1Edx.TSC | Leaf1Edx.MSR | Leaf1Edx.PAE
    | Leaf1Edx.MCE | Leaf1Edx.CX8 | Leaf1Edx.APIC | Leaf1Edx.SEP | Leaf1Edx.MTRR | Leaf1Edx.PGE | Leaf1Edx.MCA
    | Leaf1Edx.CMOV | Leaf1Edx.PAT | Leaf1Edx.PSE36 | Leaf1Edx.CLFSH | Leaf1Edx.MMX | Leaf1Edx.FXSR | Leaf1Edx.SSE
    | Leaf1Edx.SSE2
)  # fmt: skip
_LEAF1_ECX = (
    Leaf1Ecx.SSE3 | Leaf1Ecx.PCLMULQDQ | Leaf1Ecx.SSSE3 | Leaf1Ecx.CMPXCHG16B | Leaf1Ecx.SSE4_1 | Leaf1Ecx.SSE4_2
    | Leaf1Ecx.X2APIC | Leaf1Ecx.MOVBE | Leaf1Ecx.POPCNT | Leaf1Ecx.TSC_DEADLINE | Leaf1Ecx.AESNI | Leaf1Ecx.HYPERVISOR
)  # fmt: skip
_LEAF7_EBX = Leaf7Ebx.FSGSBASE | Leaf7Ebx.TSC_ADJUST | Leaf7Ebx.ERMS | Leaf7Ebx.SMEP | Leaf7Ebx.SMAP
"""No BMI1, BMI2 or ADX: the engine has them only while CR4.OSFXSR is 1, and decompressors use them before."""
_CRYSTAL_HZ = APIC_TIMER_HZ  # where this leaf is offered, software takes the local APIC timer's clock from it
_FEATURES_ECX, _FEATURES_EDX = int(_LEAF1_ECX), int(_LEAF1_EDX)
_VMX, _APIC = int(Leaf1Ecx.VMX), int(Leaf1Edx.APIC)


def _names(highest: int, text: str) -> Callable[[Vcpu, int], Registers]:
    """A leaf that reports the highest leaf of its range and a vendor string."""
    registers = (highest, *vendor_registers(text))
    return lambda vcpu, subleaf: registers


def _features(vcpu: Vcpu, subleaf: int) -> Registers:
    ecx, edx = _FEATURES_ECX, _FEATURES_EDX
    if vcpu.offers_vmx:
        ecx |= _VMX
    if not vcpu.pc.lapic.enabled:
        edx &= ~_APIC
    return _SIGNATURE, 0x0001_0800, ecx, edx


def _structured(vcpu: Vcpu, subleaf: int) -> Registers:
    if subleaf:
        return 0, 0, 0, 0
    return 0, int(_LEAF7_EBX), 0, int(Leaf7Edx.ARCH_CAPABILITIES)


def _cache(vcpu: Vcpu, subleaf: int) -> Registers:
    """Deterministic cache parameters: 32 KiB L1 data and code, 1 MiB L2, one thread, one core."""
    kinds = ((1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024))
    if subleaf >= len(kinds):
        return 0, 0, 0, 0
    kind, level, ways, sets = kinds[subleaf]
    return kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0


def _topology(vcpu: Vcpu, subleaf: int) -> Registers:
    if subleaf > 1:
        return 0, 0, subleaf, 0
    return 0, 1, subleaf | (subleaf + 1) << 8, 0


def _tsc(vcpu: Vcpu, subleaf: int) -> Registers:
    numerator = vcpu.pc.clock.tsc_hz // 1_000_000
    return _CRYSTAL_HZ // 1_000_000, numerator, _CRYSTAL_HZ, 0


def _frequency(vcpu: Vcpu, subleaf: int) -> Registers:
    mhz = vcpu.pc.clock.tsc_hz // 1_000_000
    return mhz, mhz, 100, 0


def _extended(vcpu: Vcpu, subleaf: int) -> Registers:
    edx = int(ExtendedEdx1.SYSCALL | ExtendedEdx1.NX | ExtendedEdx1.PAGE_1G | ExtendedEdx1.RDTSCP | ExtendedEdx1.LM)
    return 0, 0, int(ExtendedEcx1.LAHF_SAHF), edx


def _brand(part: int) -> Callable[[Vcpu, int], Registers]:
    data = _BRAND.encode("ascii")[16 * part : 16 * part + 16]
    a, b, c, d = (int.from_bytes(data[n : n + 4], "little") for n in range(0, 16, 4))
    return lambda vcpu, subleaf: (a, b, c, d)


def _zero(vcpu: Vcpu, subleaf: int) -> Registers:
    return 0, 0, 0, 0


def _hypervisor_timing(vcpu: Vcpu, subleaf: int) -> Registers:
    return vcpu.pc.clock.tsc_hz // 1000, 1_000_000, 0, 0


_LEAVES: dict[int, Callable[[Vcpu, int], Registers]] = {
    Leaf.VENDOR: _names(0x16, "GenuineIntel"),
    Leaf.FEATURES: _features,
    Leaf.CACHE_DESCRIPTORS: lambda vcpu, subleaf: (0x00FF_FF01, 0, 0, 0),
    Leaf.CACHE_PARAMETERS: _cache,
    Leaf.THERMAL_POWER: lambda vcpu, subleaf: (4, 0, 0, 0),  # the APIC timer always runs
    Leaf.STRUCTURED_FEATURES: _structured,
    Leaf.EXTENDED_TOPOLOGY: _topology,
    Leaf.TSC_FREQUENCY: _tsc,
    Leaf.PROCESSOR_FREQUENCY: _frequency,
    Leaf.HYPERVISOR: _names(0x4000_0010, "lzerolzeroL0"),
    Leaf.HYPERVISOR_TIMING: _hypervisor_timing,
    0x8000_0000: lambda vcpu, subleaf: (0x8000_0008, 0, 0, 0),
    0x8000_0001: _extended,
    0x8000_0002: _brand(0),
    0x8000_0003: _brand(1),
    0x8000_0004: _brand(2),
    0x8000_0006: lambda vcpu, subleaf: (0, 0, 0x0400_8040, 0),
    0x8000_0007: lambda vcpu, subleaf: (0, 0, 0, int(ExtendedEdx7.INVARIANT_TSC)),
    0x8000_0008: lambda vcpu, subleaf: (vcpu.physical_address_bits | 48 << 8, 0, 0, 0),
}


def cpuid(vcpu: Vcpu, leaf: int, subleaf: int) -> Registers:
    """EAX, EBX, ECX and EDX for a leaf and subleaf.

    A leaf beyond the highest basic one reads as that one does, as on Intel's processors.
    """
    row = _LEAVES.get(leaf)
    if row is None:
        if 0x16 < leaf < 0x4000_0000:
            row = _frequency
        else:
            row = _zero
    return row(vcpu, subleaf)
