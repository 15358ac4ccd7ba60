"""The 8259A pair: priorities, masks, EOI, the modes of its data sheet."""

from __future__ import annotations

import pytest

from pcboard import Board


@pytest.fixture
def board() -> Board:
    """A board whose 8259As are set up and whose LINT0 passes them on."""
    board = Board()
    board.set_up_pics()
    return board


def pulse(board: Board, *irqs: int) -> None:
    for irq in irqs:
        board.pc.irq(irq, True)
        board.pc.irq(irq, False)


def test_an_edge_is_served_once(board: Board) -> None:
    pulse(board, 5)
    assert board.take_interrupts() == [0x25]
    board.outb(0x20, 0x20)
    assert board.take_interrupts() == []


def test_the_processor_is_woken_once_for_what_is_new(board: Board) -> None:
    pulse(board, 5)
    assert board.kicks == 1


def test_a_masked_request_waits(board: Board) -> None:
    board.outb(0x21, 0x20)
    pulse(board, 5)
    assert not board.pc.pending_interrupt()
    assert board.inb(0x20) == 0x20
    board.outb(0x21, 0)
    assert board.take_interrupts() == [0x25]


def test_higher_priority_nests_and_lower_waits_for_eoi(board: Board) -> None:
    pulse(board, 3)
    assert board.take_interrupts() == [0x23]
    pulse(board, 5, 1)
    assert board.take_interrupts() == [0x21]
    board.outb(0x20, 0x20)  # ends IRQ 1
    assert board.take_interrupts() == []
    board.outb(0x20, 0x20)  # ends IRQ 3
    assert board.take_interrupts() == [0x25]


def test_the_second_chip_answers_through_the_cascade(board: Board) -> None:
    pulse(board, 12, 9)
    assert board.take_interrupts() == [0x29]
    board.outb(0xA0, 0x20)
    board.outb(0x20, 0x20)
    assert board.take_interrupts() == [0x2C]


def test_a_request_that_goes_away_is_spurious(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.pc.irq(5, True)
    board.pc.irq(5, False)
    assert board.pc.pic.acknowledge() == 0x27
    board.outb(0x20, 0x0B)
    assert board.inb(0x20) == 0  # not in service


def test_a_level_requests_as_long_as_it_is_high(board: Board) -> None:
    board.outb(0x4D0, 0x20)
    board.pc.irq(5, True)
    assert board.take_interrupts() == [0x25]
    board.outb(0x20, 0x20)
    assert board.take_interrupts() == [0x25]
    board.pc.irq(5, False)
    board.outb(0x20, 0x20)
    assert board.take_interrupts() == []


def test_elcr_keeps_the_always_edge_inputs(board: Board) -> None:
    board.outb(0x4D0, 0xFF)
    board.outb(0x4D1, 0xFF)
    assert (board.inb(0x4D0), board.inb(0x4D1)) == (0xF8, 0xDE)


def test_irr_and_isr_are_read_as_ocw3_says(board: Board) -> None:
    pulse(board, 3, 6)
    board.take_interrupts()
    board.outb(0x20, 0x0A)
    assert board.inb(0x20) == 0x40
    board.outb(0x20, 0x0B)
    assert board.inb(0x20) == 0x08


def test_poll_acknowledges(board: Board) -> None:
    pulse(board, 6)
    board.outb(0x20, 0x0C)
    assert board.inb(0x20) == 0x86
    board.outb(0x20, 0x0C)
    assert board.inb(0x20) == 0
    board.outb(0x20, 0x0B)
    assert board.inb(0x20) == 0x40


def test_specific_eoi_and_rotation(board: Board) -> None:
    pulse(board, 4)
    board.take_interrupts()
    board.outb(0x20, 0xE4)  # rotate on specific EOI: 4 becomes lowest
    pulse(board, 4, 5)
    assert board.take_interrupts() == [0x25]


def test_set_priority(board: Board) -> None:
    board.outb(0x20, 0xC3)
    pulse(board, 3, 4)
    assert board.take_interrupts() == [0x24]


def test_auto_eoi(board: Board) -> None:
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 3, 0)
    pulse(board, 3)
    assert board.take_interrupts() == [0x23]
    pulse(board, 3, 5)
    assert board.take_interrupts() == [0x23, 0x25]


def test_special_mask_mode_lets_lower_priorities_through(board: Board) -> None:
    pulse(board, 3)
    board.take_interrupts()
    board.outb(0x21, 0x08)
    board.outb(0x20, 0x68)
    pulse(board, 6)
    assert board.take_interrupts() == [0x26]
    board.outb(0x20, 0x20)  # ends 6, not the masked 3
    board.outb(0x20, 0x0B)
    assert board.inb(0x20) == 0x08


def test_special_fully_nested_mode_lets_the_second_chip_interrupt_itself(board: Board) -> None:
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 0x11, 0)
    pulse(board, 12)
    assert board.take_interrupts() == [0x2C]
    pulse(board, 9)
    assert board.take_interrupts() == [0x29]


def test_masks_survive_everything_but_icw1(board: Board) -> None:
    board.outb(0x21, 0xFB)
    assert board.inb(0x21) == 0xFB
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 1)
    assert board.inb(0x21) == 0
