"""The real-time clock: a fixed date, its interrupts, CMOS sizes."""

from __future__ import annotations

import pytest

from pcboard import Board

SECOND = 1_000_000_000


def cmos(board: Board, index: int) -> int:
    board.outb(0x70, index)
    return board.inb(0x71)


def set_cmos(board: Board, index: int, value: int) -> None:
    board.outb(0x70, index)
    board.outb(0x71, value)


def date(board: Board) -> list[int]:
    return [cmos(board, i) for i in (0x32, 9, 8, 7, 4, 2, 0)]


def test_every_run_begins_at_the_same_moment(board: Board) -> None:
    assert date(board) == [0x20, 0x26, 1, 1, 0, 0, 0]
    assert cmos(board, 6) == 5  # a Thursday
    assert cmos(board, 0xD) == 0x80


def test_the_date_follows_guest_time(board: Board) -> None:
    board.skip((((30 * 24 + 23) * 60 + 59) * 60 + 58) * SECOND)
    assert date(board) == [0x20, 0x26, 1, 0x31, 0x23, 0x59, 0x58]
    board.advance(2 * SECOND)
    assert date(board) == [0x20, 0x26, 2, 1, 0, 0, 0]


def test_binary_and_12_hour_formats(board: Board) -> None:
    board.skip(13 * 3600 * SECOND + 45 * SECOND)
    assert cmos(board, 4) == 0x13
    set_cmos(board, 0xB, 0x00)
    assert cmos(board, 4) == 0x81
    set_cmos(board, 0xB, 0x04)
    assert (cmos(board, 4), cmos(board, 0)) == (0x81, 45)
    board.skip(11 * 3600 * SECOND)
    assert cmos(board, 4) == 12  # 00:00 is 12 AM


def test_setting_the_time(board: Board) -> None:
    set_cmos(board, 0xB, 0x82)
    for index, value in ((0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)):
        set_cmos(board, index, value)
    board.advance(5 * SECOND)
    assert cmos(board, 0) == 0x59  # SET stops the clock
    set_cmos(board, 0xB, 0x02)
    board.advance(SECOND)
    assert date(board) == [0x20, 0x00, 1, 1, 0, 0, 0]


def test_a_date_that_does_not_exist_changes_nothing(board: Board) -> None:
    set_cmos(board, 8, 0x99)
    set_cmos(board, 7, 0)
    assert date(board)[2:4] == [1, 1]


def test_update_in_progress_precedes_each_second(board: Board) -> None:
    assert not cmos(board, 0xA) & 0x80
    board.advance(SECOND - 244_000)
    assert cmos(board, 0xA) & 0x80
    board.advance(244_000)
    assert not cmos(board, 0xA) & 0x80


def interrupts(board: Board, ns: int) -> int:
    """IRQ 8 interrupts in so much time, each acknowledged by reading register C."""
    board.set_up_pics()
    board.outb(0x21, 0xFB)
    count = 0
    end = board.time_ns + ns
    while (deadline := board.clock.next_deadline_ns()) is not None and deadline <= end:
        board.advance(deadline - board.time_ns)
        if 0x28 in board.take_interrupts():
            count += 1
            assert cmos(board, 0xC) & 0x80
            board.outb(0xA0, 0x20)
            board.outb(0x20, 0x20)
    board.advance(end - board.time_ns)
    return count


@pytest.mark.parametrize(("rate", "hertz"), [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)])
def test_the_periodic_interrupt_has_its_rate(board: Board, rate: int, hertz: int) -> None:
    set_cmos(board, 0xA, 0x20 | rate)
    set_cmos(board, 0xB, 0x42)
    assert interrupts(board, SECOND) == hertz


def test_the_update_interrupt_comes_every_second(board: Board) -> None:
    set_cmos(board, 0xB, 0x12)
    assert interrupts(board, 10 * SECOND) == 10


def test_the_alarm_comes_at_its_time(board: Board) -> None:
    for index, value in ((1, 0x30), (3, 0xC0), (5, 0xFF)):
        set_cmos(board, index, value)
    set_cmos(board, 0xB, 0x22)
    assert interrupts(board, 150 * SECOND) == 3  # at second 30 of minutes 0, 1, 2


def test_register_c_clears_when_read(board: Board) -> None:
    set_cmos(board, 0xB, 0x12)
    board.advance(SECOND)
    assert cmos(board, 0xC) == 0x90
    assert cmos(board, 0xC) == 0


def test_memory_sizes_as_firmware_leaves_them() -> None:
    board = Board(memory_size=64 << 20)
    assert cmos(board, 0x15) | cmos(board, 0x16) << 8 == 640
    assert cmos(board, 0x17) | cmos(board, 0x18) << 8 == 63 << 10
    assert cmos(board, 0x34) | cmos(board, 0x35) << 8 == (48 << 20) >> 16


def test_cmos_ram_remembers(board: Board) -> None:
    set_cmos(board, 0x40, 0xA5)
    assert cmos(board, 0x40) == 0xA5
