"""The 8254: modes, reads, rates, and port 0x61."""

from __future__ import annotations

import pytest

from pcboard import Board

TICK_NS = 1_000_000_000 / 1_193_182


def program(board: Board, channel: int, mode: int, count: int) -> None:
    board.outb(0x43, channel << 6 | 3 << 4 | mode << 1)
    board.outb(0x40 + channel, count & 0xFF, count >> 8)


def read_count(board: Board, channel: int) -> int:
    board.outb(0x43, channel << 6)
    return board.inb(0x40 + channel) | board.inb(0x40 + channel) << 8


def edges(board: Board, ns: int) -> int:
    """IRQ 0 interrupts in so much time."""
    board.set_up_pics()
    taken = 0
    end = board.time_ns + ns
    while (deadline := board.clock.next_deadline_ns()) is not None and deadline <= end:
        board.advance(deadline - board.time_ns)
        vectors = board.take_interrupts()
        taken += vectors.count(0x20)
        board.outb(0x20, *([0x20] * len(vectors)))
    board.advance(end - board.time_ns)
    return taken


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("count", [1193, 11932, 0xFFFF])
def test_periodic_modes_interrupt_at_their_rate(board: Board, mode: int, count: int) -> None:
    program(board, 0, mode, count)
    assert abs(edges(board, 1_000_000_000) - 1_193_182 / count) <= 1


def test_firmware_leaves_an_18_hz_tick(board: Board) -> None:
    assert edges(board, 1_000_000_000) == 18


def test_a_masked_tick_wakes_nobody_but_is_latched(board: Board) -> None:
    assert board.clock.next_deadline_ns() is None
    assert not board.inb(0x20) & 1
    board.skip(10_000_000_000)
    assert board.inb(0x20) & 1
    board.set_up_pics()
    assert board.take_interrupts() == []  # ICW1 clears the latch
    assert board.clock.next_deadline_ns() is not None
    board.outb(0x21, 1)
    assert board.clock.next_deadline_ns() is None
    board.skip(10_000_000_000)
    board.outb(0x21, 0)
    assert board.take_interrupts() == [0x20]


def test_a_tick_masked_at_the_io_apic_is_lost(board: Board) -> None:
    board.skip(10_000_000_000)
    board.redirect(2, 0x30)
    assert board.take_interrupts() == []
    board.advance(60_000_000)
    assert board.take_interrupts() == [0x30]


def test_mode_0_interrupts_once(board: Board) -> None:
    program(board, 0, 0, 1000)
    assert edges(board, 10_000_000) == 1


def test_a_new_control_word_stops_the_periodic_interrupt(board: Board) -> None:
    program(board, 0, 2, 1000)
    board.outb(0x43, 0x30)
    assert edges(board, 10_000_000) == 0


def test_the_count_goes_down(board: Board) -> None:
    program(board, 0, 2, 10000)
    board.advance(round(2500 * TICK_NS))
    assert abs(read_count(board, 0) - 7500) <= 1
    board.advance(round(10000 * TICK_NS))
    assert abs(read_count(board, 0) - 7500) <= 2


def test_square_wave_counts_by_two(board: Board) -> None:
    program(board, 0, 3, 10000)
    board.advance(round(2500 * TICK_NS))
    assert abs(read_count(board, 0) - 5000) <= 2


def test_a_latched_count_stays_until_it_is_read(board: Board) -> None:
    program(board, 0, 2, 10000)
    board.outb(0x43, 0)
    board.advance(1_000_000)
    board.outb(0x43, 0)
    assert board.inb(0x40) | board.inb(0x40) << 8 == 10000
    assert (board.inb(0x40) | board.inb(0x40) << 8) < 9000


def test_read_back_gives_status_then_count(board: Board) -> None:
    program(board, 0, 2, 10000)
    board.outb(0x43, 0xC2)
    status = board.inb(0x40)
    assert status == 0x80 | 0x30 | 2 << 1
    assert board.inb(0x40) | board.inb(0x40) << 8 == 10000
    board.outb(0x43, 0x30)
    board.outb(0x43, 0xE2)
    assert board.inb(0x40) & 0x40  # null count: nothing loaded yet


def test_a_count_written_during_a_period_waits_for_its_end(board: Board) -> None:
    program(board, 0, 2, 10000)
    board.advance(round(5000 * TICK_NS))
    board.outb(0x40, 100, 0)
    assert read_count(board, 0) > 4000
    board.advance(round(5010 * TICK_NS))
    assert read_count(board, 0) <= 100


def test_bcd_counting(board: Board) -> None:
    board.outb(0x43, 0x35)
    board.outb(0x40, 0x00, 0x10)  # 1000 decimal
    board.advance(round(1 * TICK_NS) + 1)
    assert read_count(board, 0) == 0x0999


def test_single_byte_access(board: Board) -> None:
    board.outb(0x43, 0x14)
    board.outb(0x40, 200)
    assert board.inb(0x40) == 200
    board.outb(0x43, 0x24)
    board.outb(0x40, 2)
    assert board.inb(0x40) == 2


def test_channel_2_calibration_as_kernels_do_it(board: Board) -> None:
    board.outb(0x61, board.inb(0x61) & ~2 | 1)
    program(board, 2, 0, 59659)  # 50 ms
    assert not board.inb(0x61) & 0x20
    board.advance(49_900_000)
    assert not board.inb(0x61) & 0x20
    board.advance(200_000)
    assert board.inb(0x61) & 0x20


def test_a_low_gate_stops_channel_2(board: Board) -> None:
    board.outb(0x61, 0)
    program(board, 2, 0, 1000)
    board.advance(10_000_000)
    assert read_count(board, 2) == 1000
    board.outb(0x61, 1)
    board.advance(round(400 * TICK_NS))
    assert abs(read_count(board, 2) - 600) <= 1
    board.outb(0x61, 0)
    board.advance(10_000_000)
    assert abs(read_count(board, 2) - 600) <= 1


def test_one_shot_starts_with_the_gate(board: Board) -> None:
    board.outb(0x61, 0)
    program(board, 2, 1, 1000)
    assert board.inb(0x61) & 0x20
    board.outb(0x61, 1)
    assert not board.inb(0x61) & 0x20
    board.advance(round(1001 * TICK_NS))
    assert board.inb(0x61) & 0x20


def test_software_strobe_is_low_for_one_tick(board: Board) -> None:
    board.outb(0x61, 1)
    program(board, 2, 4, 1000)
    assert board.inb(0x61) & 0x20
    board.advance(round(1000.5 * TICK_NS))
    assert not board.inb(0x61) & 0x20
    board.advance(round(TICK_NS) + 1)
    assert board.inb(0x61) & 0x20


def test_the_refresh_bit_toggles(board: Board) -> None:
    seen = set()
    for _ in range(4):
        seen.add(board.inb(0x61) & 0x10)
        board.advance(15_085)
    assert seen == {0, 0x10}


def test_an_absurd_rate_does_not_hang_the_host(board: Board) -> None:
    board.set_up_pics()
    program(board, 0, 2, 2)
    board.skip(3600 * 1_000_000_000)
    deadline = board.clock.next_deadline_ns()
    assert deadline is not None and deadline > board.time_ns
