"""How a guest ends the machine, and the small devices beside it."""

from __future__ import annotations

import pytest

from lzero.platform.exits import ExitKind
from pcboard import Board


def test_debug_exit_carries_its_value(board: Board) -> None:
    assert board.inb(0xF4) == 0
    board.bus.port_write(0xF4, 4, 0x12345)
    request = board.pc.exit_request
    assert request is not None
    assert (request.kind, request.value) == (ExitKind.DEBUG_EXIT, 0x12345)


def test_the_first_request_counts(board: Board) -> None:
    board.outb(0xF4, 1, 2)
    assert board.pc.exit_request is not None
    assert board.pc.exit_request.value == 1


def test_acpi_power_off(board: Board) -> None:
    assert board.bus.port_read(0x604, 2) == 1  # SCI_EN
    board.bus.port_write(0x604, 2, 1 << 10 | 1 << 13)
    assert board.pc.exit_request is None  # another sleep type
    board.bus.port_write(0x604, 2, 0)
    assert board.bus.port_read(0x604, 2) == 1
    board.bus.port_write(0x604, 2, 1 << 13)
    assert board.pc.exit_request is not None
    assert board.pc.exit_request.kind is ExitKind.POWER_OFF


def test_pm1_event_registers(board: Board) -> None:
    board.bus.port_write(0x600, 2, 0xFFFF)
    assert board.bus.port_read(0x600, 2) == 0
    board.bus.port_write(0x602, 2, 0x0321)
    assert board.bus.port_read(0x600, 4) == 0x0321_0000


def test_the_pm_timer_counts_3_579545_mhz(board: Board) -> None:
    board.skip(1_000_000_000)
    assert board.bus.port_read(0x608, 4) == 3_579_545
    board.skip(1_199_000_000_000)
    assert board.bus.port_read(0x608, 4) == 1200 * 3_579_545 & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("port", "values"), [(0x64, [0xFE]), (0x92, [1]), (0xCF9, [0x02, 0x06]), (0x64, [0xF0]), (0xCF9, [0x0E])]
)
def test_every_way_to_reset(board: Board, port: int, values: list[int]) -> None:
    board.outb(port, *values)
    assert board.pc.exit_request is not None
    assert board.pc.exit_request.kind is ExitKind.RESET
    assert hex(port) in board.pc.exit_request.source


def test_a20_reads_as_on(board: Board) -> None:
    assert board.inb(0x92) == 2
    board.outb(0x92, 2)
    assert board.pc.exit_request is None


def test_keyboard_controller_self_tests(board: Board) -> None:
    assert board.inb(0x64) & 3 == 0
    board.outb(0x64, 0xAA)
    assert board.inb(0x64) & 1
    assert board.inb(0x60) == 0x55
    board.outb(0x64, 0xAB)
    assert board.inb(0x60) == 0
    assert not board.inb(0x64) & 1


def test_keyboard_mode_byte_and_output_port(board: Board) -> None:
    board.outb(0x64, 0x60)
    board.outb(0x60, 0x61)
    board.outb(0x64, 0x20)
    assert board.inb(0x60) == 0x61
    board.outb(0x64, 0xD0)
    assert board.inb(0x60) == 0xCF
    assert board.inb(0x60) == 0xCF  # the register keeps it
    board.outb(0x64, 0xD1)
    board.outb(0x60, 2)
    assert board.pc.exit_request is not None


def test_the_keyboard_answers_with_interrupts_if_they_are_on(board: Board) -> None:
    board.set_up_pics()
    board.outb(0x64, 0x60)
    board.outb(0x60, 1)
    board.outb(0x60, 0xFF)
    assert board.take_interrupts() == [0x21]
    assert board.inb(0x60) == 0xFA
    board.outb(0x20, 0x20)
    assert board.take_interrupts() == [0x21]
    assert board.inb(0x60) == 0xAA


def test_a_full_keyboard_buffer_forgets_the_oldest(board: Board) -> None:
    for _ in range(1000):
        board.outb(0x60, 0xF4)
    reads = 0
    while board.inb(0x64) & 1:
        assert board.inb(0x60) == 0xFA
        reads += 1
    assert reads == 16


def test_pci_has_a_host_bridge_and_nothing_else(board: Board) -> None:
    def config(address: int) -> int:
        board.bus.port_write(0xCF8, 4, 0x80000000 | address)
        return board.bus.port_read(0xCFC, 4)

    board.bus.port_write(0xCF8, 4, 0x80000000)
    assert board.bus.port_read(0xCF8, 4) == 0x80000000
    assert config(0) == 0x1237_8086
    assert config(8) >> 16 == 0x0600
    board.bus.port_write(0xCF8, 4, 0x80000008)
    assert board.bus.port_read(0xCFE, 2) == 0x0600
    for slot in range(1, 32):
        assert config(slot << 11) == 0xFFFFFFFF
    board.bus.port_write(0xCF8, 4, 0)
    assert board.bus.port_read(0xCFC, 4) == 0xFFFFFFFF


def test_the_test_device_remembers(board: Board) -> None:
    board.bus.port_write(0xE0, 4, 0x12345678)
    board.bus.port_write(0xE1, 1, 0xAB)
    assert board.bus.port_read(0xE0, 4) == 0x1234AB78
    assert board.bus.port_read(0xE2, 2) == 0x1234
    board.bus.mmio_write(0xFF000010, 8, 0x1122334455667788)
    assert board.bus.mmio_read(0xFF000012, 2) == 0x5566


def test_delay_ports_are_there(board: Board) -> None:
    board.outb(0x80, 1)
    board.outb(0xED, 1)
    assert not board.bus.unclaimed_port_writes
