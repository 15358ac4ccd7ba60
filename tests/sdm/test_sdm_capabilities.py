"""Capability MSRs: what is offered is what is read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero.sdm.capabilities import VMX_CAPABILITY_MSRS, ControlRange, EptVpidCap, VmxCapabilities, VmxMisc
from lzero.sdm.controls import DEFAULT1_PIN, DEFAULT1_PROC, PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.msrs import MSRS, Msr
from lzero.sdm.vmcs_fields import Field

WORD = st.integers(0, 0xFFFF_FFFF)


def rich() -> VmxCapabilities:
    """An offer with most features."""
    return VmxCapabilities.offering(
        pin=PinBased.NMI_EXITING | PinBased.EXTERNAL_INTERRUPT_EXITING,
        proc=ProcBased.ACTIVATE_SECONDARY_CONTROLS | ProcBased.USE_MSR_BITMAPS,
        proc2=ProcBased2.ENABLE_EPT | ProcBased2.ENABLE_VPID | ProcBased2.ENABLE_VM_FUNCTIONS,
        exit=VmExit.HOST_ADDRESS_SPACE_SIZE,
        entry=VmEntry.IA32E_MODE_GUEST,
        ept_vpid=int(EptVpidCap.INVEPT | EptVpidCap.PAGE_WALK_4 | EptVpidCap.INVVPID),
        vmfunc=1,
        timer_rate=5,
        cr3_targets=4,
        physical_address_width=46,
    )


def test_round_trip_through_msrs() -> None:
    for offer in (VmxCapabilities(), rich()):
        back = VmxCapabilities.from_msrs(offer.to_msrs(), physical_address_width=offer.physical_address_width)
        assert back == offer
        assert hash(back) == hash(offer)


def test_basic_msr_layout() -> None:
    basic = rich().to_msrs()[Msr.IA32_VMX_BASIC]
    assert basic & 0x7FFF_FFFF == rich().vmcs_revision_id
    assert basic >> 31 & 1 == 0
    assert basic >> 32 & 0x1FFF == 4096
    assert basic >> 50 & 0xF == 6
    assert basic >> 55 & 1


def test_true_msrs_relax_the_default1_class_and_the_old_ones_do_not() -> None:
    msrs = rich().to_msrs()
    assert msrs[Msr.IA32_VMX_PROCBASED_CTLS] & 0xFFFF_FFFF == DEFAULT1_PROC
    true = msrs[Msr.IA32_VMX_TRUE_PROCBASED_CTLS] & 0xFFFF_FFFF
    assert DEFAULT1_PROC & ~true == ProcBased.CR3_LOAD_EXITING | ProcBased.CR3_STORE_EXITING
    assert msrs[Msr.IA32_VMX_PINBASED_CTLS] & 0xFFFF_FFFF == DEFAULT1_PIN


def test_msrs_exist_only_with_their_controls() -> None:
    bare = VmxCapabilities().to_msrs()
    assert Msr.IA32_VMX_PROCBASED_CTLS2 not in bare
    assert Msr.IA32_VMX_EPT_VPID_CAP not in bare
    assert set(rich().to_msrs()) - set(bare) == {
        Msr.IA32_VMX_PROCBASED_CTLS2,
        Msr.IA32_VMX_EPT_VPID_CAP,
        Msr.IA32_VMX_VMFUNC,
    }
    assert set(rich().to_msrs()) <= set(VMX_CAPABILITY_MSRS)


def test_fields_exist_with_their_controls() -> None:
    assert Field.EPT_POINTER not in VmxCapabilities().existing_fields
    assert Field.EPT_POINTER in rich().existing_fields
    assert Field.GUEST_RIP in VmxCapabilities().existing_fields
    assert Field.TSC_MULTIPLIER not in rich().existing_fields
    assert rich().to_msrs()[Msr.IA32_VMX_VMCS_ENUM] == rich().vmcs_enum_index << 1


@given(WORD, WORD, WORD)
def test_control_range_agrees_with_its_definition(required: int, extra: int, value: int) -> None:
    control = ControlRange(required, required | extra)
    bits_ok = all(
        (value >> n & 1 or not control.allowed0 >> n & 1) and (not value >> n & 1 or control.allowed1 >> n & 1)
        for n in range(32)
    )
    assert control.permits(value) == bool(bits_ok)
    assert (control.offending(value) == 0) == bool(bits_ok)
    assert ControlRange.from_msr(control.to_msr()) == control


def test_contradictory_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0x4"):
        ControlRange(4, 3)


def test_misc_numbers_do_not_touch_its_bits() -> None:
    misc = VmxCapabilities(timer_rate=31, cr3_targets=256, msr_list_exponent=7).to_msrs()[Msr.IA32_VMX_MISC]
    assert misc & VmxMisc.ACTIVITY_HLT
    assert misc & 0x1F == 31
    assert misc >> 16 & 0x1FF == 256
    assert VmxCapabilities(msr_list_exponent=7).max_msr_list == 4096


def test_msr_rows() -> None:
    assert MSRS[Msr.IA32_EFER].aliases == ("MSR_EFER",)
    assert all(row.section and row.name for row in MSRS.values())
    assert MSRS[Msr.IA32_VMX_BASIC].section == "A.1"
