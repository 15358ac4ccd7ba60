"""The APIC-access page and the TPR shadow (SDM 3C 30.1, 30.4; qualification: table 28-6)."""

from __future__ import annotations

import pytest
from harness import DATA, LONG, PAGED, Bench, Exit, Guest, Mode

from lzero.sdm.controls import ControlFlag, ProcBased, ProcBased2
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import ApicAccessQualification, ApicAccessType
from lzero.sdm.vmcs_fields import Field

ACCESSES, SHADOW = ProcBased2.VIRTUALIZE_APIC_ACCESSES, ProcBased.USE_TPR_SHADOW
A = ApicAccessType


def _guest(bench: Bench, mode: Mode, code: str, *controls: ControlFlag) -> Guest:
    """The APIC-access page at DATA, by EPT or without it."""
    guest = bench.guest(mode, code, ACCESSES, *controls)
    if ProcBased2.ENABLE_EPT in controls:
        guest.map(DATA, to=bench.pages["access"])
    else:
        guest[Field.APIC_ACCESS_ADDRESS] = DATA
    return guest


def _exit(offset: int, kind: ApicAccessType, at: int = 0) -> Exit:
    return Exit(R.APIC_ACCESS, ApicAccessQualification(offset, kind).pack(), at=at)


ROWS = [
    (f"mov eax, [{DATA + 0x30:#x}]", _exit(0x30, A.LINEAR_READ)),
    (f"mov [{DATA + 0xB0:#x}], eax", _exit(0xB0, A.LINEAR_WRITE)),
    (f"mov eax, [{DATA + 0x80:#x}]", _exit(0x80, A.LINEAR_READ)),
    (f"mov ecx, {DATA + 0x10:#x}; jmp ecx", _exit(0x10, A.LINEAR_FETCH, at=DATA + 0x10 - 0x8000)),
]


@pytest.mark.parametrize(("code", "exit"), ROWS)
@pytest.mark.parametrize("controls", [(), (ProcBased2.ENABLE_EPT,)], ids=["no EPT", "EPT"])
def test_access_exits(bench: Bench, controls: tuple[ControlFlag, ...], code: str, exit: Exit) -> None:
    """30.4.1: whatever is not virtualized."""
    assert _guest(bench, PAGED, code, *controls).enter() == exit


def test_access_in_event_delivery(bench: Bench) -> None:
    """Table 28-6: access type 3, and the event in the vectoring information."""
    guest = _guest(bench, PAGED, "ud2")
    guest[Field.GUEST_RSP] = DATA + 0x100
    exit = guest.enter()
    assert exit == Exit(
        R.APIC_ACCESS, ApicAccessQualification(0xFC, A.LINEAR_EVENT_DELIVERY).pack(), vectoring=0x8000_0306
    )


def test_access_of_a_page_walk(bench: Bench) -> None:
    """30.4.6.1: the guest's own page table lies on the APIC-access page."""
    guest = _guest(bench, LONG, "nop", ProcBased2.ENABLE_EPT)
    guest.map(0x13000, to=bench.pages["access"])
    exit = guest.enter()
    assert ApicAccessQualification.unpack(exit.qualification).access_type == A.PHYSICAL_FETCH_OR_EXECUTION


@pytest.mark.parametrize("code", [f"mov eax, [{DATA + 0x80:#x}]", f"mov ecx, {DATA + 0x80:#x}; mov al, [ecx]"])
def test_tpr_is_read_from_the_virtual_apic_page(bench: Bench, code: str) -> None:
    """30.4.2: with a TPR shadow, reads of offset 80H."""
    guest = _guest(bench, PAGED, code, SHADOW)
    guest.write(bench.pages["apic"] + 0x80, b"\x70\x00\x00\x00")
    assert guest.enter() == guest.end()
    assert guest.gpr[0] == 0x70


@pytest.mark.parametrize(
    "code", [f"mov eax, 0x50; mov [{DATA + 0x80:#x}], eax", f"mov dword ptr [{DATA + 0x80:#x}], 0x50"]
)
def test_tpr_is_written_to_the_virtual_apic_page(bench: Bench, code: str) -> None:
    """30.4.3.2: TPR virtualization; below the threshold it exits after the instruction."""
    guest = _guest(bench, PAGED, code, SHADOW)
    guest[Field.TPR_THRESHOLD] = 5
    guest.write(bench.pages["apic"] + 0x80, b"\x60")
    assert guest.enter() == guest.end()
    assert guest.read(bench.pages["apic"] + 0x80, 4) == 0x50
    low = _guest(bench, PAGED, code, SHADOW)
    low[Field.TPR_THRESHOLD] = 6
    low.write(bench.pages["apic"] + 0x80, b"\x60")
    assert low.enter() == Exit(R.TPR_BELOW_THRESHOLD, at=low.size)


def test_other_instructions_on_the_tpr_exit(bench: Bench) -> None:
    """L0 carries them out."""
    assert _guest(bench, PAGED, f"or dword ptr [{DATA + 0x80:#x}], 1", SHADOW).enter().reason == R.APIC_ACCESS


def test_threshold_above_the_tpr_exits_at_once(bench: Bench) -> None:
    """27.7.7: VM entry under "virtualize APIC accesses" exits if the TPR is below the threshold."""
    guest = _guest(bench, PAGED, "nop", SHADOW)
    guest[Field.TPR_THRESHOLD] = 3
    assert guest.enter() == Exit(R.TPR_BELOW_THRESHOLD)
