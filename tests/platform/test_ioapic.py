"""The I/O APIC: registers, edge and level, remote IRR, destinations."""

from __future__ import annotations

import pytest

from pcboard import Board

LEVEL, MASKED, REMOTE_IRR, LOW, LOGICAL = 1 << 15, 1 << 16, 1 << 14, 1 << 13, 1 << 11
PIN = 0x0E
VECTOR = 0x82


@pytest.fixture
def board() -> Board:
    """A board whose pin 14 goes to vector 0x82 as an edge."""
    board = Board()
    board.redirect(PIN, VECTOR)
    return board


def eoi(board: Board) -> None:
    board.apic_write(0xB0, 0)


def test_identification(board: Board) -> None:
    board.ioapic_write(0, 0xFFFFFFFF)
    assert board.ioapic_read(0) == 0x0F000000
    assert board.ioapic_read(2) == 0x0F000000  # arbitration follows the ID
    assert board.ioapic_read(1) == 23 << 16 | 0x11
    board.ioapic_write(1, 0)
    assert board.ioapic_read(1) == 23 << 16 | 0x11


def test_entries_start_masked_and_keep_their_read_only_bits(board: Board) -> None:
    assert board.ioapic_read(0x10) == MASKED
    board.ioapic_write(0x10 + 2 * 5, 0xFFFFFFFF)
    board.ioapic_write(0x11 + 2 * 5, 0xFFFFFFFF)
    assert board.ioapic_read(0x10 + 2 * 5) == 0x1AFFF
    assert board.ioapic_read(0x11 + 2 * 5) == 0xFF000000


def test_registers_that_do_not_exist(board: Board) -> None:
    board.ioapic_write(0x40, 1)
    assert board.ioapic_read(0x40) == 0
    assert board.bus.mmio_read(0xFEC00020, 4) == 0


def test_an_edge_is_delivered_once(board: Board) -> None:
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == [VECTOR]
    eoi(board)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == []
    board.pc.irq(PIN, False)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == [VECTOR]


def test_a_masked_edge_is_lost(board: Board) -> None:
    board.redirect(PIN, VECTOR | MASKED)
    board.pc.irq(PIN, True)
    board.pc.irq(PIN, False)
    board.redirect(PIN, VECTOR)
    assert board.take_interrupts() == []


def test_a_level_sets_remote_irr_until_eoi(board: Board) -> None:
    board.redirect(PIN, VECTOR | LEVEL)
    board.pc.irq(PIN, True)
    assert board.ioapic_read(0x10 + 2 * PIN) & REMOTE_IRR
    assert board.take_interrupts() == [VECTOR]
    board.pc.irq(PIN, False)
    eoi(board)
    assert not board.ioapic_read(0x10 + 2 * PIN) & REMOTE_IRR
    assert board.take_interrupts() == []


def test_a_level_still_asserted_at_eoi_interrupts_again(board: Board) -> None:
    board.redirect(PIN, VECTOR | LEVEL)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == [VECTOR]
    eoi(board)
    assert board.ioapic_read(0x10 + 2 * PIN) & REMOTE_IRR
    assert board.take_interrupts() == [VECTOR]


def test_a_masked_level_is_delivered_when_unmasked(board: Board) -> None:
    board.redirect(PIN, VECTOR | LEVEL | MASKED)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == []
    board.redirect(PIN, VECTOR | LEVEL)
    assert board.take_interrupts() == [VECTOR]


def test_switching_to_edge_clears_remote_irr(board: Board) -> None:
    board.redirect(PIN, VECTOR | LEVEL)
    board.pc.irq(PIN, True)
    board.redirect(PIN, VECTOR | MASKED)
    assert not board.ioapic_read(0x10 + 2 * PIN) & REMOTE_IRR


def test_the_local_apic_knows_the_trigger_mode(board: Board) -> None:
    board.redirect(PIN, VECTOR | LEVEL)
    board.pc.irq(PIN, True)
    assert board.apic_read(0x180 + 0x10 * (VECTOR >> 5)) == 1 << (VECTOR & 31)


def test_active_low_polarity(board: Board) -> None:
    board.pc.irq(PIN, True)
    board.take_interrupts()
    eoi(board)
    board.redirect(PIN, VECTOR | LOW)
    board.pc.irq(PIN, False)
    assert board.take_interrupts() == [VECTOR]


def test_two_pins_nest_by_vector(board: Board) -> None:
    board.redirect(0x0F, 0x92)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == [VECTOR]
    board.pc.irq(0x0F, True)
    assert board.take_interrupts() == [0x92]
    board.pc.irq(PIN, False)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == []
    eoi(board)
    eoi(board)
    assert board.take_interrupts() == [VECTOR]


@pytest.mark.parametrize(
    ("destination", "flags", "delivered"),
    [(0, 0, True), (1, 0, False), (0xFF, 0, True), (0x40, LOGICAL, True), (0x80, LOGICAL, False)],
)
def test_destinations(board: Board, destination: int, flags: int, delivered: bool) -> None:
    board.apic_write(0xD0, 0x40000000)
    board.ioapic_write(0x11 + 2 * PIN, destination << 24)
    board.redirect(PIN, VECTOR | flags)
    board.pc.irq(PIN, True)
    assert board.take_interrupts() == ([VECTOR] if delivered else [])


def test_nmi_delivery(board: Board) -> None:
    board.redirect(PIN, 4 << 8)
    board.pc.irq(PIN, True)
    assert board.pc.nmi_pending
    board.pc.acknowledge_nmi()
    assert not board.pc.nmi_pending


def test_the_timer_is_pin_2_and_the_8259as_irq_0(board: Board) -> None:
    board.redirect(2, 0x30)
    board.redirect(0, 0x31)
    board.advance(60_000_000)
    assert board.take_interrupts() == [0x30]


def test_the_test_device_drives_lines(board: Board) -> None:
    board.outb(0x2000 + PIN, 1)
    board.outb(0x2000 + PIN, 0)
    assert board.take_interrupts() == [VECTOR]
    board.redirect(20, 0x77)
    board.outb(0x2000 + 20, 1)
    eoi(board)
    assert board.take_interrupts() == [0x77]
