"""The local APIC's timer in its three modes. Its input clock is 1 GHz."""

from __future__ import annotations

from pcboard import Board

LVT_TIMER, INITIAL, CURRENT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
ONE_SHOT, PERIODIC, DEADLINE = 0, 1 << 17, 2 << 17
VECTOR = 0xEF
BY_1, BY_2, BY_16, BY_128 = 0xB, 0x0, 0x3, 0xA


def start(board: Board, mode: int, count: int, divide: int = BY_1) -> None:
    board.apic_write(DIVIDE, divide)
    board.apic_write(LVT_TIMER, mode | VECTOR)
    board.apic_write(INITIAL, count)


def interrupts(board: Board, ns: int) -> int:
    """Timer interrupts in so much time, each ended by an EOI."""
    count = 0
    end = board.time_ns + ns
    while (deadline := board.clock.next_deadline_ns()) is not None and deadline <= end:
        board.advance(deadline - board.time_ns)
        for vector in board.take_interrupts():
            count += vector == VECTOR
            board.apic_write(0xB0, 0)
    board.advance(end - board.time_ns)
    return count


def test_one_shot_counts_down_and_interrupts_once(board: Board) -> None:
    start(board, ONE_SHOT, 1_000_000)
    board.advance(250_000)
    assert board.apic_read(CURRENT) == 750_000
    assert interrupts(board, 10_000_000) == 1
    assert board.apic_read(CURRENT) == 0
    assert board.apic_read(INITIAL) == 1_000_000


def test_periodic_repeats(board: Board) -> None:
    start(board, PERIODIC, 1_000_000)
    assert interrupts(board, 10_500_000) == 10
    assert board.apic_read(CURRENT) == 500_000


def test_the_divider(board: Board) -> None:
    for divide, by in ((BY_1, 1), (BY_2, 2), (BY_16, 16), (BY_128, 128)):
        start(board, ONE_SHOT, 1000, divide)
        board.advance(500 * by)
        assert board.apic_read(CURRENT) == 500, by


def test_a_count_of_zero_stops(board: Board) -> None:
    start(board, PERIODIC, 1000)
    board.apic_write(INITIAL, 0)
    assert interrupts(board, 1_000_000) == 0


def test_a_masked_timer_counts_without_interrupting(board: Board) -> None:
    start(board, ONE_SHOT | 1 << 16, 1000)
    assert interrupts(board, 500) == 0
    assert board.apic_read(CURRENT) == 500
    assert interrupts(board, 10_000) == 0


def test_changing_between_one_shot_and_periodic_keeps_the_count(board: Board) -> None:
    start(board, PERIODIC, 1000)
    board.advance(400)
    board.apic_write(LVT_TIMER, ONE_SHOT | VECTOR)
    assert board.apic_read(CURRENT) == 600
    assert interrupts(board, 10_000) == 1
    assert board.apic_read(CURRENT) == 0
    board.apic_write(LVT_TIMER, PERIODIC | VECTOR)
    assert board.apic_read(CURRENT) == 0
    assert interrupts(board, 10_000) == 0


def test_tsc_deadline_fires_when_the_tsc_reaches_it(board: Board) -> None:
    board.apic_write(LVT_TIMER, DEADLINE | VECTOR)
    timer = board.pc.lapic.timer
    timer.tsc_deadline = board.clock.tsc() + 2_000_000  # 1 ms at 2 GHz
    assert interrupts(board, 999_999) == 0
    assert timer.tsc_deadline == 2_000_000
    assert interrupts(board, 1) == 1
    assert timer.tsc_deadline == 0


def test_a_deadline_in_the_past_fires_at_once(board: Board) -> None:
    board.advance(1000)
    board.apic_write(LVT_TIMER, DEADLINE | VECTOR)
    board.pc.lapic.timer.tsc_deadline = 1
    assert interrupts(board, 0) == 1


def test_a_deadline_of_zero_disarms(board: Board) -> None:
    board.apic_write(LVT_TIMER, DEADLINE | VECTOR)
    board.pc.lapic.timer.tsc_deadline = 2_000_000
    board.pc.lapic.timer.tsc_deadline = 0
    assert interrupts(board, 10_000_000) == 0


def test_a_deadline_in_another_mode_is_ignored(board: Board) -> None:
    board.pc.lapic.timer.tsc_deadline = 1000
    assert board.pc.lapic.timer.tsc_deadline == 0


def test_leaving_deadline_mode_disarms_and_counts_are_ignored_in_it(board: Board) -> None:
    board.apic_write(LVT_TIMER, DEADLINE | VECTOR)
    board.apic_write(INITIAL, 1000)
    assert board.apic_read(CURRENT) == 0
    board.pc.lapic.timer.tsc_deadline = 2_000_000
    board.apic_write(LVT_TIMER, ONE_SHOT | VECTOR)
    assert interrupts(board, 10_000_000) == 0


def test_moving_the_tsc_moves_the_deadline(board: Board) -> None:
    board.apic_write(LVT_TIMER, DEADLINE | VECTOR)
    board.pc.lapic.timer.tsc_deadline = 20_000_000
    board.clock.set_tsc(18_000_000)
    assert interrupts(board, 1_000_000) == 1


def test_an_absurd_rate_does_not_hang_the_host(board: Board) -> None:
    start(board, PERIODIC, 1)
    board.skip(3600 * 1_000_000_000)
    assert board.take_interrupts() == [VECTOR]
