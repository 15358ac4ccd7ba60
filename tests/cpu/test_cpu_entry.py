"""VM entries that fail, VPIDs, shadow VMCS (SDM 3C 27.2, 27.3, 27.8, 29.4, 26.1.3)."""

from __future__ import annotations

import pytest
from harness import CODE, DATA, LONG, PAE, PAGED, REAL, Bench, Exit, Guest

from lzero.cpu.entry import VmFailure
from lzero.cpu.vmcs import Vmcs
from lzero.sdm.controls import ProcBased2
from lzero.sdm.exit_reasons import FAILED_VM_ENTRY
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import EntryFailureQualification as Q
from lzero.sdm.vmcs_fields import Field

CONTROLS, HOST = 7, 8
SHADOWING = ProcBased2.VMCS_SHADOWING

# --- failures ----------------------------------------------------------------------------------------------------

REFUSED = [
    ("PIN_BASED_VM_EXECUTION_CONTROLS", 0, CONTROLS), ("VM_EXIT_CONTROLS", 0, CONTROLS),
    ("CR3_TARGET_COUNT", 5, CONTROLS),
    ("VM_ENTRY_INTERRUPTION_INFORMATION", 0x8000_0100, CONTROLS), ("HOST_CR0", 0, HOST), ("HOST_CS_SELECTOR", 3, HOST),
    ("HOST_TR_SELECTOR", 0, HOST), ("HOST_RIP", 1 << 47, HOST),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "error"), REFUSED)
def test_bad_controls_and_host_state_fail_the_instruction(bench: Bench, field: str, value: int, error: int) -> None:
    """27.2: VMfailValid with error 7 or 8; no VM exit."""
    guest = bench.guest(LONG, "cpuid", **{field: value})
    with pytest.raises(VmFailure) as failure:
        guest.enter()
    assert failure.value.instruction_error == error
    assert not guest.vmcs.launched


INVALID = [
    ("GUEST_RFLAGS", 0, Q.OTHER), ("GUEST_CR0", 0x8000_0000, Q.OTHER), ("GUEST_CS_ACCESS_RIGHTS", 0x93, Q.OTHER),
    ("GUEST_TR_ACCESS_RIGHTS", 0x89, Q.OTHER), ("GUEST_RIP", 1 << 63, Q.OTHER), ("GUEST_ACTIVITY_STATE", 7, Q.OTHER),
    ("GUEST_INTERRUPTIBILITY_STATE", 3, Q.OTHER), ("VMCS_LINK_POINTER", 0x123, Q.VMCS_LINK_POINTER),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "qualification"), INVALID)
def test_bad_guest_state_exits(bench: Bench, field: str, value: int, qualification: Q) -> None:
    """27.3, 27.8: exit reason 33 with bit 31; nothing else of the exit is recorded; the host's state is loaded."""
    guest = bench.guest(LONG, "cpuid", **{field: value})
    exit = guest.enter()
    assert (exit.reason, exit.qualification) == (R.INVALID_STATE | FAILED_VM_ENTRY, qualification)


def test_bad_pdpte_exits(bench: Bench) -> None:
    """27.3.1.6: qualification 2."""
    guest = bench.guest(PAE, "cpuid", ProcBased2.ENABLE_EPT, GUEST_PDPTE1=0x1003)
    exit = guest.enter()
    assert (exit.reason, exit.qualification) == (R.INVALID_STATE | FAILED_VM_ENTRY, Q.PDPTE)


def test_failed_entry_can_be_mended(bench: Bench) -> None:
    """27.8: the VMCS is as it was."""
    guest = bench.guest(REAL, "cpuid", GUEST_RFLAGS=0)
    assert guest.enter().reason == R.INVALID_STATE | FAILED_VM_ENTRY
    guest[Field.GUEST_RFLAGS] = 2
    assert guest.enter() == Exit(R.CPUID, length=2)
    assert guest.vmcs.launched


# --- translations ------------------------------------------------------------------------------------------------


def test_translations_survive_a_change_of_the_tables_until_invalidated(bench: Bench) -> None:
    """29.4.3: INVLPG by the guest makes a new mapping seen."""
    guest = bench.guest(
        PAGED,
        f"mov al, [{DATA:#x}]; mov dword ptr [{0x19000 + (DATA >> 12) * 4:#x}], 0xB067; "
        f"invlpg [{DATA:#x}]; mov ah, [{DATA:#x}]",
    )
    guest.write(DATA, b"\x11")
    guest.write(0xB000, b"\x22")
    assert guest.enter() == guest.end()
    assert guest.gpr[0] & 0xFFFF == 0x2211


def test_vpids_keep_translations_apart(bench: Bench) -> None:
    """29.4.1: two VMCSs with the same CR3 and different tables behind EPT."""
    guest = bench.guest(
        PAGED, f"mov al, [{DATA:#x}]; cpuid; jmp 0x8000", ProcBased2.ENABLE_EPT, ProcBased2.ENABLE_VPID, VPID=1
    )
    guest.write(DATA, b"\x11")
    guest.write(0x20_0000, b"\x22")
    first = guest.vmcs
    second = Vmcs()
    second.words[:] = first.words
    page = guest.bench.pages
    for old, new in (("pt0", "ve"), ("pd", "eptp"), ("pdpt", "vmread"), ("pml4", "vmwrite")):
        guest.write(page[new], guest.processor.memory.read(page[old], 4096))
    guest.write_u64(page["vmwrite"], page["vmread"] | 7)
    guest.write_u64(page["vmread"], page["eptp"] | 7)
    guest.write_u64(page["eptp"], page["ve"] | 7)
    guest.write_u64(page["ve"] + (DATA >> 12) * 8, 0x20_0037)
    second.write(Field.EPT_POINTER, page["vmwrite"] | 0x1E)
    second.write(Field.VPID, 2)
    for vmcs, value in ((first, 0x11), (second, 0x22), (first, 0x11), (second, 0x22)):
        guest.processor.vmptrld(vmcs)
        guest[Field.GUEST_RIP] = CODE
        assert guest.enter().reason == R.CPUID
        assert guest.gpr[0] & 0xFF == value


# --- VMCS shadowing ----------------------------------------------------------------------------------------------

READ_ONLY, WRITABLE = Field.EXIT_REASON, Field.GUEST_RIP


def _shadowed(bench: Bench, code: str, encoding: int, *, exits: bool = False) -> Guest:
    guest = bench.guest(LONG, code, SHADOWING)
    guest.processor.shadow_vmcs = Vmcs()
    for name in ("vmread", "vmwrite"):
        guest.write(bench.pages[name], b"\xff" * 4096)
        if not exits:
            guest.write(bench.pages[name] + encoding // 8, bytes([0xFF & ~(1 << (encoding & 7))]))
    guest.gpr[3] = encoding
    return guest


def test_vmread_of_the_shadow(bench: Bench) -> None:
    """26.1.3, 2D VMREAD: no exit; the value comes from the shadow VMCS; VMsucceed clears the arithmetic flags."""
    guest = _shadowed(bench, "mov rax, -1; stc; vmread rax, rbx", WRITABLE)
    assert guest.processor.shadow_vmcs is not None
    guest.processor.shadow_vmcs.write(WRITABLE, 0x1234_5678_9ABC)
    assert guest.enter() == guest.end()
    assert guest.gpr[0] == 0x1234_5678_9ABC
    assert guest[Field.GUEST_RFLAGS] == 2


def test_vmwrite_of_the_shadow(bench: Bench) -> None:
    """26.1.3, 2D VMWRITE."""
    guest = _shadowed(bench, "mov rax, 0x77; vmwrite rbx, rax", WRITABLE)
    assert guest.enter() == guest.end()
    assert guest.processor.shadow_vmcs is not None
    assert guest.processor.shadow_vmcs.read(WRITABLE) == 0x77


def test_vmread_to_memory(bench: Bench) -> None:
    """The operand's fault comes like any other's."""
    guest = _shadowed(bench, f"vmread [{DATA:#x}], rbx", WRITABLE)
    assert guest.processor.shadow_vmcs is not None
    guest.processor.shadow_vmcs.write(WRITABLE, 0x55)
    assert guest.enter() == guest.end()
    assert guest.read(DATA, 8) == 0x55
    faults = _shadowed(bench, "vmread [0x600000], rbx", WRITABLE)
    faults.write_u64(0x12000 + 24, 0)
    faults[Field.EXCEPTION_BITMAP] = 1 << 14
    exit = faults.enter()
    assert (exit.reason, exit.qualification, exit.error_code) == (R.EXCEPTION_NMI, 0x60_0000, 2)


@pytest.mark.parametrize(("code", "reason"), [("vmread rax, rbx", R.VMREAD), ("vmwrite rbx, rax", R.VMWRITE)])
def test_bitmap_makes_it_exit(bench: Bench, code: str, reason: R) -> None:
    """25.6.15: a bit that is 1; and encodings with bits beyond 14 exit always."""
    assert _shadowed(bench, code, WRITABLE, exits=True).enter().reason == reason
    beyond = _shadowed(bench, code, WRITABLE)
    beyond.gpr[3] = 1 << 15 | WRITABLE
    assert beyond.enter().reason == reason
    assert _shadowed(bench, code, READ_ONLY, exits=True).enter().reason == reason


def test_only_the_bits_of_one_instruction_count(bench: Bench) -> None:
    """25.6.15: VMREAD has a bitmap of its own."""
    guest = _shadowed(bench, "vmread rax, rbx", WRITABLE)
    guest.write(bench.pages["vmwrite"], b"\xff" * 4096)
    assert guest.enter() == guest.end()


# --- EPTP switching ----------------------------------------------------------------------------------------------


def test_vmfunc(bench: Bench) -> None:
    """26.5.6: #UD without the control or for a function above 63; an exit for one that is not enabled."""
    switch = ProcBased2.ENABLE_VM_FUNCTIONS
    guest = bench.guest(LONG, "mov eax, 64; vmfunc", switch, ProcBased2.ENABLE_EPT, EXCEPTION_BITMAP=1 << 6)
    assert guest.enter() == Exit(R.EXCEPTION_NMI, at=5, interruption=0x8000_0306)
    guest = bench.guest(LONG, "mov eax, 1; vmfunc", switch, ProcBased2.ENABLE_EPT)
    assert guest.enter() == Exit(R.VMFUNC, at=5, length=3)


def test_eptp_switching(bench: Bench) -> None:
    """26.5.6.3."""
    code = f"xor eax, eax; mov ecx, 3; vmfunc; mov al, [{DATA:#x}]"
    guest = bench.guest(LONG, code, ProcBased2.ENABLE_VM_FUNCTIONS, ProcBased2.ENABLE_EPT, VM_FUNCTION_CONTROLS=1)
    guest.write_u64(bench.pages["eptp"] + 24, guest[Field.EPT_POINTER])
    guest.write(DATA, b"\x42")
    assert guest.enter() == guest.end()
    assert guest.gpr[0] == 0x42
    bad = bench.guest(LONG, code, ProcBased2.ENABLE_VM_FUNCTIONS, ProcBased2.ENABLE_EPT, VM_FUNCTION_CONTROLS=1)
    assert bad.enter() == Exit(R.VMFUNC, at=7, length=3)
