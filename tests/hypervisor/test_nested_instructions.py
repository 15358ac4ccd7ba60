"""VMX instructions of L1, one table per instruction (SDM 3C chapter 31): operand → how it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nestedlab import (
    OPERAND,
    REVISION,
    VMCS_A,
    VMCS_B,
    VMXON_REGION,
    Lab,
    Outcome,
    invept_descriptor,
    invvpid_descriptor,
    prepare_l2,
)

from lzero.hypervisor.features import NESTED
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vm_instruction_errors import VmInstructionError as E
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Width

MAXPHYADDR = NESTED.physical_address_width
OUTSIDE = 1 << MAXPHYADDR
SHADOW = 1 << 31


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def undefined(outcome: Outcome) -> bool:
    return outcome == Outcome("exception", Vector.UD)


# --- 31.3 VMXON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [VMXON_REGION + 1, VMXON_REGION + 8, OUTSIDE, 1 << 63])
def test_vmxon_with_a_bad_address_is_vmfailinvalid(lab: Lab, address: int) -> None:
    lab.region(VMXON_REGION)
    assert lab.pointer("vmxon", address).result == "invalid"


@pytest.mark.parametrize("revision", [REVISION ^ 1, REVISION | SHADOW, 0])
def test_vmxon_with_a_bad_revision_is_vmfailinvalid(lab: Lab, revision: int) -> None:
    assert lab.pointer("vmxon", lab.region(VMXON_REGION, revision)).result == "invalid"


def test_vmxon_twice_is_vmfail_15(lab: Lab) -> None:
    lab.start_vmx()
    assert lab.pointer("vmxon", VMXON_REGION).result == "invalid"  # no current VMCS to hold the number
    lab.load_vmcs()
    assert lab.pointer("vmxon", VMXON_REGION).result == "valid"
    assert lab.error() == E.VMXON_IN_VMX_ROOT


@pytest.mark.parametrize("value", [0, 1, 4])
def test_vmxon_needs_feature_control_locked_and_enabled(lab: Lab, value: int) -> None:
    lab.vcpu.msrs.feature_control = value
    assert lab.pointer("vmxon", lab.region(VMXON_REGION)) == Outcome("exception", Vector.GP)


def test_vmxon_needs_cr4_vmxe(lab: Lab) -> None:
    lab.cpu.vmwrite(Field.CR4_READ_SHADOW, lab.cpu.vmread(Field.CR4_READ_SHADOW) & ~0x2000)
    assert undefined(lab.pointer("vmxon", lab.region(VMXON_REGION)))


def test_vmxon_needs_cr0_ne(lab: Lab) -> None:
    lab.cpu.vmwrite(Field.CR0_READ_SHADOW, lab.cpu.vmread(Field.GUEST_CR0) & ~0x20)
    assert lab.pointer("vmxon", lab.region(VMXON_REGION)) == Outcome("exception", Vector.GP)


@pytest.mark.parametrize(
    "name", ["vmxoff", "vmclear", "vmptrld", "vmptrst", "vmread", "vmwrite", "vmlaunch", "vmresume"]
)
def test_outside_vmx_operation_everything_else_is_undefined(lab: Lab, name: str) -> None:
    assert undefined(lab.step(name))


def test_after_vmxoff_everything_is_undefined_again(lab: Lab) -> None:
    lab.start_vmx()
    assert lab.step("vmxoff").result == "succeed"
    assert undefined(lab.step("vmread"))


# --- 31.3 VMCLEAR, VMPTRLD, VMPTRST ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address", "error"),
    [
        ("vmclear", VMCS_A + 8, E.VMCLEAR_INVALID_ADDRESS),
        ("vmclear", OUTSIDE, E.VMCLEAR_INVALID_ADDRESS),
        ("vmclear", VMXON_REGION, E.VMCLEAR_VMXON_POINTER),
        ("vmptrld", VMCS_B + 1, E.VMPTRLD_INVALID_ADDRESS),
        ("vmptrld", OUTSIDE, E.VMPTRLD_INVALID_ADDRESS),
        ("vmptrld", VMXON_REGION, E.VMPTRLD_VMXON_POINTER),
        ("vmptrld", VMCS_B, E.VMPTRLD_INCORRECT_REVISION_ID),
    ],
)
def test_bad_pointers(lab: Lab, name: str, address: int, error: E) -> None:
    lab.start_vmx()
    lab.load_vmcs()
    lab.region(VMCS_B, REVISION ^ 1)
    assert lab.pointer(name, address).result == "valid"
    assert lab.error() == error


def test_vmptrst_stores_the_current_pointer(lab: Lab) -> None:
    lab.start_vmx()
    lab.step("vmptrst")
    assert lab.memory.read_u64(OPERAND) == (1 << 64) - 1
    lab.load_vmcs()
    lab.step("vmptrst")
    assert lab.memory.read_u64(OPERAND) == VMCS_A


def test_vmclear_of_the_current_vmcs_leaves_none(lab: Lab) -> None:
    lab.start_vmx()
    lab.load_vmcs()
    assert lab.pointer("vmclear", VMCS_A).result == "succeed"
    assert lab.step("vmread", rbx=Field.GUEST_RIP).result == "invalid"


def test_fields_survive_in_the_region(lab: Lab) -> None:
    """What was written is in memory after VMCLEAR, and another VMCS does not see it."""
    lab.start_vmx()
    lab.load_vmcs(VMCS_A)
    lab.write(Field.GUEST_RIP, 0x1234)
    lab.load_vmcs(VMCS_B)
    assert lab.read(Field.GUEST_RIP) == 0
    assert lab.pointer("vmptrld", VMCS_A).result == "succeed"
    assert lab.read(Field.GUEST_RIP) == 0x1234


# --- 31.3 VMREAD, VMWRITE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [0x6E00, 0x7FFE, 0x0001, 0x681F, 0x1_0000_681E, 1 << 40])
def test_no_such_component_is_vmfail_12(lab: Lab, encoding: int) -> None:
    lab.start_vmx()
    lab.load_vmcs()
    assert lab.step("vmread", rbx=encoding).result == "valid"
    assert lab.error() == E.UNSUPPORTED_VMCS_COMPONENT
    assert lab.step("vmwrite", rbx=encoding).result == "valid"


def test_every_existing_field_keeps_its_width(lab: Lab) -> None:
    """All ones written, as many ones read as the field is wide (25.11.2); exit information included (MISC bit 29)."""
    masks = {Width.W16: 0xFFFF, Width.W32: 0xFFFF_FFFF, Width.W64: (1 << 64) - 1, Width.NATURAL: (1 << 64) - 1}
    lab.start_vmx()
    lab.load_vmcs()
    for encoding in sorted(NESTED.existing_fields):
        assert lab.write(encoding, (1 << 64) - 1).result == "succeed", Field(encoding)
        assert lab.read(encoding) == masks[VMCS_FIELDS[encoding].width], Field(encoding)


def test_high_halves(lab: Lab) -> None:
    """25.11.2: the high access reads and writes bits 63:32."""
    lab.start_vmx()
    lab.load_vmcs()
    lab.write(Field.TSC_OFFSET, 0x1111_2222_3333_4444)
    assert lab.read(Field.TSC_OFFSET | 1) == 0x1111_2222
    lab.write(Field.TSC_OFFSET | 1, 0xAAAA_BBBB)
    assert lab.read(Field.TSC_OFFSET) == 0xAAAA_BBBB_3333_4444


# --- 31.3 INVEPT, INVVPID, VMCALL ------------------------------------------------------------------------------------

GOOD_EPTP = 0x40_0000 | 3 << 3 | 6


@pytest.mark.parametrize(
    ("name", "kind", "descriptor", "good"),
    [
        ("invept", 1, invept_descriptor(GOOD_EPTP), True),
        ("invept", 1, invept_descriptor(GOOD_EPTP, 1), False),
        ("invept", 1, invept_descriptor(GOOD_EPTP | 7), False),
        ("invept", 1, invept_descriptor(GOOD_EPTP | OUTSIDE), False),
        ("invept", 2, invept_descriptor(0), True),
        ("invept", 0, invept_descriptor(GOOD_EPTP), False),
        ("invept", 3, invept_descriptor(GOOD_EPTP), False),
        ("invept", 1 << 32 | 2, invept_descriptor(0), False),
        ("invvpid", 0, invvpid_descriptor(1, 0x1000), True),
        ("invvpid", 0, invvpid_descriptor(0, 0x1000), False),
        ("invvpid", 0, invvpid_descriptor(1, 1 << 47), False),
        ("invvpid", 1, invvpid_descriptor(1), True),
        ("invvpid", 1, invvpid_descriptor(0), False),
        ("invvpid", 1, invvpid_descriptor(1, 0, 1), False),
        ("invvpid", 2, invvpid_descriptor(0), True),
        ("invvpid", 3, invvpid_descriptor(7), True),
        ("invvpid", 4, invvpid_descriptor(1), False),
    ],
)
def test_invalidations(lab: Lab, name: str, kind: int, descriptor: bytes, good: bool) -> None:
    lab.start_vmx()
    lab.load_vmcs()
    assert lab.step(name, rbx=kind, operand=descriptor).result == ("succeed" if good else "valid")
    if not good:
        assert lab.error() == E.INVALID_OPERAND_TO_INVEPT_INVVPID


def test_vmcall_in_root_operation_is_vmfail_1(lab: Lab) -> None:
    lab.start_vmx()
    lab.load_vmcs()
    assert lab.step("vmcall").result == "valid"
    assert lab.error() == E.VMCALL_IN_VMX_ROOT


# --- 27 VMLAUNCH, VMRESUME ------------------------------------------------------------


def test_launch_state(lab: Lab) -> None:
    """27.1: VMRESUME needs a launched VMCS, VMLAUNCH a clear one; VMCLEAR makes it clear."""
    lab.start_vmx()
    prepare_l2(lab)
    assert lab.step("vmresume").result == "valid"
    assert lab.error() == E.VMRESUME_NONLAUNCHED_VMCS
    lab.step("vmlaunch")
    assert lab.read(Field.EXIT_REASON) == ExitReason.CPUID
    assert lab.step("vmlaunch").result == "valid"
    assert lab.error() == E.VMLAUNCH_NONCLEAR_VMCS
    lab.write(Field.GUEST_RIP, lab.read(Field.GUEST_RIP) + lab.read(Field.VM_EXIT_INSTRUCTION_LENGTH))
    lab.step("vmresume")
    assert lab.read(Field.EXIT_REASON) == ExitReason.HLT


def test_without_a_current_vmcs_entry_is_vmfailinvalid(lab: Lab) -> None:
    lab.start_vmx()
    assert lab.step("vmlaunch").result == "invalid"


def test_a_shadow_vmcs_cannot_be_entered(lab: Lab) -> None:
    """27.1: VMfailInvalid if the current VMCS is a shadow VMCS."""
    lab.start_vmx()
    lab.region(VMCS_A, REVISION | SHADOW)
    assert lab.pointer("vmptrld", VMCS_A).result == "succeed"
    assert lab.step("vmlaunch").result == "invalid"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        (Field.PIN_BASED_VM_EXECUTION_CONTROLS, 0, E.ENTRY_INVALID_CONTROL_FIELDS),
        (Field.CR3_TARGET_COUNT, 5, E.ENTRY_INVALID_CONTROL_FIELDS),
        (Field.HOST_CR0, 0, E.ENTRY_INVALID_HOST_STATE_FIELDS),
        (Field.HOST_TR_SELECTOR, 0, E.ENTRY_INVALID_HOST_STATE_FIELDS),
        (Field.HOST_RIP, 1 << 47, E.ENTRY_INVALID_HOST_STATE_FIELDS),
    ],
)
def test_entry_fails_on_controls_and_host_state(lab: Lab, field: Field, value: int, error: E) -> None:
    lab.start_vmx()
    prepare_l2(lab)
    lab.write(field, value)
    assert lab.step("vmlaunch").result == "valid"
    assert lab.error() == error


@pytest.mark.parametrize(
    ("field", "value", "qualification"),
    [
        (Field.GUEST_RFLAGS, 0, 0),
        (Field.GUEST_RIP, 1 << 60, 0),
        (Field.GUEST_ACTIVITY_STATE, 7, 0),
        (Field.VMCS_LINK_POINTER, 1, 4),
    ],
)
def test_entry_fails_on_guest_state_as_exit_33(lab: Lab, field: Field, value: int, qualification: int) -> None:
    """27.8: the exit reason has bit 31, host state is loaded, the launch state stays clear."""
    lab.start_vmx()
    prepare_l2(lab)
    lab.write(field, value)
    lab.step("vmlaunch")
    assert lab.read(Field.EXIT_REASON) == ExitReason.INVALID_STATE | 1 << 31
    assert lab.read(Field.EXIT_QUALIFICATION) == qualification
    assert lab.step("vmresume").result == "valid"


def test_entry_fails_on_the_msr_load_area_as_exit_34(lab: Lab) -> None:
    """27.4: the qualification is the number of the bad entry."""
    lab.start_vmx()
    prepare_l2(lab)
    lab.memory.write(0x32_0000, bytes.fromhex("82000000 00000000 0000000000000000 000100c0 00000000 0000000000000000"))
    lab.memory.write_u64(0x32_0000, 0xC000_0102)
    lab.write(Field.VM_ENTRY_MSR_LOAD_ADDRESS, 0x32_0000)
    lab.write(Field.VM_ENTRY_MSR_LOAD_COUNT, 2)
    lab.step("vmlaunch")
    assert lab.read(Field.EXIT_REASON) == ExitReason.MSR_LOAD_FAIL | 1 << 31
    assert lab.read(Field.EXIT_QUALIFICATION) == 2  # IA32_FS_BASE may not be loaded


def test_without_nested_every_instruction_is_undefined(lab: Lab) -> None:
    """--nested=off goes through the same entry."""
    lab.vcpu.offers_vmx = False
    assert undefined(lab.pointer("vmxon", lab.region(VMXON_REGION)))


def test_invalidations_do_not_look_at_task_switched(lab: Lab) -> None:
    """The engine raises #NM for their opcodes under CR0.TS; Xen executes INVEPT with it set."""
    lab.start_vmx()
    lab.load_vmcs()
    assert lab.cpu.load_control_register(0, lab.cpu.vmread(Field.GUEST_CR0) | 8)
    assert lab.step("invept", rbx=2, operand=invept_descriptor(0)).result == "succeed"
    assert lab.step("invvpid", rbx=2, operand=invvpid_descriptor(0)).result == "succeed"
