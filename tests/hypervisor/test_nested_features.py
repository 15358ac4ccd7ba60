"""The controls that L1 may set for L2: one test per rule, named after its section (SDM 3C 25 to 31).

What builds on EPT is in ``test_nested_ept.py``, events and timers in
``test_nested_events.py``, state and modes in ``test_nested_state.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from l2lab import DATA, L2, OUTSIDE, VALID
from nestedlab import L2_CODE, REVISION, Lab

from guestasm import assemble
from lzero.cpu.memory import HOST_BASE
from lzero.hypervisor.features import NESTED
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.vm_instruction_errors import VmInstructionError as E
from lzero.sdm.vmcs_fields import Field

FAILED = 1 << 31
PAT, EFER, KERNEL_GS, SYSENTER_CS, STAR = 0x277, 0xC000_0080, 0xC000_0102, 0x174, 0xC000_0081


@pytest.fixture
def l2() -> Iterator[L2]:
    made = L2()
    yield made
    made.close()


# --- 26.1 instructions ---


INSTRUCTIONS = {
    "invlpg": (ProcBased.INVLPG_EXITING, "invlpg [rax]", R.INVLPG),
    "rdtsc": (ProcBased.RDTSC_EXITING, "rdtsc", R.RDTSC),
    "rdpmc": (ProcBased.RDPMC_EXITING, "rdpmc", R.RDPMC),
    "mwait": (ProcBased.MWAIT_EXITING, "mwait", R.MWAIT_INSTRUCTION),
    "monitor": (ProcBased.MONITOR_EXITING, "monitor", R.MONITOR_INSTRUCTION),
    "pause": (ProcBased.PAUSE_EXITING, "pause", R.PAUSE_INSTRUCTION),
    "mov-dr": (ProcBased.MOV_DR_EXITING, "mov rax, dr3", R.DR_ACCESS),
    "cr3-load": (ProcBased.CR3_LOAD_EXITING, "mov cr3, rax", R.CR_ACCESS),
    "cr3-store": (ProcBased.CR3_STORE_EXITING, "mov rax, cr3", R.CR_ACCESS),
    "cr8-load": (ProcBased.CR8_LOAD_EXITING, "mov cr8, rax", R.CR_ACCESS),
    "cr8-store": (ProcBased.CR8_STORE_EXITING, "mov rax, cr8", R.CR_ACCESS),
    "io": (ProcBased.UNCONDITIONAL_IO_EXITING, "in al, 0x71", R.IO_INSTRUCTION),
    "wbinvd": (ProcBased2.WBINVD_EXITING, "wbinvd", R.WBINVD),
    "rdrand": (ProcBased2.RDRAND_EXITING, "rdrand ax", R.RDRAND),
    "rdseed": (ProcBased2.RDSEED_EXITING, "rdseed eax", R.RDSEED),
    "sgdt": (ProcBased2.DESCRIPTOR_TABLE_EXITING, f"sgdt [{DATA:#x}]", R.GDTR_IDTR),
    "sldt": (ProcBased2.DESCRIPTOR_TABLE_EXITING, "sldt ax", R.LDTR_TR),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_26_1_3_instructions_exit_as_controls_ask(l2: L2, name: str) -> None:
    control, code, reason = INSTRUCTIONS[name]
    l2.want(control)
    assert l2.run(f"{code}; hlt") == reason
    assert l2.rip == 0
    assert l2[Field.VM_EXIT_INSTRUCTION_LENGTH] == len(assemble(code, 64, L2_CODE))


@pytest.mark.parametrize(
    "name", ["invlpg", "rdtsc", "pause", "mov-dr", "cr3-store", "cr8-load", "cr8-store", "io", "wbinvd", "sgdt", "sldt"]
)
def test_26_1_3_and_do_not_exit_otherwise(l2: L2, name: str) -> None:
    _, code, _ = INSTRUCTIONS[name]
    assert l2.run(f"{code}; hlt") == R.HLT


def test_26_1_2_some_exit_always(l2: L2) -> None:
    for code, reason in (
        ("cpuid", R.CPUID),
        ("invd", R.INVD),
        ("vmcall", R.VMCALL),
        ("vmlaunch", R.VMLAUNCH),
        ("vmxoff", R.VMOFF),
        ("invept rax, [rbx]", R.INVEPT),
        ("invvpid rax, [rbx]", R.INVVPID),
    ):
        assert l2.run(code) == reason, code


@pytest.mark.parametrize(
    ("control", "code"), [(ProcBased2.ENABLE_RDTSCP, "rdtscp"), (ProcBased2.ENABLE_INVPCID, "invpcid rax, [rbx]")]
)
def test_26_3_enabled_instructions(l2: L2, control: ProcBased2, code: str) -> None:
    """#UD while the control is 0; with it, an exit if RDTSC or INVLPG exits (26.1.3)."""
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.UD
    assert l2.run(code) == R.EXCEPTION_NMI
    l2.want(control, ProcBased.RDTSC_EXITING, ProcBased.INVLPG_EXITING)
    assert l2.run(code) in {R.RDTSCP, R.INVPCID}


def test_26_1_3_pause_loop_exiting(l2: L2) -> None:
    l2.want(ProcBased2.PAUSE_LOOP_EXITING)
    l2[Field.PLE_GAP], l2[Field.PLE_WINDOW] = 1000, 2000
    assert l2.run("pause; jmp $-2".replace("jmp $-2", "{eb fc}")) == R.PAUSE_INSTRUCTION
    assert l2.run("pause; hlt") == R.HLT


# --- 25.6.6 to 25.6.8 control registers ---


def test_26_1_3_cr3_targets(l2: L2) -> None:
    cr3 = l2[Field.GUEST_CR3]
    l2.want(ProcBased.CR3_LOAD_EXITING)
    l2[Field.CR3_TARGET_COUNT], l2[Field.CR3_TARGET_VALUE_3] = 4, cr3
    assert l2.run("mov rdx, cr3; mov cr3, rdx; hlt") == R.HLT
    l2[Field.CR3_TARGET_COUNT] = 3
    assert l2.run("mov rdx, cr3; mov cr3, rdx; hlt") == R.CR_ACCESS
    assert l2.qualification == 3 | 2 << 8


@pytest.mark.parametrize("register", [0, 4])
def test_25_6_6_masks_and_shadows(l2: L2, register: int) -> None:
    """Reads see the shadow in masked bits; writes exit if they differ from it there, and change unmasked bits alone."""
    bit, mask, shadow, real = (
        (1 << 18, Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW, Field.GUEST_CR0)
        if register == 0
        else (1 << 2, Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW, Field.GUEST_CR4)
    )
    l2[mask], l2[shadow] = bit, bit
    before = l2[real]
    assert not before & bit
    assert l2.run(f"mov rax, cr{register}; mov cr{register}, rax; hlt") == R.HLT
    assert l2.rax == before | bit
    assert l2[real] == before
    assert l2.run(f"mov rax, cr{register}; xor rax, {bit:#x}; mov cr{register}, rax; hlt") == R.CR_ACCESS
    assert l2.qualification == register
    l2[mask] = 0
    assert l2.run(f"mov rax, cr{register}; or rax, {bit:#x}; mov cr{register}, rax; hlt") == R.HLT
    assert l2[real] == before | bit


def test_26_1_3_clts_and_lmsw(l2: L2) -> None:
    l2[Field.CR0_GUEST_HOST_MASK], l2[Field.CR0_READ_SHADOW] = 8, 8
    assert l2.run("clts; hlt") == R.CR_ACCESS
    assert l2.qualification == 2 << 4
    assert l2.run("mov eax, 1; lmsw ax; hlt") == R.CR_ACCESS
    assert l2.qualification == 3 << 4 | 1 << 16
    l2[Field.CR0_READ_SHADOW] = 0
    assert l2.run("clts; hlt") == R.HLT


def test_26_5_1_without_a_tpr_shadow_cr8_is_the_task_priority_of_l1(l2: L2) -> None:
    assert l2.run("mov eax, 5; mov cr8, rax; mov eax, 0; mov rax, cr8; hlt") == R.HLT
    assert l2.rax == 5
    assert l2.lab.pc.lapic.cr8 == 5


def test_11_8_6_reserved_bits_of_cr8_are_a_general_protection_fault(l2: L2) -> None:
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.GP
    assert l2.run("mov eax, 16; mov cr8, rax; hlt") == R.EXCEPTION_NMI
    assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] == VALID | 1 << 11 | 3 << 8 | Vector.GP
    assert l2.lab.pc.lapic.cr8 == 0


# --- 30.1 TPR shadow ---


def test_30_1_1_tpr_shadow(l2: L2) -> None:
    page = l2.page()
    l2.want(ProcBased.USE_TPR_SHADOW)
    l2[Field.VIRTUAL_APIC_ADDRESS] = page
    l2.memory.write(page + 0x80, b"\x70")
    assert l2.run("mov rax, cr8; mov edx, 3; mov cr8, rdx; hlt") == R.HLT
    assert l2.rax == 7
    assert l2.memory.read(page + 0x80, 1) == b"\x30"
    assert l2.lab.pc.lapic.cr8 == 0


def test_30_1_2_tpr_threshold(l2: L2) -> None:
    page = l2.page()
    l2.want(ProcBased.USE_TPR_SHADOW)
    l2[Field.VIRTUAL_APIC_ADDRESS], l2[Field.TPR_THRESHOLD] = page, 4
    l2.memory.write(page + 0x80, b"\x50")
    code = "mov edx, 4; mov cr8, rdx; mov edx, 3; mov cr8, rdx; hlt"
    assert l2.run(code) == R.TPR_BELOW_THRESHOLD
    assert l2.rip == len(assemble(code, 64, L2_CODE)) - 1  # after the MOV, as a trap
    l2.lab.step("vmresume")
    assert l2.lab.error() == E.ENTRY_INVALID_CONTROL_FIELDS  # 27.2.1.1: the threshold is above VTPR


def test_a_virtual_apic_page_in_l0s_memory_is_nowhere(l2: L2) -> None:
    l2.want(ProcBased.USE_TPR_SHADOW)
    l2[Field.VIRTUAL_APIC_ADDRESS] = HOST_BASE
    before = l2.cpu.memory.read(HOST_BASE, 4096)
    assert l2.run("mov edx, 3; mov cr8, rdx; mov rax, cr8; hlt") == R.HLT
    assert l2.rax == 15
    assert l2.cpu.memory.read(HOST_BASE, 4096) == before


# --- 25.6.4, 25.6.9 bitmaps ---


def test_26_1_3_io_bitmaps(l2: L2) -> None:
    """One bit per port in two pages; they override unconditional exiting, and count at once when L1 changes them."""
    low, high = l2.page(), l2.page()
    l2.want(ProcBased.USE_IO_BITMAPS, ProcBased.UNCONDITIONAL_IO_EXITING)
    l2[Field.IO_BITMAP_A_ADDRESS], l2[Field.IO_BITMAP_B_ADDRESS] = low, high
    assert l2.run("mov dx, 0x8071; in al, dx; in al, 0x71; hlt") == R.HLT
    l2.memory.write(low + 0x71 // 8, bytes([1 << (0x71 & 7)]))
    assert l2.run("in al, 0x71; hlt") == R.IO_INSTRUCTION
    assert l2.qualification == 0x71 << 16 | 1 << 6 | 8
    assert l2.run("in ax, 0x70; hlt") == R.IO_INSTRUCTION  # touches port 0x71
    l2.memory.write(high + 0x71 // 8, bytes([1 << (0x71 & 7)]))
    assert l2.run("mov dx, 0x8071; in al, dx; hlt") == R.IO_INSTRUCTION
    assert l2.run("mov dx, 0xffff; in ax, dx; hlt") == R.IO_INSTRUCTION  # wraps around
    l2.memory.write(low, bytes(4096))
    assert l2.run("in al, 0x71; hlt") == R.HLT


@pytest.mark.parametrize(("index", "half"), [(SYSENTER_CS, 0), (KERNEL_GS, 0x400), (PAT, 0), (STAR, 0x400)])
@pytest.mark.parametrize("write", [False, True])
def test_26_1_3_msr_bitmaps(l2: L2, index: int, half: int, write: bool) -> None:
    """Four parts: reads and writes, low and high MSRs; changed between entries without any VMWRITE."""
    page = l2.page()
    l2.want(ProcBased.USE_MSR_BITMAPS)
    l2[Field.MSR_BITMAPS_ADDRESS] = page
    code = f"mov ecx, {index:#x}; rdmsr; {'wrmsr;' if write else ''} hlt"
    assert l2.run(code) == R.HLT
    l2.memory.write(page + half + (0x800 if write else 0) + (index & 0x1FFF) // 8, bytes([1 << (index & 7)]))
    assert l2.run(code) == (R.MSR_WRITE if write else R.MSR_READ)
    l2.memory.write(page, bytes(4096))
    assert l2.run(code) == R.HLT
    assert l2.run("mov ecx, 0x2000; rdmsr") == R.MSR_READ  # in neither range
    l2.refuse(ProcBased.USE_MSR_BITMAPS)
    assert l2.run(code) == R.MSR_READ


@pytest.mark.parametrize("address", OUTSIDE)
def test_bitmaps_outside_of_ram_read_as_ones(l2: L2, address: int) -> None:
    if address >> 39:
        pytest.skip("refused by VM entry")
    l2.want(ProcBased.USE_MSR_BITMAPS, ProcBased.USE_IO_BITMAPS)
    for field in (Field.MSR_BITMAPS_ADDRESS, Field.IO_BITMAP_A_ADDRESS, Field.IO_BITMAP_B_ADDRESS):
        l2[field] = address
    assert l2.run("in al, 0x71; hlt") == R.IO_INSTRUCTION
    assert l2.run(f"mov ecx, {SYSENTER_CS:#x}; rdmsr; hlt") == R.MSR_READ


@pytest.mark.parametrize("address", OUTSIDE)
@pytest.mark.parametrize("name", ["vmclear", "vmptrld", "vmxon"])
def test_vmcs_regions_outside_of_ram(l2: L2, name: str, address: int) -> None:
    """31.3: nothing there has the revision identifier; VMCLEAR writes nowhere."""
    if name == "vmxon":
        l2.lab.step("vmxoff")
    before = l2.cpu.memory.read(HOST_BASE, 4096)
    outcome = l2.lab.pointer(name, address)
    assert outcome.result == {"vmclear": "succeed", "vmptrld": "valid", "vmxon": "invalid"}[name]
    assert l2.cpu.memory.read(HOST_BASE, 4096) == before


# --- 26.2 exceptions ---


@pytest.mark.parametrize(
    ("mask", "match", "bit", "exits"),
    [
        (0, 0, True, True),
        (0, 0, False, False),
        (2, 2, True, True),
        (2, 0, True, False),
        (2, 2, False, False),
        (2, 0, False, True),
        (0, 1, True, False),
        (0, 1, False, True),
    ],
)
def test_26_2_page_faults_by_mask_and_match(l2: L2, mask: int, match: int, bit: bool, exits: bool) -> None:
    """Error code 2: a supervisor's write where nothing is mapped. CR2 keeps its value when it exits."""
    l2.use_idt()
    l2[Field.EXCEPTION_BITMAP] = int(bit) << Vector.PF
    l2[Field.PAGE_FAULT_ERROR_CODE_MASK], l2[Field.PAGE_FAULT_ERROR_CODE_MATCH] = mask, match
    l2.cpu.cr2 = 0
    reason = l2.run(f"mov rsi, {0x7F_0000_1230:#x}; mov [rsi], rax; hlt")
    if exits:
        assert reason == R.EXCEPTION_NMI
        assert l2.qualification == 0x7F_0000_1230
        assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] == VALID | 1 << 11 | 3 << 8 | Vector.PF
        assert l2[Field.VM_EXIT_INTERRUPTION_ERROR_CODE] == 2
        assert l2.cpu.cr2 == 0
    else:
        assert reason == R.VMCALL
        assert l2.delivered == Vector.PF
        assert l2.cpu.cr2 == 0x7F_0000_1230


@pytest.mark.parametrize(
    ("code", "vector", "kind"), [("ud2", Vector.UD, 3), ("int3", Vector.BP, 6), ("xor ecx, ecx; div ecx", Vector.DE, 3)]
)
def test_26_2_the_exception_bitmap(l2: L2, code: str, vector: Vector, kind: int) -> None:
    l2.use_idt()
    assert l2.run(f"{code}; hlt") == R.VMCALL
    assert l2.delivered == vector
    l2[Field.EXCEPTION_BITMAP] = 1 << vector
    assert l2.run(f"{code}; hlt") == R.EXCEPTION_NMI
    assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] == VALID | kind << 8 | vector


def test_26_2_an_exception_that_l0_raises_is_l1s_too(l2: L2) -> None:
    """RDMSR of no MSR: L1 wants no exit for it, but the #GP."""
    page = l2.page()
    l2.use_idt()
    l2.want(ProcBased.USE_MSR_BITMAPS)
    l2[Field.MSR_BITMAPS_ADDRESS] = page
    assert l2.run("mov ecx, 0x1fff; rdmsr; hlt") == R.VMCALL
    assert l2.delivered == Vector.GP
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.GP
    assert l2.run("mov ecx, 0x1fff; rdmsr; hlt") == R.EXCEPTION_NMI
    assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] == VALID | 1 << 11 | 3 << 8 | Vector.GP
    assert l2[Field.GUEST_RFLAGS] & 1 << 16  # 28.3.3: RF of a fault


def test_26_2_triple_fault(l2: L2) -> None:
    l2[Field.GUEST_IDTR_LIMIT] = 0
    assert l2.run("ud2") == R.TRIPLE_FAULT


def test_code_that_a_device_overwrites_is_executed_anew(l2: L2) -> None:
    """Overwritten by fw_cfg's DMA, which the processor does not see."""
    descriptor, code = l2.page(), assemble("mov eax, 2; hlt", 64)
    l2.lab.pc.fw_cfg.add_file("opt/code", code)
    key = next(key for key in range(0x20, 0x100) if read_item(l2, key, len(code)) == code)
    assert l2.run("mov eax, 1; hlt") == R.HLT
    assert l2.rax == 1
    l2.memory.write(descriptor, struct.pack(">IIQ", key << 16 | 8 | 2, len(code), L2_CODE))
    for port, half in ((0x514, descriptor >> 32), (0x518, descriptor & 0xFFFF_FFFF)):
        l2.lab.pc.bus.port_write(port, 4, int.from_bytes(half.to_bytes(4, "big"), "little"))
    l2[Field.GUEST_RIP] = L2_CODE
    assert l2.enter() == R.HLT
    assert l2.rax == 2


def test_memory_can_be_written_when_the_processor_is_gone() -> None:
    lab = Lab()
    lab.close()
    lab.memory.write(0x1000, b"x")
    assert lab.memory.read(0x1000, 1) == b"x"


def read_item(l2: L2, key: int, size: int) -> bytes:
    bus = l2.lab.pc.bus
    bus.port_write(0x510, 2, key)
    return bytes(bus.port_read(0x511, 1) for _ in range(size))


# --- 25.10, 31.3 VMCS shadowing for L1 ---


def shadow(l2: L2) -> int:
    """L2 reads and writes all fields of a shadow VMCS; its address."""
    address = l2.page()
    l2.memory.write(address, (REVISION | 1 << 31).to_bytes(4, "little"))
    l2.want(ProcBased2.VMCS_SHADOWING)
    l2[Field.VMREAD_BITMAP_ADDRESS], l2[Field.VMWRITE_BITMAP_ADDRESS] = l2.page(), l2.page()
    l2[Field.VMCS_LINK_POINTER] = address
    return address


VMREAD, VMWRITE = "{0f 78 d0}", "{0f 79 d0}"
"""VMREAD RAX, RDX; VMWRITE RDX, RAX."""


def test_31_3_vmread_and_vmwrite_of_the_shadow_vmcs(l2: L2) -> None:
    """What L2 wrote is in the region that L1 linked, once L1 makes it current."""
    address = shadow(l2)
    code = f"{VMWRITE}; mov eax, 0; {VMREAD}; hlt"
    assert l2.run(code, rax=0x1234, rdx=Field.GUEST_CR3) == R.HLT
    assert l2.rax == 0x1234
    assert not l2[Field.GUEST_RFLAGS] & 0x8D5
    l2.lab.pointer("vmptrld", address)
    assert l2.lab.read(Field.GUEST_CR3) == 0x1234


@pytest.mark.parametrize("field", sorted(NESTED.existing_fields), ids=lambda encoding: Field(encoding).name)
def test_31_3_every_field_that_l1_is_offered_exists_in_a_shadow_vmcs(l2: L2, field: int) -> None:
    shadow(l2)
    assert l2.run(f"{VMREAD}; hlt", rdx=field) == R.HLT
    assert not l2[Field.GUEST_RFLAGS] & 0x8D5


@pytest.mark.parametrize(
    ("code", "reason", "bitmap"),
    [(VMREAD, R.VMREAD, Field.VMREAD_BITMAP_ADDRESS), (VMWRITE, R.VMWRITE, Field.VMWRITE_BITMAP_ADDRESS)],
)
def test_26_1_3_the_bitmaps_select_what_exits(l2: L2, code: str, reason: R, bitmap: Field) -> None:
    shadow(l2)
    field = int(Field.GUEST_CR3)
    l2.memory.write(l2[bitmap] + field // 8, bytes([1 << (field & 7)]))
    assert l2.run(f"{code}; hlt", rdx=field) == reason
    assert l2.run(f"{code}; hlt", rdx=field + 2) == R.HLT
    assert l2.run(f"{code}; hlt", rdx=0x8000) == reason  # bits 63:15 are not 0
    l2.refuse(ProcBased2.VMCS_SHADOWING)
    l2[Field.VMCS_LINK_POINTER] = (1 << 64) - 1
    assert l2.run(f"{code}; hlt", rdx=field + 2) == reason


def test_31_3_no_link_pointer_is_vmfailinvalid_and_no_field_vmfailvalid(l2: L2) -> None:
    shadow(l2)
    assert l2.run(f"{VMREAD}; hlt", rdx=0x7FFE) == R.HLT
    assert l2[Field.GUEST_RFLAGS] & 0x8D5 == 0x40
    l2[Field.VMCS_LINK_POINTER] = (1 << 64) - 1
    assert l2.run(f"{VMREAD}; hlt", rdx=Field.GUEST_CR3) == R.HLT
    assert l2[Field.GUEST_RFLAGS] & 0x8D5 == 1


# --- 26.3, 27.6.5 time stamp counter ---


def tsc_of_l2(l2: L2) -> int:
    assert l2.run("rdtsc; shl rdx, 32; or rax, rdx; hlt") == R.HLT
    return l2.rax


def test_26_3_tsc_offset(l2: L2) -> None:
    l2.want(ProcBased.USE_TSC_OFFSETTING)
    l2[Field.TSC_OFFSET] = 1 << 50
    now = l2.lab.pc.clock.tsc()
    assert 0 <= tsc_of_l2(l2) - (1 << 50) - now < 1 << 20
    l2[Field.TSC_OFFSET] = -(1 << 50) & (1 << 64) - 1
    assert tsc_of_l2(l2) >> 62 == 3


def test_26_3_tsc_scaling(l2: L2) -> None:
    """TSC * multiplier / 2^48 + offset, of the TSC as L1 reads it."""
    l2.lab.vcpu.set_tsc(1 << 40)
    l2.want(ProcBased.USE_TSC_OFFSETTING, ProcBased2.USE_TSC_SCALING)
    l2[Field.TSC_MULTIPLIER], l2[Field.TSC_OFFSET] = 3 << 47, 7
    assert 0 <= tsc_of_l2(l2) - (3 << 39) - 7 < 1 << 20


def test_26_3_a_tsc_that_l1_moved_between_entries(l2: L2) -> None:
    l2.want(ProcBased.USE_TSC_OFFSETTING)
    tsc_of_l2(l2)
    l2.lab.vcpu.set_tsc(1 << 45)
    assert 0 <= tsc_of_l2(l2) - (1 << 45) < 1 << 20


def test_26_3_rdmsr_of_the_tsc_is_offset_and_wrmsr_is_not(l2: L2) -> None:
    l2.want(ProcBased.USE_TSC_OFFSETTING, ProcBased.USE_MSR_BITMAPS)
    l2[Field.TSC_OFFSET], l2[Field.MSR_BITMAPS_ADDRESS] = 1 << 50, l2.page()
    now = l2.lab.pc.clock.tsc()
    assert l2.run("mov ecx, 0x10; rdmsr; shl rdx, 32; or rax, rdx; hlt") == R.HLT
    assert 0 <= l2.rax - (1 << 50) - now < 1 << 20
    code = "mov ecx, 0x10; mov edx, 0x100; xor eax, eax; wrmsr; rdtsc; shl rdx, 32; or rax, rdx; hlt"
    assert l2.run(code) == R.HLT
    assert 0 <= l2.rax - (1 << 50) - (1 << 40) < 1 << 20
    assert 0 <= l2.lab.pc.clock.tsc() - (1 << 40) < 1 << 20


# --- what else ---


def test_25_6_2_vpid(l2: L2) -> None:
    l2.want(ProcBased2.ENABLE_VPID)
    l2[Field.VPID] = 7
    assert l2.run("hlt") == R.HLT
    l2[Field.VPID] = 0
    l2.lab.step("vmresume")
    assert l2.lab.error() == E.ENTRY_INVALID_CONTROL_FIELDS


def test_27_2_1_1_what_is_not_offered_is_refused(l2: L2) -> None:
    """A control bit that the capability MSRs do not allow is VMfail 7."""
    for control in (
        PinBased.PROCESS_POSTED_INTERRUPTS,
        ProcBased.ACTIVATE_TERTIARY_CONTROLS,
        ProcBased2.ENABLE_XSAVES_XRSTORS,
        VmExit.CLEAR_IA32_BNDCFGS,
        VmEntry.LOAD_IA32_BNDCFGS,
    ):
        l2.want(control)
        l2.lab.step("vmlaunch")
        assert l2.lab.error() == E.ENTRY_INVALID_CONTROL_FIELDS, control
        l2.refuse(control)
