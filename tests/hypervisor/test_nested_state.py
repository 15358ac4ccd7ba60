"""State that entries into L2 and exits from it load and save, MSR areas, modes (SDM 3C 27, 28)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from l2lab import DATA, L2, OUTSIDE
from nestedlab import L2_CODE, VMCS_B

from guestasm import assemble
from lzero.hypervisor.endings import VmxAborted
from lzero.sdm.controls import ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import VmxAbort
from lzero.sdm.vmcs_fields import Field

FAILED = 1 << 31
PAT, EFER, KERNEL_GS, STAR = 0x277, 0xC000_0080, 0xC000_0102, 0xC000_0081


@pytest.fixture
def l2() -> Iterator[L2]:
    made = L2()
    yield made
    made.close()


# --- 25.7, 25.8 state loaded and saved ---


def test_28_3_1_and_27_3_2_efer(l2: L2) -> None:
    l2.want(VmEntry.LOAD_IA32_EFER, VmExit.SAVE_IA32_EFER, VmExit.LOAD_IA32_EFER)
    l2[Field.GUEST_IA32_EFER], l2[Field.HOST_IA32_EFER] = 0xD01, 0xD00
    l2[Field.MSR_BITMAPS_ADDRESS] = l2.page()
    l2.want(ProcBased.USE_MSR_BITMAPS)
    assert l2.run(f"mov ecx, {EFER:#x}; rdmsr; mov esi, eax; and eax, 0xfffffffe; wrmsr; hlt") == R.HLT
    assert l2.cpu.gpr[6] == 0xD01
    assert l2[Field.GUEST_IA32_EFER] == 0xD00
    assert l2.cpu.vmread(Field.GUEST_IA32_EFER) == 0xD00


def test_28_3_1_and_27_3_2_pat(l2: L2) -> None:
    pat = 0x0606_0606_0606_0606
    l2.want(VmEntry.LOAD_IA32_PAT, VmExit.SAVE_IA32_PAT, VmExit.LOAD_IA32_PAT, ProcBased.USE_MSR_BITMAPS)
    l2[Field.GUEST_IA32_PAT], l2[Field.HOST_IA32_PAT], l2[Field.MSR_BITMAPS_ADDRESS] = pat, pat | 7, l2.page()
    l2[Field.HOST_IA32_PAT] = 0x0404_0404_0404_0404
    assert l2.run(f"mov ecx, {PAT:#x}; rdmsr; mov esi, eax; xor eax, eax; wrmsr; hlt") == R.HLT
    assert l2.cpu.gpr[6] == 0x0606_0606
    assert l2[Field.GUEST_IA32_PAT] == 0x0606_0606_0000_0000
    assert l2.cpu.vmread(Field.GUEST_IA32_PAT) == 0x0404_0404_0404_0404
    l2.refuse(VmExit.SAVE_IA32_PAT, VmEntry.LOAD_IA32_PAT)
    assert l2.run(f"mov ecx, {PAT:#x}; rdmsr; hlt") == R.HLT
    assert l2.rax == 0x0404_0404  # L1's own
    assert l2[Field.GUEST_IA32_PAT] == 0x0606_0606_0000_0000


def test_28_3_1_and_27_3_2_debug_controls(l2: L2) -> None:
    l2.want(VmEntry.LOAD_DEBUG_CONTROLS, VmExit.SAVE_DEBUG_CONTROLS)
    l2[Field.GUEST_DR7] = 0x402
    assert l2.run("mov rsi, dr7; mov eax, 0x408; mov dr7, rax; hlt") == R.HLT
    assert l2.cpu.gpr[6] == 0x402
    assert l2[Field.GUEST_DR7] == 0x408
    assert l2.cpu.vmread(Field.GUEST_DR7) == 0x400  # 28.5.1


def test_28_5_host_state(l2: L2) -> None:
    """28.5.1 to 28.5.3: registers, segments with fixed limits and rights, RFLAGS, RSP and RIP."""
    l2[Field.HOST_GS_BASE], l2[Field.HOST_FS_BASE], l2[Field.HOST_TR_BASE] = 0x1111_0000, 0x2222_0000, 0x3333_0000
    l2[Field.HOST_IA32_SYSENTER_ESP], l2[Field.HOST_GDTR_BASE] = 0x4444_0000, 0x5555_0000
    rsp = l2[Field.HOST_RSP]
    assert l2.run("hlt") == R.HLT
    read = l2.cpu.vmread
    assert read(Field.GUEST_GS_BASE) == 0x1111_0000
    assert read(Field.GUEST_FS_BASE) == 0x2222_0000
    assert (read(Field.GUEST_TR_BASE), read(Field.GUEST_TR_LIMIT)) == (0x3333_0000, 0x67)
    assert read(Field.GUEST_IA32_SYSENTER_ESP) == 0x4444_0000
    assert (read(Field.GUEST_GDTR_BASE), read(Field.GUEST_GDTR_LIMIT)) == (0x5555_0000, 0xFFFF)
    assert read(Field.GUEST_CS_ACCESS_RIGHTS) == 0xA09B
    assert read(Field.GUEST_RFLAGS) == 2
    assert read(Field.GUEST_RSP) == rsp


def test_27_8_a_failed_entry_loads_the_host_state_of_its_own_vmcs(l2: L2) -> None:
    """Another VMCS with another host state ran before."""
    l2[Field.HOST_GS_BASE] = 0x1111_0000
    assert l2.run("hlt") == R.HLT
    fields = {field: l2[field] for field in (Field(e) for e in l2.lab.vcpu.nested.state.capabilities.existing_fields)}
    l2.lab.load_vmcs(VMCS_B)
    for field, value in fields.items():
        l2[field] = value
    l2[Field.HOST_GS_BASE], l2[Field.GUEST_RFLAGS] = 0x7777_0000, 0
    l2.lab.step("vmlaunch")
    assert l2[Field.EXIT_REASON] == FAILED | R.INVALID_STATE
    assert l2.cpu.vmread(Field.GUEST_GS_BASE) == 0x7777_0000


# --- 27.4, 28.4, 28.6 MSR areas ---


def msr_area(l2: L2, address: Field, count: Field, *entries: tuple[int, int]) -> int:
    page = l2.page()
    l2.memory.write(page, b"".join(i.to_bytes(8, "little") + v.to_bytes(8, "little") for i, v in entries))
    l2[address], l2[count] = page, len(entries)
    return page


ENTRY_LOAD = Field.VM_ENTRY_MSR_LOAD_ADDRESS, Field.VM_ENTRY_MSR_LOAD_COUNT
EXIT_STORE = Field.VM_EXIT_MSR_STORE_ADDRESS, Field.VM_EXIT_MSR_STORE_COUNT
EXIT_LOAD = Field.VM_EXIT_MSR_LOAD_ADDRESS, Field.VM_EXIT_MSR_LOAD_COUNT


def test_27_4_28_4_28_6_msr_areas(l2: L2) -> None:
    l2.want(ProcBased.USE_MSR_BITMAPS)
    l2[Field.MSR_BITMAPS_ADDRESS] = l2.page()
    msr_area(l2, *ENTRY_LOAD, (STAR, 5), (KERNEL_GS, 6))
    stored = msr_area(l2, *EXIT_STORE, (STAR, 0), (KERNEL_GS, 0))
    msr_area(l2, *EXIT_LOAD, (STAR, 9), (KERNEL_GS, 10))
    assert l2.run(f"mov ecx, {STAR:#x}; rdmsr; inc eax; wrmsr; hlt") == R.HLT
    assert [l2.memory.read_u64(stored + 8), l2.memory.read_u64(stored + 24)] == [6, 6]
    assert [l2.lab.vcpu.msrs.read(index) for index in (STAR, KERNEL_GS)] == [9, 10]


@pytest.mark.parametrize(("index", "number"), [(0xC000_0100, 1), (0x802, 1), (1 << 32 | STAR, 1), (0x1FFF, 1)])
def test_27_4_a_bad_entry_fails_the_vm_entry(l2: L2, index: int, number: int) -> None:
    msr_area(l2, *ENTRY_LOAD, (index, 0))
    l2.run("hlt")
    assert l2[Field.EXIT_REASON] == FAILED | R.MSR_LOAD_FAIL
    assert l2.qualification == number


@pytest.mark.parametrize(
    ("area", "entry", "abort"),
    [
        (EXIT_STORE, (0x1FFF, 0), VmxAbort.SAVING_GUEST_MSRS),
        (EXIT_STORE, (1 << 32 | STAR, 0), VmxAbort.SAVING_GUEST_MSRS),
        (EXIT_LOAD, (0x1FFF, 0), VmxAbort.LOADING_HOST_MSRS),
        (EXIT_LOAD, (0xC000_0101, 0), VmxAbort.LOADING_HOST_MSRS),
        (EXIT_LOAD, (PAT, 2), VmxAbort.LOADING_HOST_MSRS),
    ],
)
def test_28_7_a_bad_entry_at_exit_is_a_vmx_abort(
    l2: L2, area: tuple[Field, Field], entry: tuple[int, int], abort: VmxAbort
) -> None:
    """The run ends, and the indicator is in the VMCS region."""
    msr_area(l2, *area, entry)
    l2.code("hlt")
    address = l2.vmcs.address
    l2.lab.step("vmlaunch")
    assert l2.lab.vcpu.stop_reason == VmxAborted(abort.name)
    assert l2.memory.read(address + 4, 4) == int(abort).to_bytes(4, "little")


@pytest.mark.parametrize("area", [ENTRY_LOAD, EXIT_STORE, EXIT_LOAD])
@pytest.mark.parametrize("address", OUTSIDE)
def test_msr_areas_outside_of_ram(l2: L2, area: tuple[Field, Field], address: int) -> None:
    """They read as ones, which is no MSR: a failed entry or a VMX abort; or VM entry refuses the address."""
    l2[area[0]], l2[area[1]] = address, 1
    l2.code("hlt")
    outcome = l2.lab.step("vmlaunch")
    if address >> 39:
        assert outcome.result == "valid"
    elif area is ENTRY_LOAD:
        assert l2[Field.EXIT_REASON] == FAILED | R.MSR_LOAD_FAIL
    else:
        assert isinstance(l2.lab.vcpu.stop_reason, VmxAborted)


# --- 27.3, 28.5 modes ---


def real_mode(l2: L2) -> None:
    l2.use_ept()
    l2.want(ProcBased2.UNRESTRICTED_GUEST)
    l2.refuse(VmEntry.IA32E_MODE_GUEST)
    l2[Field.GUEST_CR0], l2[Field.GUEST_CR4] = 0x30, 0x2000
    for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
        l2[Field[f"GUEST_{name}_SELECTOR"]], l2[Field[f"GUEST_{name}_BASE"]] = L2_CODE >> 4 & 0xFFFF, L2_CODE & 0xFFFF0
        l2[Field[f"GUEST_{name}_LIMIT"]] = 0xFFFF
        l2[Field[f"GUEST_{name}_ACCESS_RIGHTS"]] = 0x9B if name == "CS" else 0x93


def test_25_6_2_unrestricted_guest_in_real_mode(l2: L2) -> None:
    real_mode(l2)
    l2.memory.write(L2_CODE & 0xFFFF0, assemble("mov ax, 0x1234; mov [0x100], ax; cpuid", 16))
    l2[Field.GUEST_RIP] = 0
    assert l2.enter() == R.CPUID
    assert l2.memory.read((L2_CODE & 0xFFFF0) + 0x100, 2) == b"\x34\x12"
    assert l2[Field.GUEST_CS_SELECTOR] == L2_CODE >> 4 & 0xFFFF


def test_27_3_1_1_without_it_real_mode_is_refused(l2: L2) -> None:
    real_mode(l2)
    l2.refuse(ProcBased2.UNRESTRICTED_GUEST)
    l2.enter()
    assert l2[Field.EXIT_REASON] == FAILED | R.INVALID_STATE


def protected_mode(l2: L2) -> None:
    l2.refuse(VmEntry.IA32E_MODE_GUEST)
    l2.use_ept()
    l2.want(ProcBased2.UNRESTRICTED_GUEST)
    l2[Field.GUEST_CR0], l2[Field.GUEST_CR4], l2[Field.GUEST_CR3] = 0x31, 0x2020, 0
    l2[Field.GUEST_CS_ACCESS_RIGHTS] = 0xC09B


def test_27_3_64_bit_l1_and_32_bit_l2(l2: L2) -> None:
    """A 32-bit guest in between; RIP wraps at 4 GiB, L1 is in 64-bit mode again."""
    protected_mode(l2)
    l2.code("mov eax, 0x89abcdef; hlt", 32)
    assert l2.enter() == R.HLT
    assert l2.rax == 0x89AB_CDEF
    assert not l2[Field.GUEST_IA32_EFER] & 0x400
    assert l2.cpu.vmread(Field.GUEST_IA32_EFER) & 0x500 == 0x500


def test_28_2_l2_that_enters_ia32e_mode_changes_the_entry_control(l2: L2) -> None:
    """From 32-bit protected mode to compatibility mode: LME, PAE, PG."""
    protected_mode(l2)
    l2.want(VmExit.SAVE_IA32_EFER, VmEntry.LOAD_IA32_EFER, ProcBased.USE_MSR_BITMAPS)
    l2[Field.MSR_BITMAPS_ADDRESS] = l2.page()
    l2[Field.GUEST_IA32_EFER] = 0
    cr3 = l2[Field.HOST_CR3]
    enable = f"mov eax, {cr3:#x}; mov cr3, eax; mov ecx, {EFER:#x}; rdmsr; or eax, 0x100; wrmsr"
    l2.code(f"{enable}; mov eax, cr0; or eax, 0x80000000; mov cr0, eax; hlt", 32)
    assert l2.enter() == R.HLT
    assert l2[Field.VM_ENTRY_CONTROLS] & VmEntry.IA32E_MODE_GUEST
    assert l2[Field.GUEST_IA32_EFER] & 0x500 == 0x500


def test_27_3_2_4_pae_paging_takes_pdptes_from_the_vmcs(l2: L2) -> None:
    """With EPT the four PDPTE fields count, not what CR3 refers to."""
    protected_mode(l2)
    directory = l2.page()
    l2.memory.write(directory, b"".join((n << 21 | 0x83).to_bytes(8, "little") for n in range(8)))
    l2[Field.GUEST_CR0], l2[Field.GUEST_CR3] = 0x8000_0031, 0
    l2[Field.GUEST_PDPTE0] = directory | 1
    l2.memory.write_u64(DATA, 99)
    l2.code(f"mov eax, [{DATA:#x}]; hlt", 32)
    assert l2.enter() == R.HLT
    assert l2.rax == 99
