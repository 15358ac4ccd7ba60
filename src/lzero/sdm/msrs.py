"""Model-specific registers that a guest of a hypervisor meets (SDM vol. 4, chapter 2; vol. 3, appendix A).

Member names are Intel's; Linux's names are aliases where it uses another (``MSR_GS_BASE`` is ``IA32_GS_BASE``). Numbers
that only AMD processors or KVM's paravirtual interface define are marked so in their rows: Linux probes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

__all__ = ["MSRS", "X2APIC_FIRST", "X2APIC_LAST", "Msr", "MsrRow", "msr_name"]

X2APIC_FIRST = 0x800
"""First MSR of the x2APIC register range (11.12.1.2)."""
X2APIC_LAST = 0x8FF
"""Last MSR of the x2APIC register range."""


class Msr(IntEnum):
    """MSR numbers by Intel's architectural names."""

    IA32_P5_MC_ADDR = 0x0
    IA32_P5_MC_TYPE = 0x1
    IA32_MONITOR_FILTER_SIZE = 0x6
    IA32_TIME_STAMP_COUNTER = 0x10
    IA32_PLATFORM_ID = 0x17
    IA32_APIC_BASE = 0x1B
    EBL_CR_POWERON = 0x2A
    MSR_TEST_CTRL = 0x33
    MSR_SMI_COUNT = 0x34
    MSR_CORE_THREAD_COUNT = 0x35
    IA32_FEATURE_CONTROL = 0x3A
    IA32_TSC_ADJUST = 0x3B
    IA32_SPEC_CTRL = 0x48
    IA32_PRED_CMD = 0x49
    IA32_BIOS_UPDT_TRIG = 0x79
    IA32_BIOS_SIGN_ID = 0x8B
    IA32_SMM_MONITOR_CTL = 0x9B
    IA32_SMBASE = 0x9E
    IA32_PMC0 = 0xC1
    IA32_PMC1 = 0xC2
    IA32_PMC2 = 0xC3
    IA32_PMC3 = 0xC4
    IA32_CORE_CAPABILITIES = 0xCF
    MSR_PLATFORM_INFO = 0xCE
    IA32_UMWAIT_CONTROL = 0xE1
    MSR_PKG_CST_CONFIG_CONTROL = 0xE2
    IA32_MPERF = 0xE7
    IA32_APERF = 0xE8
    IA32_MTRRCAP = 0xFE
    IA32_ARCH_CAPABILITIES = 0x10A
    IA32_FLUSH_CMD = 0x10B
    IA32_TSX_CTRL = 0x122
    MSR_MISC_FEATURES_ENABLES = 0x140
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_MCG_CAP = 0x179
    IA32_MCG_STATUS = 0x17A
    IA32_MCG_CTL = 0x17B
    IA32_PERFEVTSEL0 = 0x186
    IA32_PERFEVTSEL1 = 0x187
    IA32_PERFEVTSEL2 = 0x188
    IA32_PERFEVTSEL3 = 0x189
    IA32_PERF_STATUS = 0x198
    IA32_PERF_CTL = 0x199
    IA32_CLOCK_MODULATION = 0x19A
    IA32_THERM_INTERRUPT = 0x19B
    IA32_THERM_STATUS = 0x19C
    IA32_MISC_ENABLE = 0x1A0
    MSR_TEMPERATURE_TARGET = 0x1A2
    MSR_OFFCORE_RSP_0 = 0x1A6
    MSR_OFFCORE_RSP_1 = 0x1A7
    IA32_ENERGY_PERF_BIAS = 0x1B0
    IA32_XFD = 0x1C4
    IA32_XFD_ERR = 0x1C5
    MSR_LBR_SELECT = 0x1C8
    MSR_LASTBRANCH_TOS = 0x1C9
    IA32_DEBUGCTL = 0x1D9
    MSR_LASTBRANCHFROMIP = 0x1DB
    MSR_LASTBRANCHTOIP = 0x1DC
    MSR_LASTINTFROMIP = 0x1DD
    MSR_LASTINTTOIP = 0x1DE
    MSR_POWER_CTL = 0x1FC
    IA32_MTRR_PHYSBASE0 = 0x200
    IA32_MTRR_PHYSMASK0 = 0x201
    IA32_MTRR_PHYSBASE7 = 0x20E
    IA32_MTRR_PHYSMASK7 = 0x20F
    IA32_MTRR_FIX64K_00000 = 0x250
    IA32_MTRR_FIX16K_80000 = 0x258
    IA32_MTRR_FIX16K_A0000 = 0x259
    IA32_MTRR_FIX4K_C0000 = 0x268
    IA32_MTRR_FIX4K_C8000 = 0x269
    IA32_MTRR_FIX4K_D0000 = 0x26A
    IA32_MTRR_FIX4K_D8000 = 0x26B
    IA32_MTRR_FIX4K_E0000 = 0x26C
    IA32_MTRR_FIX4K_E8000 = 0x26D
    IA32_MTRR_FIX4K_F0000 = 0x26E
    IA32_MTRR_FIX4K_F8000 = 0x26F
    IA32_PAT = 0x277
    IA32_MC0_CTL2 = 0x280
    IA32_MTRR_DEF_TYPE = 0x2FF
    IA32_FIXED_CTR0 = 0x309
    IA32_FIXED_CTR1 = 0x30A
    IA32_FIXED_CTR2 = 0x30B
    IA32_PERF_CAPABILITIES = 0x345
    IA32_FIXED_CTR_CTRL = 0x38D
    IA32_PERF_GLOBAL_STATUS = 0x38E
    IA32_PERF_GLOBAL_CTRL = 0x38F
    IA32_PERF_GLOBAL_OVF_CTRL = 0x390
    IA32_PEBS_ENABLE = 0x3F1
    IA32_MC0_CTL = 0x400
    IA32_MC0_STATUS = 0x401
    IA32_MC0_ADDR = 0x402
    IA32_MC0_MISC = 0x403
    IA32_VMX_BASIC = 0x480
    IA32_VMX_PINBASED_CTLS = 0x481
    IA32_VMX_PROCBASED_CTLS = 0x482
    IA32_VMX_EXIT_CTLS = 0x483
    IA32_VMX_ENTRY_CTLS = 0x484
    IA32_VMX_MISC = 0x485
    IA32_VMX_CR0_FIXED0 = 0x486
    IA32_VMX_CR0_FIXED1 = 0x487
    IA32_VMX_CR4_FIXED0 = 0x488
    IA32_VMX_CR4_FIXED1 = 0x489
    IA32_VMX_VMCS_ENUM = 0x48A
    IA32_VMX_PROCBASED_CTLS2 = 0x48B
    IA32_VMX_EPT_VPID_CAP = 0x48C
    IA32_VMX_TRUE_PINBASED_CTLS = 0x48D
    IA32_VMX_TRUE_PROCBASED_CTLS = 0x48E
    IA32_VMX_TRUE_EXIT_CTLS = 0x48F
    IA32_VMX_TRUE_ENTRY_CTLS = 0x490
    IA32_VMX_VMFUNC = 0x491
    IA32_VMX_PROCBASED_CTLS3 = 0x492
    IA32_VMX_EXIT_CTLS2 = 0x493
    IA32_A_PMC0 = 0x4C1
    IA32_MCG_EXT_CTL = 0x4D0
    IA32_RTIT_CTL = 0x570
    IA32_DS_AREA = 0x600
    MSR_RAPL_POWER_UNIT = 0x606
    MSR_PKG_ENERGY_STATUS = 0x611
    MSR_DRAM_ENERGY_STATUS = 0x619
    MSR_PP0_ENERGY_STATUS = 0x639
    MSR_PP1_ENERGY_STATUS = 0x641
    MSR_PPERF = 0x64E
    IA32_U_CET = 0x6A0
    IA32_S_CET = 0x6A2
    IA32_PL0_SSP = 0x6A4
    IA32_PL1_SSP = 0x6A5
    IA32_PL2_SSP = 0x6A6
    IA32_PL3_SSP = 0x6A7
    IA32_INTERRUPT_SSP_TABLE_ADDR = 0x6A8
    IA32_TSC_DEADLINE = 0x6E0
    IA32_PKRS = 0x6E1
    IA32_PM_ENABLE = 0x770
    IA32_HWP_CAPABILITIES = 0x771
    IA32_X2APIC_APICID = 0x802
    IA32_X2APIC_VERSION = 0x803
    IA32_X2APIC_TPR = 0x808
    IA32_X2APIC_PPR = 0x80A
    IA32_X2APIC_EOI = 0x80B
    IA32_X2APIC_LDR = 0x80D
    IA32_X2APIC_SIVR = 0x80F
    IA32_X2APIC_ISR0 = 0x810
    IA32_X2APIC_TMR0 = 0x818
    IA32_X2APIC_IRR0 = 0x820
    IA32_X2APIC_ESR = 0x828
    IA32_X2APIC_LVT_CMCI = 0x82F
    IA32_X2APIC_ICR = 0x830
    IA32_X2APIC_LVT_TIMER = 0x832
    IA32_X2APIC_LVT_THERMAL = 0x833
    IA32_X2APIC_LVT_PMI = 0x834
    IA32_X2APIC_LVT_LINT0 = 0x835
    IA32_X2APIC_LVT_LINT1 = 0x836
    IA32_X2APIC_LVT_ERROR = 0x837
    IA32_X2APIC_INIT_COUNT = 0x838
    IA32_X2APIC_CUR_COUNT = 0x839
    IA32_X2APIC_DIV_CONF = 0x83E
    IA32_X2APIC_SELF_IPI = 0x83F
    IA32_BNDCFGS = 0xD90
    IA32_XSS = 0xDA0
    IA32_EFER = 0xC000_0080
    IA32_STAR = 0xC000_0081
    IA32_LSTAR = 0xC000_0082
    IA32_CSTAR = 0xC000_0083
    IA32_FMASK = 0xC000_0084
    IA32_FS_BASE = 0xC000_0100
    IA32_GS_BASE = 0xC000_0101
    IA32_KERNEL_GS_BASE = 0xC000_0102
    IA32_TSC_AUX = 0xC000_0103
    # AMD's, probed by kernels that do not look at the vendor
    MSR_AMD64_SYSCFG = 0xC001_0010
    MSR_K7_HWCR = 0xC001_0015
    MSR_AMD64_PATCH_LEVEL = 0xC001_0020
    MSR_AMD64_NB_CFG = 0xC001_001F
    MSR_VM_CR = 0xC001_0114
    MSR_VM_HSAVE_PA = 0xC001_0117
    MSR_AMD64_OSVW_ID_LENGTH = 0xC001_0140
    MSR_AMD64_LS_CFG = 0xC001_1020
    MSR_AMD64_DE_CFG = 0xC001_1029
    # KVM's paravirtual interface
    MSR_KVM_WALL_CLOCK = 0x11
    MSR_KVM_SYSTEM_TIME = 0x12
    MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
    MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01
    MSR_KVM_ASYNC_PF_EN = 0x4B56_4D02
    MSR_KVM_STEAL_TIME = 0x4B56_4D03
    MSR_KVM_PV_EOI_EN = 0x4B56_4D04
    # Hyper-V's paravirtual interface
    HV_X64_MSR_GUEST_OS_ID = 0x4000_0000
    HV_X64_MSR_HYPERCALL = 0x4000_0001
    HV_X64_MSR_VP_INDEX = 0x4000_0002
    HV_X64_MSR_TIME_REF_COUNT = 0x4000_0020

    # Linux's and the manual's other names
    IA32_TSC = IA32_TIME_STAMP_COUNTER
    MSR_IA32_TSC = IA32_TIME_STAMP_COUNTER
    IA32_FEAT_CTL = IA32_FEATURE_CONTROL
    IA32_UCODE_REV = IA32_BIOS_SIGN_ID
    IA32_UCODE_WRITE = IA32_BIOS_UPDT_TRIG
    MSR_MTRRCAP = IA32_MTRRCAP
    MSR_EFER = IA32_EFER
    MSR_STAR = IA32_STAR
    MSR_LSTAR = IA32_LSTAR
    MSR_CSTAR = IA32_CSTAR
    MSR_SYSCALL_MASK = IA32_FMASK
    MSR_FS_BASE = IA32_FS_BASE
    MSR_GS_BASE = IA32_GS_BASE
    MSR_KERNEL_GS_BASE = IA32_KERNEL_GS_BASE
    MSR_TSC_AUX = IA32_TSC_AUX
    MSR_CORE_PERF_GLOBAL_CTRL = IA32_PERF_GLOBAL_CTRL
    MSR_IA32_CR_PAT = IA32_PAT


@dataclass(frozen=True, slots=True)
class MsrRow:
    """One MSR. ``vendor`` is ``Intel``, ``AMD``, ``KVM`` or ``Hyper-V``; ``section`` is a place in its own document."""

    number: int
    name: str
    aliases: tuple[str, ...]
    vendor: str
    section: str


def _vendor(msr: Msr) -> tuple[str, str]:
    if msr.name.startswith("MSR_KVM_"):
        return "KVM", "Linux Documentation/virt/kvm/x86/msr.rst"
    if msr.name.startswith("HV_X64_"):
        return "Hyper-V", "Hypervisor Top-Level Functional Specification"
    if 0xC001_0000 <= msr <= 0xC001_FFFF:
        return "AMD", "APM vol. 2, appendix A"
    if 0x480 <= msr <= 0x493:
        return "Intel", f"A.{_VMX_SECTION[int(msr)]}"
    if X2APIC_FIRST <= msr <= X2APIC_LAST:
        return "Intel", "11.12.1.2"
    return "Intel", "vol. 4, 2.1" if msr.name.startswith("IA32_") else "vol. 4, 2"


_VMX_SECTION = {
    0x480: "1",
    0x481: "3.1",
    0x482: "3.2",
    0x483: "4.1",
    0x484: "5",
    0x485: "6",
    0x486: "7",
    0x487: "7",
    0x488: "8",
    0x489: "8",
    0x48A: "9",
    0x48B: "3.3",
    0x48C: "10",
    0x48D: "3.1",
    0x48E: "3.2",
    0x48F: "4.1",
    0x490: "5",
    0x491: "11",
    0x492: "3.4",
    0x493: "4.2",
}


def _rows() -> Mapping[int, MsrRow]:
    aliases: dict[int, list[str]] = {}
    for name, member in Msr.__members__.items():
        if name != member.name:
            aliases.setdefault(int(member), []).append(name)
    rows = {}
    for msr in sorted(Msr):
        vendor, section = _vendor(msr)
        rows[int(msr)] = MsrRow(int(msr), msr.name, tuple(aliases.get(int(msr), ())), vendor, section)
    return MappingProxyType(rows)


MSRS: Mapping[int, MsrRow] = _rows()
"""Known MSRs by number."""


def msr_name(number: int) -> str:
    """Name of an MSR, or its number in hex."""
    row = MSRS.get(number)
    return row.name if row else f"0x{number:x}"
