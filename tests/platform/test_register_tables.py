"""The devices' register tables agree with what is on the bus, and with the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from lzero.platform.devices import (
    debug_exit,
    fw_cfg,
    keyboard,
    pci,
    pit,
    port61,
    power,
    reset,
    rtc,
    serial,
    test_device,
)
from lzero.platform.interrupts import pic
from lzero.platform.registers import Access, RegisterRow
from pcboard import Board

PAGE = Path(__file__).parents[2] / "docs" / "platform.md"
BASES = {serial: serial.COM1_BASE}
PORT_TABLES = {
    module.__name__.rpartition(".")[2]: (module.REGISTERS, BASES.get(module, 0))
    for module in (debug_exit, fw_cfg, keyboard, pci, pic, pit, port61, power, reset, serial, test_device)
}
ROWS = [(name, row, base) for name, (rows, base) in PORT_TABLES.items() for row in rows if row.offset < 0x10000]


@pytest.mark.parametrize(("name", "row", "base"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_every_register_is_claimed_for_its_access(name: str, row: RegisterRow, base: int) -> None:
    board = Board()
    port = base + row.offset
    if row.access is not Access.WRITE:
        board.inb(port)
        assert not board.bus.unclaimed_port_reads
    if row.access is not Access.READ:
        board.outb(port, 0)
        assert not board.bus.unclaimed_port_writes


@pytest.mark.parametrize("row", rtc.REGISTERS, ids=lambda row: row.name)
def test_rtc_indexes_are_within_the_cmos(row: RegisterRow) -> None:
    assert row.offset < rtc.CMOS_SIZE


@pytest.mark.parametrize(("name", "row", "base"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_the_documentation_lists_it(name: str, row: RegisterRow, base: int) -> None:
    assert f"| {row.name} | {base + row.offset:#x} |" in PAGE.read_text()


def test_the_documentations_example_runs() -> None:
    example = PAGE.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(example, str(PAGE), "exec"), {})
