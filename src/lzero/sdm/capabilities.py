"""The VMX capability MSRs: what a processor offers to a hypervisor (SDM vol. 3, appendix A).

:class:`VmxCapabilities` is the one description of an offer. It is rendered to the MSR values that a guest reads
(:meth:`VmxCapabilities.to_msrs`) and it drives the VM-entry checks, so what is advertised and what is checked cannot
differ. Everything in it is a plain ``int`` or ``bool``: predicates on the entry path mask with it directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cached_property

from .controls import (
    DEFAULT1_ENTRY,
    DEFAULT1_EXIT,
    DEFAULT1_PIN,
    DEFAULT1_PROC,
    ControlFlag,
    PinBased,
    ProcBased,
    ProcBased2,
    ProcBased3,
    VmEntry,
    VmExit,
    VmExit2,
    VmFunctions,
)
from .msrs import Msr
from .registers import Cr0, Cr4, DebugCtl, Efer
from .vmcs_fields import VMCS_FIELDS, field_index

__all__ = [
    "MAX_CR0",
    "VMX_CAPABILITY_MSRS",
    "VMX_MSR_LIST_UNIT",
    "ControlRange",
    "EptVpidCap",
    "FeatureControl",
    "VmxBasic",
    "VmxCapabilities",
    "VmxMisc",
]

VMX_MSR_LIST_UNIT = 512
"""IA32_VMX_MISC[27:25] = N recommends at most 512 * (N + 1) entries in an MSR list (A.6)."""
MAX_CR0 = 0xFFFF_FFFF
"""IA32_VMX_CR0_FIXED1 of every processor so far: no bit of CR0 below 32 is fixed to 0 (A.7)."""


class VmxBasic(IntFlag):
    """Single bits of IA32_VMX_BASIC (A.1); revision id, size and memory type are fields."""

    PHYSICAL_ADDRESSES_32BIT = 1 << 48
    DUAL_MONITOR_TREATMENT = 1 << 49
    INS_OUTS_INFORMATION = 1 << 54
    TRUE_CONTROLS = 1 << 55
    ERROR_CODE_OPTIONAL = 1 << 56
    NESTED_EXCEPTION_SUPPORT = 1 << 58


class VmxMisc(IntFlag):
    """Single bits of IA32_VMX_MISC (A.6); timer rate, CR3 targets, MSR-list size and MSEG revision are fields."""

    STORES_EFER_LMA = 1 << 5
    ACTIVITY_HLT = 1 << 6
    ACTIVITY_SHUTDOWN = 1 << 7
    ACTIVITY_WAIT_FOR_SIPI = 1 << 8
    INTEL_PT_IN_VMX = 1 << 14
    RDMSR_SMBASE_IN_SMM = 1 << 15
    SMM_MONITOR_CTL_BLOCK_SMI = 1 << 28
    VMWRITE_TO_ANY_FIELD = 1 << 29
    ZERO_LENGTH_INJECTION = 1 << 30


class EptVpidCap(IntFlag):
    """IA32_VMX_EPT_VPID_CAP (A.10)."""

    EXECUTE_ONLY = 1 << 0
    PAGE_WALK_4 = 1 << 6
    PAGE_WALK_5 = 1 << 7
    MEMORY_TYPE_UC = 1 << 8
    MEMORY_TYPE_WB = 1 << 14
    PAGE_2M = 1 << 16
    PAGE_1G = 1 << 17
    INVEPT = 1 << 20
    ACCESSED_DIRTY = 1 << 21
    ADVANCED_EPT_VIOLATION_INFORMATION = 1 << 22
    SUPERVISOR_SHADOW_STACK = 1 << 23
    INVEPT_SINGLE_CONTEXT = 1 << 25
    INVEPT_ALL_CONTEXT = 1 << 26
    INVVPID = 1 << 32
    INVVPID_INDIVIDUAL_ADDRESS = 1 << 40
    INVVPID_SINGLE_CONTEXT = 1 << 41
    INVVPID_ALL_CONTEXT = 1 << 42
    INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS = 1 << 43


class FeatureControl(IntFlag):
    """IA32_FEATURE_CONTROL bits that decide about VMXON (24.7)."""

    LOCK = 1 << 0
    VMXON_INSIDE_SMX = 1 << 1
    VMXON_OUTSIDE_SMX = 1 << 2


VMX_CAPABILITY_MSRS: tuple[Msr, ...] = tuple(Msr(n) for n in range(Msr.IA32_VMX_BASIC, Msr.IA32_VMX_EXIT_CTLS2 + 1))
"""All capability MSRs, IA32_VMX_BASIC to IA32_VMX_EXIT_CTLS2."""


@dataclass(frozen=True, slots=True)
class ControlRange:
    """What a control word may be: ``allowed0`` bits must be 1, bits outside ``allowed1`` must be 0 (A.2 to A.5).

    The 64-bit words (tertiary, secondary VM-exit) have ``allowed0`` 0 by definition.
    """

    allowed0: int
    allowed1: int

    def __post_init__(self) -> None:
        if self.allowed0 & ~self.allowed1:
            raise ValueError(f"bits 0x{self.allowed0 & ~self.allowed1:x} would have to be 0 and 1")

    def permits(self, value: int) -> bool:
        """The word obeys both masks."""
        return value & self.allowed0 == self.allowed0 and not value & ~self.allowed1

    def offending(self, value: int) -> int:
        """Bits that break the rule: required ones that are 0, and forbidden ones that are 1."""
        return self.allowed0 & ~value | value & ~self.allowed1

    def to_msr(self, also_required: int = 0) -> int:
        """Capability MSR value: allowed-0 settings in 31:0, allowed-1 settings in 63:32."""
        required = self.allowed0 | also_required
        return required | (self.allowed1 | required) << 32

    @classmethod
    def from_msr(cls, value: int) -> ControlRange:
        """Inverse of :meth:`to_msr`."""
        low = value & 0xFFFF_FFFF
        return cls(low, value >> 32 | low)


_DEFAULT_CR0_FIXED0 = int(Cr0.PE | Cr0.NE | Cr0.PG)
_NOT_BY_DEFAULT = Cr4.LA57 | Cr4.SMXE | Cr4.KL | Cr4.CET | Cr4.PKS | Cr4.UINTR | Cr4.LAM_SUP | Cr4.FRED
_DEFAULT_CR4_FIXED1 = sum(int(bit) for bit in Cr4 if bit not in _NOT_BY_DEFAULT)
_RELAXED_PROC = int(ProcBased.CR3_LOAD_EXITING | ProcBased.CR3_STORE_EXITING)


@dataclass(frozen=True)
class VmxCapabilities:
    """An offer of VMX: all that the capability MSRs say, and the processor facts that VM-entry checks need besides.

    Make one with :meth:`offering` from the features, or with :meth:`from_msrs` from MSR values.

    The ranges ``pin``, ``proc``, ``exit``, ``entry`` are those of the TRUE_* MSRs where ``true_controls`` is set.
    ``physical_address_width`` is MAXPHYADDR and ``linear_address_width`` 48 or 57 (CPUID.80000008H).
    ``*_valid`` are masks of the bits that WRMSR accepts in that MSR. ``timer_rate`` X: the VMX-preemption timer counts
    down once in 2**X TSC ticks. ``misc`` and ``ept_vpid`` hold the single bits (:class:`VmxMisc`, :class:`EptVpidCap`)
    without the number fields. ``further_fields`` are encodings of VMCS fields that exist though no control that uses
    them is offered. Instances are hashable, so plans and caches can be keyed by them.
    """

    pin: ControlRange = ControlRange(DEFAULT1_PIN, DEFAULT1_PIN)
    proc: ControlRange = ControlRange(DEFAULT1_PROC & ~_RELAXED_PROC, DEFAULT1_PROC)
    proc2: ControlRange = ControlRange(0, 0)
    proc3: ControlRange = ControlRange(0, 0)
    exit: ControlRange = ControlRange(DEFAULT1_EXIT & ~int(VmExit.SAVE_DEBUG_CONTROLS), DEFAULT1_EXIT)
    exit2: ControlRange = ControlRange(0, 0)
    entry: ControlRange = ControlRange(DEFAULT1_ENTRY & ~int(VmEntry.LOAD_DEBUG_CONTROLS), DEFAULT1_ENTRY)
    vmfunc: int = 0
    ept_vpid: int = 0
    hlat_prefix_max: int = 0
    vmcs_revision_id: int = 0x6C7A_6501
    vmcs_region_size: int = 4096
    vmcs_memory_type: int = 6
    physical_addresses_32bit: bool = False
    dual_monitor: bool = False
    ins_outs_information: bool = True
    true_controls: bool = True
    error_code_optional: bool = False
    nested_exception: bool = False
    misc: int = int(VmxMisc.STORES_EFER_LMA | VmxMisc.ACTIVITY_HLT)
    timer_rate: int = 0
    cr3_targets: int = 4
    msr_list_exponent: int = 0
    mseg_revision_id: int = 0
    cr0_fixed0: int = _DEFAULT_CR0_FIXED0
    cr0_fixed1: int = MAX_CR0
    cr4_fixed0: int = int(Cr4.VMXE)
    cr4_fixed1: int = _DEFAULT_CR4_FIXED1
    physical_address_width: int = 39
    linear_address_width: int = 48
    efer_valid: int = int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE)
    debugctl_valid: int = int(DebugCtl.LBR | DebugCtl.BTF)
    perf_global_ctrl_valid: int = 0
    rtit_ctl_valid: int = 0
    lbr_ctl_valid: int = 0
    spec_ctrl_valid: int = 0
    smm_supported: bool = False
    sgx_supported: bool = False
    rtm_supported: bool = False
    further_fields: frozenset[int] = frozenset()

    @classmethod
    def offering(
        cls,
        *,
        pin: int = 0,
        proc: int = 0,
        proc2: int = 0,
        proc3: int = 0,
        exit: int = 0,  # noqa: A002 - the control word's name, as in the fields
        exit2: int = 0,
        entry: int = 0,
        **others: int | bool,
    ) -> VmxCapabilities:
        """Capabilities that offer these control bits (1-settings) besides the default1 classes.

        The four default1 controls that have a use when 0 (CR3-load and CR3-store exiting, saving and loading debug
        controls) may be 0. ``others`` are fields of the class by name.

        >>> VmxCapabilities.offering(proc=ProcBased.HLT_EXITING).proc.permits(DEFAULT1_PROC | ProcBased.HLT_EXITING)
        True
        """
        base = cls()
        ranges = {
            "pin": _widen(base.pin, pin),
            "proc": _widen(base.proc, proc),
            "proc2": _widen(base.proc2, proc2),
            "proc3": _widen(base.proc3, proc3),
            "exit": _widen(base.exit, exit),
            "exit2": _widen(base.exit2, exit2),
            "entry": _widen(base.entry, entry),
        }
        return replace(base, **ranges, **others)  # type: ignore[arg-type]  # names checked by dataclasses.replace

    @cached_property
    def max_msr_list(self) -> int:
        """Recommended maximum of entries in one MSR list (A.6)."""
        return VMX_MSR_LIST_UNIT * (self.msr_list_exponent + 1)

    @cached_property
    def physical_address_limit(self) -> int:
        """First physical address that a VMX structure cannot have: 2**MAXPHYADDR, or 4 GiB (A.1, bit 48)."""
        return 1 << (32 if self.physical_addresses_32bit else self.physical_address_width)

    @cached_property
    def existing_fields(self) -> frozenset[int]:
        """Full-access encodings of the VMCS fields that this offer makes exist (appendix B, footnotes)."""
        return frozenset(
            encoding
            for encoding, row in VMCS_FIELDS.items()
            if not row.exists_with
            or encoding in self.further_fields
            or any(self.allows(flag) for flag in row.exists_with)
        )

    @cached_property
    def vmcs_enum_index(self) -> int:
        """Highest index of any existing field (A.9)."""
        return max(field_index(encoding) for encoding in self.existing_fields)

    def allows(self, flag: ControlFlag) -> bool:
        """The control may be 1."""
        return bool(self._allowed1_of(flag) & int(flag))

    def _allowed1_of(self, flag: ControlFlag) -> int:
        match flag:
            case PinBased():
                return self.pin.allowed1
            case ProcBased():
                return self.proc.allowed1
            case ProcBased2():
                return self.proc2.allowed1
            case ProcBased3():
                return self.proc3.allowed1
            case VmExit():
                return self.exit.allowed1
            case VmExit2():
                return self.exit2.allowed1
            case VmEntry():
                return self.entry.allowed1
            case VmFunctions():
                return self.vmfunc

    def to_msrs(self) -> dict[int, int]:
        """Values of the capability MSRs that exist, by number (appendix A says which exist when)."""
        msrs = {
            Msr.IA32_VMX_BASIC: self._basic(),
            Msr.IA32_VMX_PINBASED_CTLS: self.pin.to_msr(DEFAULT1_PIN),
            Msr.IA32_VMX_PROCBASED_CTLS: self.proc.to_msr(DEFAULT1_PROC),
            Msr.IA32_VMX_EXIT_CTLS: self.exit.to_msr(DEFAULT1_EXIT),
            Msr.IA32_VMX_ENTRY_CTLS: self.entry.to_msr(DEFAULT1_ENTRY),
            Msr.IA32_VMX_MISC: self._misc(),
            Msr.IA32_VMX_CR0_FIXED0: self.cr0_fixed0,
            Msr.IA32_VMX_CR0_FIXED1: self.cr0_fixed1,
            Msr.IA32_VMX_CR4_FIXED0: self.cr4_fixed0,
            Msr.IA32_VMX_CR4_FIXED1: self.cr4_fixed1,
            Msr.IA32_VMX_VMCS_ENUM: self.vmcs_enum_index << 1,
        }
        if self.true_controls:
            msrs[Msr.IA32_VMX_TRUE_PINBASED_CTLS] = self.pin.to_msr()
            msrs[Msr.IA32_VMX_TRUE_PROCBASED_CTLS] = self.proc.to_msr()
            msrs[Msr.IA32_VMX_TRUE_EXIT_CTLS] = self.exit.to_msr()
            msrs[Msr.IA32_VMX_TRUE_ENTRY_CTLS] = self.entry.to_msr()
        if self.allows(ProcBased.ACTIVATE_SECONDARY_CONTROLS):
            msrs[Msr.IA32_VMX_PROCBASED_CTLS2] = self.proc2.to_msr()
            if self.allows(ProcBased2.ENABLE_EPT) or self.allows(ProcBased2.ENABLE_VPID):
                msrs[Msr.IA32_VMX_EPT_VPID_CAP] = self.ept_vpid | self.hlat_prefix_max << 48
            if self.allows(ProcBased2.ENABLE_VM_FUNCTIONS):
                msrs[Msr.IA32_VMX_VMFUNC] = self.vmfunc
        if self.allows(ProcBased.ACTIVATE_TERTIARY_CONTROLS):
            msrs[Msr.IA32_VMX_PROCBASED_CTLS3] = self.proc3.allowed1
        if self.allows(VmExit.ACTIVATE_SECONDARY_CONTROLS):
            msrs[Msr.IA32_VMX_EXIT_CTLS2] = self.exit2.allowed1
        return {int(number): value for number, value in msrs.items()}

    def _basic(self) -> int:
        flags = {
            VmxBasic.PHYSICAL_ADDRESSES_32BIT: self.physical_addresses_32bit,
            VmxBasic.DUAL_MONITOR_TREATMENT: self.dual_monitor,
            VmxBasic.INS_OUTS_INFORMATION: self.ins_outs_information,
            VmxBasic.TRUE_CONTROLS: self.true_controls,
            VmxBasic.ERROR_CODE_OPTIONAL: self.error_code_optional,
            VmxBasic.NESTED_EXCEPTION_SUPPORT: self.nested_exception,
        }
        bits = sum(int(flag) for flag, on in flags.items() if on)
        return self.vmcs_revision_id | self.vmcs_region_size << 32 | self.vmcs_memory_type << 50 | bits

    def _misc(self) -> int:
        numbers = self.timer_rate | self.cr3_targets << 16 | self.msr_list_exponent << 25
        return self.misc | numbers | self.mseg_revision_id << 32

    @classmethod
    def from_msrs(cls, msrs: Mapping[int, int], **processor: int | bool) -> VmxCapabilities:
        """The offer that these MSR values make; absent MSRs offer nothing.

        ``processor`` gives the fields that no capability MSR holds (``physical_address_width``, ``efer_valid`` …).

        Raises
        ------
        KeyError
            One of the MSRs that always exist is missing.
        ValueError
            A control would have to be 0 and 1.
        """
        basic, misc = msrs[Msr.IA32_VMX_BASIC], msrs[Msr.IA32_VMX_MISC]
        true = bool(basic & VmxBasic.TRUE_CONTROLS)
        offset = Msr.IA32_VMX_TRUE_PINBASED_CTLS - Msr.IA32_VMX_PINBASED_CTLS if true else 0
        ept_vpid = msrs.get(Msr.IA32_VMX_EPT_VPID_CAP, 0)
        values: dict[str, ControlRange | int | bool] = {
            "pin": ControlRange.from_msr(msrs[Msr.IA32_VMX_PINBASED_CTLS + offset]),
            "proc": ControlRange.from_msr(msrs[Msr.IA32_VMX_PROCBASED_CTLS + offset]),
            "exit": ControlRange.from_msr(msrs[Msr.IA32_VMX_EXIT_CTLS + offset]),
            "entry": ControlRange.from_msr(msrs[Msr.IA32_VMX_ENTRY_CTLS + offset]),
            "proc2": ControlRange.from_msr(msrs.get(Msr.IA32_VMX_PROCBASED_CTLS2, 0)),
            "proc3": ControlRange(0, msrs.get(Msr.IA32_VMX_PROCBASED_CTLS3, 0)),
            "exit2": ControlRange(0, msrs.get(Msr.IA32_VMX_EXIT_CTLS2, 0)),
            "vmfunc": msrs.get(Msr.IA32_VMX_VMFUNC, 0),
            "ept_vpid": ept_vpid & _EPT_VPID_BITS,
            "hlat_prefix_max": ept_vpid >> 48 & 0x3F,
            "vmcs_revision_id": basic & 0x7FFF_FFFF,
            "vmcs_region_size": basic >> 32 & 0x1FFF,
            "vmcs_memory_type": basic >> 50 & 0xF,
            "physical_addresses_32bit": bool(basic & VmxBasic.PHYSICAL_ADDRESSES_32BIT),
            "dual_monitor": bool(basic & VmxBasic.DUAL_MONITOR_TREATMENT),
            "ins_outs_information": bool(basic & VmxBasic.INS_OUTS_INFORMATION),
            "true_controls": true,
            "error_code_optional": bool(basic & VmxBasic.ERROR_CODE_OPTIONAL),
            "nested_exception": bool(basic & VmxBasic.NESTED_EXCEPTION_SUPPORT),
            "misc": misc & _MISC_BITS,
            "timer_rate": misc & 0x1F,
            "cr3_targets": misc >> 16 & 0x1FF,
            "msr_list_exponent": misc >> 25 & 7,
            "mseg_revision_id": misc >> 32,
            "cr0_fixed0": msrs[Msr.IA32_VMX_CR0_FIXED0],
            "cr0_fixed1": msrs[Msr.IA32_VMX_CR0_FIXED1],
            "cr4_fixed0": msrs[Msr.IA32_VMX_CR4_FIXED0],
            "cr4_fixed1": msrs[Msr.IA32_VMX_CR4_FIXED1],
        }
        values.update(processor)
        return cls(**values)  # type: ignore[arg-type]  # one dict for fields of three types


_EPT_VPID_BITS = sum(int(bit) for bit in EptVpidCap)
_MISC_BITS = sum(int(bit) for bit in VmxMisc)


def _widen(base: ControlRange, offered: int) -> ControlRange:
    return ControlRange(base.allowed0, base.allowed1 | int(offered))
