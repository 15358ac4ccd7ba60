"""APIC accesses of L2 (SDM 3C 30.2, 30.4): wherever L1 puts the APIC-access page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from l2lab import DATA, L2

from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import ApicAccessQualification, ApicAccessType
from lzero.sdm.vmcs_fields import Field

DEVICE = 0xFEE0_0000
PLACES = ["RAM", "RAM by EPT", "device", "device by EPT"]
READ, WRITE = ApicAccessType.LINEAR_READ, ApicAccessType.LINEAR_WRITE


@pytest.fixture
def l2() -> Iterator[L2]:
    made = L2()
    yield made
    made.close()


def apic_page(l2: L2, where: str) -> int:
    """Virtualize APIC accesses; where L2 sees the page."""
    page = DEVICE if "device" in where else l2.page()
    l2.want(ProcBased2.VIRTUALIZE_APIC_ACCESSES)
    l2[Field.APIC_ACCESS_ADDRESS] = page
    if "EPT" in where:
        l2.use_ept().map(DATA, page)
        return DATA
    return page


@pytest.mark.parametrize("where", PLACES)
def test_30_4_1_accesses_exit(l2: L2, where: str) -> None:
    page = apic_page(l2, where)
    assert l2.run(f"mov edi, {page:#x}; mov eax, [rdi + 0x300]; hlt") == R.APIC_ACCESS
    assert l2.qualification == ApicAccessQualification(0x300, READ).pack()
    assert l2.run(f"mov edi, {page:#x}; mov [rdi + 0xb0], eax; hlt") == R.APIC_ACCESS
    assert l2.qualification == ApicAccessQualification(0xB0, WRITE).pack()
    assert l2.rip == 5


@pytest.mark.parametrize("where", PLACES)
def test_30_4_2_and_30_4_3_the_task_priority_is_virtualized(l2: L2, where: str) -> None:
    page, virtual = apic_page(l2, where), l2.page()
    l2.want(ProcBased.USE_TPR_SHADOW)
    l2[Field.VIRTUAL_APIC_ADDRESS], l2[Field.TPR_THRESHOLD] = virtual, 2
    l2.memory.write(virtual + 0x80, b"\x50")
    assert l2.run(f"mov edi, {page:#x}; mov eax, [rdi + 0x80]; hlt") == R.HLT
    assert l2.rax == 0x50
    assert l2.run(f"mov edi, {page:#x}; mov edx, 0x30; mov [rdi + 0x80], edx; hlt") == R.HLT
    assert l2.memory.read(virtual + 0x80, 1) == b"\x30"
    assert l2.run(f"mov edi, {page:#x}; mov edx, 0x10; mov [rdi + 0x80], edx; hlt") == R.TPR_BELOW_THRESHOLD


def test_27_7_7_a_threshold_above_the_priority_exits_after_entry(l2: L2) -> None:
    apic_page(l2, "RAM")
    l2.want(ProcBased.USE_TPR_SHADOW)
    l2[Field.VIRTUAL_APIC_ADDRESS], l2[Field.TPR_THRESHOLD] = l2.page(), 2
    assert l2.run("cpuid") == R.TPR_BELOW_THRESHOLD
    assert l2.rip == 0


@pytest.mark.parametrize("where", PLACES)
def test_30_4_without_the_control_the_page_is_what_it_was(l2: L2, where: str) -> None:
    """The same tables, used without the control: memory, or a register of L1's APIC (its version)."""
    page = apic_page(l2, where)
    code = f"mov edi, {page:#x}; mov eax, [rdi + 0x30]; hlt"
    assert l2.run(code) == R.APIC_ACCESS
    l2.refuse(ProcBased2.VIRTUALIZE_APIC_ACCESSES)
    assert l2.run(code) == R.HLT
    assert l2.rax == (l2.lab.pc.bus.mmio_read(DEVICE + 0x30, 4) if "device" in where else 0)
