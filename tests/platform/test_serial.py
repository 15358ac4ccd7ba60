"""The 16550A as its drivers use it."""

from __future__ import annotations

from pcboard import Board

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(0x3F8, 0x400)
FCR = IIR


def line(board: Board) -> bool:
    """IRQ 4 as the first 8259A sees it."""
    return bool(board.pc.pic.first._levels & 1 << 4)


def test_output_reaches_the_console_and_the_transmitter_is_always_empty(board: Board) -> None:
    assert board.inb(LSR) == 0x60
    board.outb(DATA, *b"hello\n")
    assert board.console.getvalue() == b"hello\n"
    assert board.inb(LSR) == 0x60


def test_the_divisor_latch_hides_data_and_interrupt_enable(board: Board) -> None:
    board.outb(LCR, 0x83)
    board.outb(DATA, 0x01)
    board.outb(IER, 0x02)
    assert (board.inb(DATA), board.inb(IER)) == (1, 2)
    board.outb(LCR, 0x03)
    assert (board.inb(DATA), board.inb(IER)) == (0, 0)
    assert board.console.getvalue() == b""


def test_a_driver_finds_a_16550a(board: Board) -> None:
    board.outb(SCR, 0xA5)
    assert board.inb(SCR) == 0xA5
    board.outb(FCR, 1)
    assert board.inb(IIR) & 0xC0 == 0xC0
    board.outb(FCR, 0)
    assert board.inb(IIR) & 0xC0 == 0
    board.outb(IER, 0xFF)
    assert board.inb(IER) == 0x0F


def test_loopback_returns_data_and_modem_lines(board: Board) -> None:
    board.outb(MCR, 0x10 | 0xA)
    assert board.inb(MSR) & 0xF0 == 0x90
    board.outb(DATA, 0x42)
    assert board.inb(LSR) & 1
    assert board.inb(DATA) == 0x42
    assert board.console.getvalue() == b""
    board.outb(MCR, 0)
    assert board.inb(MSR) & 0xF0 == 0xB0


def test_changed_modem_lines_show_once(board: Board) -> None:
    board.outb(MCR, 0x10)
    assert board.inb(MSR) & 0xF == 0xB
    assert board.inb(MSR) & 0xF == 0
    board.outb(MCR, 0x14)
    board.outb(MCR, 0x10)
    assert board.inb(MSR) & 0xF == 4  # trailing edge of RI


def test_enabling_the_transmit_interrupt_raises_it_and_reading_iir_clears_it(board: Board) -> None:
    board.outb(IER, 2)
    assert line(board)
    assert board.inb(IIR) == 2
    assert not line(board)
    assert board.inb(IIR) == 1
    board.outb(DATA, 0x21)
    assert line(board)
    board.outb(IER, 0)
    board.outb(IER, 2)
    assert board.inb(IIR) == 2


def test_the_interrupt_does_not_wait_for_out2(board: Board) -> None:
    board.outb(IER, 2)
    assert line(board)


def test_every_character_gives_an_edge_while_the_transmit_interrupt_is_on(board: Board) -> None:
    board.set_up_pics()
    board.outb(IER, 2)
    assert board.take_interrupts() == [0x24]
    board.outb(0x20, 0x20)
    board.outb(DATA, 0x21)
    assert board.take_interrupts() == [0x24]


def test_received_characters_interrupt_at_the_trigger_level_or_time_out_below_it(board: Board) -> None:
    board.outb(FCR, 0x81)  # FIFO, trigger at 8
    board.outb(IER, 1)
    board.pc.feed_console(b"abc")
    assert board.inb(IIR) == 0xCC
    board.pc.feed_console(b"defgh")
    assert board.inb(IIR) == 0xC4
    assert bytes(board.inb(DATA) for _ in range(8)) == b"abcdefgh"
    assert board.inb(IIR) == 0xC1
    assert not line(board)


def test_a_flood_of_input_waits_outside_the_fifo(board: Board) -> None:
    text = bytes(range(256)) * 4
    board.outb(FCR, 1)
    board.pc.feed_console(text)
    received = bytearray()
    while board.inb(LSR) & 1:
        received.append(board.inb(DATA))
    assert received == text
    assert board.pc.serial.input_waiting == 0


def test_a_driver_that_starts_loses_no_piped_input(board: Board) -> None:
    text = b"typed before anybody listened"
    board.pc.feed_console(text)
    board.outb(FCR, 1)
    board.outb(FCR, 7)
    board.outb(FCR, 0)
    board.outb(MCR, 0x18)  # a probe in loopback
    board.outb(DATA, 0x55)
    assert board.inb(DATA) == 0x55
    board.outb(MCR, 0)
    assert not board.inb(LSR) & 1  # held back: no RTS
    board.outb(FCR, 7)
    board.outb(MCR, 0x0B)
    received = bytearray()
    while board.inb(LSR) & 1:
        received.append(board.inb(DATA))
    assert received == text


def test_overrun_in_loopback_is_reported_once_and_outranks_the_rest(board: Board) -> None:
    board.outb(MCR, 0x18)
    board.outb(IER, 5)
    board.outb(DATA, 1, 2)
    assert board.inb(IIR) == 6
    assert board.inb(LSR) & 2
    assert not board.inb(LSR) & 2
    assert board.inb(DATA) == 2
