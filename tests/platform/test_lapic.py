"""The local APIC: priorities, IPIs, local vectors, modes."""

from __future__ import annotations

import pytest

from lzero.platform.exits import ExitKind
from lzero.platform.interrupts.lapic import MsrFault
from lzero.platform.interrupts.lapic_registers import APIC_REGISTERS
from pcboard import Board

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_PERFORMANCE, LINT0, LINT1, LVT_ERROR = 0x320, 0x340, 0x350, 0x360, 0x370
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
NMI, LOGICAL, MASKED = 4 << 8, 1 << 11, 1 << 16


def to_x2apic(board: Board) -> None:
    board.pc.lapic.base = 0xFEE00D00


def test_firmware_leaves_it_enabled_in_virtual_wire_mode(board: Board) -> None:
    assert board.pc.lapic.base == 0xFEE00900
    assert board.apic_read(SVR) == 0x1FF
    assert board.apic_read(LINT0) == 0x8700
    assert board.apic_read(LINT1) == 0x8400
    assert board.apic_read(VERSION) == 0x50014
    assert board.apic_read(ID) == 0


def test_a_self_ipi_goes_through_irr_and_isr(board: Board) -> None:
    board.apic_write(ICR, SELF | 0x61)
    assert board.apic_read(IRR + 0x30) == 2
    assert board.kicks == 1
    assert board.pc.acknowledge_interrupt() == 0x61
    assert (board.apic_read(IRR + 0x30), board.apic_read(ISR + 0x30)) == (0, 2)
    assert board.apic_read(PPR) == 0x60
    board.apic_write(EOI, 0)
    assert board.apic_read(ISR + 0x30) == 0
    assert board.apic_read(PPR) == 0


@pytest.mark.parametrize(
    ("command", "destination", "delivered"),
    [
        (0, 0, True),
        (0, 1, False),
        (0, 0xFF, True),
        (SELF, 7, True),
        (ALL, 7, True),
        (OTHERS, 0, False),
        (LOGICAL, 0x01, True),
        (LOGICAL, 0x02, False),
        (1 << 8, 0, True),  # lowest priority
    ],
)
def test_destinations_of_an_ipi(board: Board, command: int, destination: int, delivered: bool) -> None:
    board.apic_write(LDR, 0x01000000)
    board.apic_write(ICR2, destination << 24)
    board.apic_write(ICR, command | 0x61)
    assert board.take_interrupts() == ([0x61] if delivered else [])


def test_cluster_mode(board: Board) -> None:
    board.apic_write(LDR, 0x21000000)
    board.apic_write(DFR, 0)
    assert board.apic_read(DFR) == 0x0FFFFFFF
    for destination, delivered in ((0x21, True), (0x11, False), (0x22, False), (0x23, True)):
        board.apic_write(ICR2, destination << 24)
        board.apic_write(ICR, LOGICAL | 0x61)
        assert board.take_interrupts() == ([0x61] if delivered else []), hex(destination)
        board.apic_write(EOI, 0)


def test_the_highest_vector_is_first_and_lower_classes_wait(board: Board) -> None:
    for vector in (0x35, 0x61, 0x6F):
        board.apic_write(ICR, SELF | vector)
    assert board.take_interrupts() == [0x6F]
    board.apic_write(EOI, 0)
    assert board.take_interrupts() == [0x61]
    board.apic_write(EOI, 0)
    assert board.take_interrupts() == [0x35]


def test_the_task_priority_holds_back_its_class(board: Board) -> None:
    board.apic_write(ICR, SELF | 0x61)
    board.apic_write(TPR, 0x60)
    assert not board.pc.pending_interrupt()
    board.apic_write(TPR, 0x5F)
    assert board.pc.pending_interrupt()
    assert board.apic_read(PPR) == 0x5F
    board.pc.lapic.cr8 = 6
    assert board.apic_read(TPR) == 0x60
    assert not board.pc.pending_interrupt()
    assert board.pc.lapic.cr8 == 6


def test_an_interrupt_held_back_after_it_was_signalled_is_spurious(board: Board) -> None:
    board.apic_write(ICR, SELF | 0x61)
    board.apic_write(TPR, 0xF0)
    assert board.pc.acknowledge_interrupt() == 0xFF


def test_nmi_by_ipi_and_by_lint0(board: Board) -> None:
    board.apic_write(ICR, NMI)
    assert board.pc.nmi_pending
    board.pc.acknowledge_nmi()
    board.set_up_pics()
    board.apic_write(LINT0, NMI)
    board.pc.irq(5, True)
    assert board.pc.nmi_pending
    assert not board.pc.pending_interrupt()


def test_performance_interrupt_masks_its_entry(board: Board) -> None:
    board.apic_write(LVT_PERFORMANCE, NMI)
    board.pc.lapic.performance_interrupt()
    assert board.pc.nmi_pending
    assert board.apic_read(LVT_PERFORMANCE) == NMI | MASKED


def test_an_init_to_itself_is_a_reset(board: Board) -> None:
    board.apic_write(ICR, 5 << 8 | 1 << 15)  # level de-assert
    board.apic_write(ICR, 6 << 8 | 0x9A)  # start-up, while it runs
    assert board.pc.exit_request is None
    board.apic_write(ICR, 5 << 8 | 1 << 14)
    assert board.pc.exit_request is not None
    assert board.pc.exit_request.kind is ExitKind.RESET


def test_illegal_vectors_show_in_esr_after_a_write_to_it(board: Board) -> None:
    board.apic_write(LVT_ERROR, 0x55)
    board.apic_write(ICR, SELF | 5)
    assert board.take_interrupts() == [0x55]
    assert board.apic_read(ESR) == 0
    board.apic_write(ESR, 0)
    assert board.apic_read(ESR) == 0x20
    board.apic_write(ESR, 0)
    assert board.apic_read(ESR) == 0


def test_an_illegal_vector_in_the_error_entry_ends(board: Board) -> None:
    board.apic_write(LVT_ERROR, 3)
    board.apic_write(ICR, SELF | 5)
    board.apic_write(ESR, 0)
    assert board.apic_read(ESR) == 0x60


def test_an_address_without_a_register_is_an_error(board: Board) -> None:
    assert board.apic_read(0x40) == 0
    board.apic_write(ESR, 0)
    assert board.apic_read(ESR) == 0x80


def test_software_disable_masks_local_vectors_and_refuses_fixed_interrupts(board: Board) -> None:
    board.apic_write(SVR, 0xFF)
    assert all(board.apic_read(offset) & MASKED for offset in range(0x320, 0x380, 0x10))
    board.apic_write(LVT_TIMER, 0x40)
    assert board.apic_read(LVT_TIMER) == MASKED | 0x40
    board.apic_write(ICR, SELF | 0x61)
    assert board.take_interrupts() == []
    board.apic_write(ICR, NMI)
    assert board.pc.nmi_pending


def test_the_8259as_interrupts_need_lint0(board: Board) -> None:
    board.set_up_pics()
    board.pc.irq(5, True)
    assert board.pc.pending_interrupt()
    board.apic_write(LINT0, MASKED | 0x700)
    assert not board.pc.pending_interrupt()
    board.apic_write(LINT0, 0x700)
    assert board.take_interrupts() == [0x25]


def test_a_disabled_apic_lets_the_8259as_through_and_leaves_its_page(board: Board) -> None:
    board.set_up_pics()
    board.pc.lapic.base = 0xFEE00100
    assert not board.bus.is_mmio(0xFEE00000)
    board.pc.irq(5, True)
    assert board.take_interrupts() == [0x25]
    board.pc.lapic.base = 0xFEE00900
    assert board.apic_read(SVR) == 0xFF  # power-up state


def test_the_page_can_be_moved(board: Board) -> None:
    board.pc.lapic.base = 0xFEE01900
    assert not board.bus.is_mmio(0xFEE00000)
    assert board.bus.mmio_read(0xFEE01030, 4) == 0x50014


def test_moved_onto_another_device_it_is_not_there(board: Board) -> None:
    board.pc.lapic.base = 0xFEC00900
    assert board.ioapic_read(1) == 23 << 16 | 0x11
    board.pc.lapic.base = 0xFEE00900
    assert board.apic_read(VERSION) == 0x50014
    assert board.ioapic_read(1) == 23 << 16 | 0x11


@pytest.mark.parametrize("value", [0xFEE00901, 0xFEE00A00, 1 << 39 | 0xFEE00900, 0xFEE00500])
def test_impossible_values_of_the_base_register(board: Board, value: int) -> None:
    with pytest.raises(MsrFault):
        board.pc.lapic.base = value


def test_transitions_of_the_mode(board: Board) -> None:
    lapic = board.pc.lapic
    to_x2apic(board)
    with pytest.raises(MsrFault):
        lapic.base = 0xFEE00900  # x2APIC to xAPIC
    lapic.base = 0xFEE00100
    with pytest.raises(MsrFault):
        lapic.base = 0xFEE00D00  # disabled to x2APIC
    lapic.base = 0xFEE00900


class TestX2Apic:
    """Registers as MSRs."""

    @pytest.fixture
    def board(self) -> Board:
        board = Board()
        to_x2apic(board)
        return board

    def test_the_page_is_gone(self, board: Board) -> None:
        assert not board.bus.is_mmio(0xFEE00000)

    def test_identification(self, board: Board) -> None:
        assert board.pc.lapic.read_msr(0x802) == 0
        assert board.pc.lapic.read_msr(0x803) == 0x50014
        assert board.pc.lapic.read_msr(0x80D) == 1

    def test_the_interrupt_command_is_64_bits(self, board: Board) -> None:
        lapic = board.pc.lapic
        lapic.write_msr(0x830, 0x61)
        assert board.take_interrupts() == [0x61]
        lapic.write_msr(0x80B, 0)
        lapic.write_msr(0x830, 0xFFFFFFFF_00000062)
        assert lapic.read_msr(0x830) == 0xFFFFFFFF_00000062
        assert board.take_interrupts() == [0x62]
        lapic.write_msr(0x80B, 0)
        lapic.write_msr(0x830, 1 << 32 | 0x63)
        assert board.take_interrupts() == []

    def test_self_ipi(self, board: Board) -> None:
        board.pc.lapic.write_msr(0x83F, 0x99)
        assert board.take_interrupts() == [0x99]

    @pytest.mark.parametrize("msr", [0x800, 0x80B, 0x80E, 0x831, 0x83F, 0x8FF])
    def test_reads_that_fault(self, board: Board, msr: int) -> None:
        with pytest.raises(MsrFault):
            board.pc.lapic.read_msr(msr)

    @pytest.mark.parametrize(
        ("msr", "value"),
        [
            (0x802, 0),
            (0x803, 0),
            (0x808, 0x100),
            (0x80A, 0),
            (0x80B, 1),
            (0x80D, 0),
            (0x80E, 0),
            (0x80F, 1 << 10),
            (0x810, 0),
            (0x828, 1),
            (0x830, 1 << 12),
            (0x832, 1 << 19),
            (0x839, 0),
            (0x83E, 4),
            (0x83F, 0x100),
            (0x838, 1 << 32),
        ],
    )
    def test_writes_that_fault(self, board: Board, msr: int, value: int) -> None:
        with pytest.raises(MsrFault):
            board.pc.lapic.write_msr(msr, value)


@pytest.mark.parametrize("msr", [0x802, 0x808])
def test_x2apic_msrs_fault_in_xapic_mode(board: Board, msr: int) -> None:
    with pytest.raises(MsrFault):
        board.pc.lapic.read_msr(msr)
    with pytest.raises(MsrFault):
        board.pc.lapic.write_msr(msr, 0)


def test_the_register_table_has_one_row_per_index() -> None:
    for index, row in APIC_REGISTERS.items():
        assert row.index <= index < row.index + row.count
        assert row.writable < 1 << 32
        assert row.xapic or row.x2apic


def test_read_only_bits_of_an_lvt_entry_are_ignored(board: Board) -> None:
    """11.5.1: delivery status and remote IRR; Linux and Xen write them as 1 when they hand the APIC back."""
    lapic = board.pc.lapic
    lapic.base = lapic.base | 0xC00
    lapic.write_msr(0x835, 0x5700)
    assert lapic.read_msr(0x835) & 0x700 == 0x700
