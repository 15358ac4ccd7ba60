"""CPUID leaves and feature bits (SDM vol. 2, CPUID instruction, tables 3-8 and following).

One class per register of a leaf; member names are those of Linux's ``cpufeatures.h`` in the manual's spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType

__all__ = [
    "FEATURES",
    "CpuidFeature",
    "ExtendedEcx1",
    "ExtendedEdx1",
    "ExtendedEdx7",
    "Leaf",
    "Leaf1Ecx",
    "Leaf1Edx",
    "Leaf6Eax",
    "Leaf7Ebx",
    "Leaf7Ecx",
    "Leaf7Edx",
    "LeafDEax1",
    "vendor_registers",
]


class Leaf(IntEnum):
    """CPUID leaves by what they report."""

    VENDOR = 0x0
    FEATURES = 0x1
    CACHE_DESCRIPTORS = 0x2
    SERIAL_NUMBER = 0x3
    CACHE_PARAMETERS = 0x4
    MONITOR_MWAIT = 0x5
    THERMAL_POWER = 0x6
    STRUCTURED_FEATURES = 0x7
    DIRECT_CACHE_ACCESS = 0x9
    PERFORMANCE_MONITORING = 0xA
    EXTENDED_TOPOLOGY = 0xB
    XSAVE = 0xD
    RESOURCE_MONITORING = 0xF
    RESOURCE_ALLOCATION = 0x10
    SGX = 0x12
    PROCESSOR_TRACE = 0x14
    TSC_FREQUENCY = 0x15
    PROCESSOR_FREQUENCY = 0x16
    KEY_LOCKER = 0x19
    V2_EXTENDED_TOPOLOGY = 0x1F
    HYPERVISOR = 0x4000_0000
    HYPERVISOR_FEATURES = 0x4000_0001
    HYPERVISOR_TIMING = 0x4000_0010
    EXTENDED_MAXIMUM = 0x8000_0000
    EXTENDED_FEATURES = 0x8000_0001
    BRAND_STRING_1 = 0x8000_0002
    BRAND_STRING_2 = 0x8000_0003
    BRAND_STRING_3 = 0x8000_0004
    L1_CACHE_TLB = 0x8000_0005
    L2_CACHE = 0x8000_0006
    ADVANCED_POWER = 0x8000_0007
    ADDRESS_SIZES = 0x8000_0008


class Leaf1Ecx(IntFlag):
    """CPUID.01H:ECX."""

    SSE3 = 1 << 0
    PCLMULQDQ = 1 << 1
    DTES64 = 1 << 2
    MONITOR = 1 << 3
    DS_CPL = 1 << 4
    VMX = 1 << 5
    SMX = 1 << 6
    EIST = 1 << 7
    TM2 = 1 << 8
    SSSE3 = 1 << 9
    CNXT_ID = 1 << 10
    SDBG = 1 << 11
    FMA = 1 << 12
    CMPXCHG16B = 1 << 13
    XTPR = 1 << 14
    PDCM = 1 << 15
    PCID = 1 << 17
    DCA = 1 << 18
    SSE4_1 = 1 << 19
    SSE4_2 = 1 << 20
    X2APIC = 1 << 21
    MOVBE = 1 << 22
    POPCNT = 1 << 23
    TSC_DEADLINE = 1 << 24
    AESNI = 1 << 25
    XSAVE = 1 << 26
    OSXSAVE = 1 << 27
    AVX = 1 << 28
    F16C = 1 << 29
    RDRAND = 1 << 30
    HYPERVISOR = 1 << 31


class Leaf1Edx(IntFlag):
    """CPUID.01H:EDX."""

    FPU = 1 << 0
    VME = 1 << 1
    DE = 1 << 2
    PSE = 1 << 3
    TSC = 1 << 4
    MSR = 1 << 5
    PAE = 1 << 6
    MCE = 1 << 7
    CX8 = 1 << 8
    APIC = 1 << 9
    SEP = 1 << 11
    MTRR = 1 << 12
    PGE = 1 << 13
    MCA = 1 << 14
    CMOV = 1 << 15
    PAT = 1 << 16
    PSE36 = 1 << 17
    PSN = 1 << 18
    CLFSH = 1 << 19
    DS = 1 << 21
    ACPI = 1 << 22
    MMX = 1 << 23
    FXSR = 1 << 24
    SSE = 1 << 25
    SSE2 = 1 << 26
    SS = 1 << 27
    HTT = 1 << 28
    TM = 1 << 29
    PBE = 1 << 31


class Leaf6Eax(IntFlag):
    """CPUID.06H:EAX."""

    DIGITAL_TEMPERATURE_SENSOR = 1 << 0
    TURBO_BOOST = 1 << 1
    ARAT = 1 << 2


class Leaf7Ebx(IntFlag):
    """CPUID.(07H,0):EBX."""

    FSGSBASE = 1 << 0
    TSC_ADJUST = 1 << 1
    SGX = 1 << 2
    BMI1 = 1 << 3
    HLE = 1 << 4
    AVX2 = 1 << 5
    FDP_EXCPTN_ONLY = 1 << 6
    SMEP = 1 << 7
    BMI2 = 1 << 8
    ERMS = 1 << 9
    INVPCID = 1 << 10
    RTM = 1 << 11
    RDT_M = 1 << 12
    ZERO_FCS_FDS = 1 << 13
    MPX = 1 << 14
    RDT_A = 1 << 15
    AVX512F = 1 << 16
    AVX512DQ = 1 << 17
    RDSEED = 1 << 18
    ADX = 1 << 19
    SMAP = 1 << 20
    CLFLUSHOPT = 1 << 23
    CLWB = 1 << 24
    INTEL_PT = 1 << 25
    SHA = 1 << 29


class Leaf7Ecx(IntFlag):
    """CPUID.(07H,0):ECX."""

    UMIP = 1 << 2
    PKU = 1 << 3
    OSPKE = 1 << 4
    WAITPKG = 1 << 5
    CET_SS = 1 << 7
    LA57 = 1 << 16
    RDPID = 1 << 22
    KL = 1 << 23
    BUS_LOCK_DETECT = 1 << 24
    CLDEMOTE = 1 << 25
    MOVDIRI = 1 << 27
    MOVDIR64B = 1 << 28
    ENQCMD = 1 << 29
    SGX_LC = 1 << 30
    PKS = 1 << 31


class Leaf7Edx(IntFlag):
    """CPUID.(07H,0):EDX."""

    FSRM = 1 << 4
    UINTR = 1 << 5
    MD_CLEAR = 1 << 10
    SERIALIZE = 1 << 14
    HYBRID = 1 << 15
    PCONFIG = 1 << 18
    ARCH_LBR = 1 << 19
    CET_IBT = 1 << 20
    IBRS_IBPB = 1 << 26
    STIBP = 1 << 27
    L1D_FLUSH = 1 << 28
    ARCH_CAPABILITIES = 1 << 29
    CORE_CAPABILITIES = 1 << 30
    SSBD = 1 << 31


class LeafDEax1(IntFlag):
    """CPUID.(0DH,1):EAX."""

    XSAVEOPT = 1 << 0
    XSAVEC = 1 << 1
    XGETBV_ECX1 = 1 << 2
    XSAVES = 1 << 3
    XFD = 1 << 4


class ExtendedEcx1(IntFlag):
    """CPUID.80000001H:ECX."""

    LAHF_SAHF = 1 << 0
    SVM = 1 << 2
    LZCNT = 1 << 5
    PREFETCHW = 1 << 8


class ExtendedEdx1(IntFlag):
    """CPUID.80000001H:EDX."""

    SYSCALL = 1 << 11
    NX = 1 << 20
    PAGE_1G = 1 << 26
    RDTSCP = 1 << 27
    LM = 1 << 29


class ExtendedEdx7(IntFlag):
    """CPUID.80000007H:EDX."""

    INVARIANT_TSC = 1 << 8


FeatureBit = (
    Leaf1Ecx
    | Leaf1Edx
    | Leaf6Eax
    | Leaf7Ebx
    | Leaf7Ecx
    | Leaf7Edx
    | LeafDEax1
    | ExtendedEcx1
    | ExtendedEdx1
    | ExtendedEdx7
)
"""One feature bit of any known register."""


@dataclass(frozen=True, slots=True)
class CpuidFeature:
    """One feature bit and where CPUID reports it."""

    name: str
    leaf: int
    subleaf: int
    register: str
    bit: int
    flag: FeatureBit
    section: str


_REGISTERS: tuple[tuple[type[FeatureBit], int, int, str], ...] = (
    (Leaf1Ecx, 0x1, 0, "ecx"),
    (Leaf1Edx, 0x1, 0, "edx"),
    (Leaf6Eax, 0x6, 0, "eax"),
    (Leaf7Ebx, 0x7, 0, "ebx"),
    (Leaf7Ecx, 0x7, 0, "ecx"),
    (Leaf7Edx, 0x7, 0, "edx"),
    (LeafDEax1, 0xD, 1, "eax"),
    (ExtendedEcx1, 0x8000_0001, 0, "ecx"),
    (ExtendedEdx1, 0x8000_0001, 0, "edx"),
    (ExtendedEdx7, 0x8000_0007, 0, "edx"),
)
_SECTION = "vol. 2A, CPUID"


def _feature(flag: FeatureBit, leaf: int, subleaf: int, register: str) -> CpuidFeature:
    bit = int(flag).bit_length() - 1
    return CpuidFeature(flag.name or "", leaf, subleaf, register, bit, flag, _SECTION)


FEATURES: Mapping[tuple[int, int, str, int], CpuidFeature] = MappingProxyType(
    {
        (leaf, subleaf, register, int(flag).bit_length() - 1): _feature(flag, leaf, subleaf, register)
        for cls, leaf, subleaf, register in _REGISTERS
        for flag in cls
    }
)
"""Known feature bits by (leaf, subleaf, register, bit)."""


def vendor_registers(vendor: str) -> tuple[int, int, int]:
    """EBX, ECX, EDX of leaf 0 for a vendor string.

    Raises
    ------
    ValueError
        The string is not 12 ASCII characters.
    """
    text = vendor.encode("ascii")
    if len(text) != 12:
        raise ValueError(f"a vendor string has 12 characters, {vendor!r} has {len(text)}")
    ebx, edx, ecx = (int.from_bytes(text[i : i + 4], "little") for i in (0, 4, 8))
    return ebx, ecx, edx
