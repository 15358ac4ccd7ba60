"""fw_cfg by port and by DMA."""

from __future__ import annotations

import struct

import pytest

from lzero.platform.devices.fw_cfg import FwCfg, Key
from lzero.platform.memory import GuestMemory
from pcboard import Board


def read_item(board: Board, key: int, size: int) -> bytes:
    board.bus.port_write(0x510, 2, key)
    return bytes(board.inb(0x511) for _ in range(size))


def test_what_kernels_ask_first(board: Board) -> None:
    assert read_item(board, Key.SIGNATURE, 4) == b"QEMU"
    assert read_item(board, Key.ID, 4) == b"\3\0\0\0"
    assert int.from_bytes(read_item(board, Key.RAM_SIZE, 8), "little") == 16 << 20
    assert read_item(board, Key.CPU_COUNT, 2) == b"\1\0"
    assert read_item(board, Key.MAX_CPUS, 2) == b"\1\0"


def test_behind_the_end_and_unknown_items_read_as_zero(board: Board) -> None:
    assert read_item(board, Key.SIGNATURE, 6) == b"QEMU\0\0"
    assert read_item(board, 0x7777, 3) == b"\0\0\0"


def directory(board: Board) -> dict[str, tuple[int, int]]:
    count = struct.unpack(">I", read_item(board, Key.FILE_DIRECTORY, 4))[0]
    files = {}
    for _ in range(count):
        size, key, _, name = struct.unpack(">IHH56s", bytes(board.inb(0x511) for _ in range(64)))
        files[name.rstrip(b"\0").decode()] = (key, size)
    return files


def test_files_are_found_through_the_directory(board: Board) -> None:
    board.pc.fw_cfg.add_file("opt/test", b"content")
    key, size = directory(board)["opt/test"]
    assert read_item(board, key, size) == b"content"


def test_the_e820_file_is_the_memory_map(board: Board) -> None:
    key, size = directory(board)["etc/e820"]
    data = read_item(board, key, size)
    rows = [struct.unpack_from("<QQI", data, at) for at in range(0, size, 20)]
    assert rows == [(e.base, e.size, e.type) for e in board.pc.memory.e820()]


def test_a_file_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 55 bytes"):
        FwCfg(GuestMemory(1 << 20)).add_file("x" * 56, b"")


def dma(board: Board, control: int, length: int, address: int) -> int:
    memory = board.pc.memory
    memory.write(0x5000, struct.pack(">IIQ", control, length, address))
    board.bus.port_write(0x514, 4, 0)
    board.bus.port_write(0x518, 4, int.from_bytes((0x5000).to_bytes(4, "big"), "little"))
    return int(struct.unpack(">I", memory.read(0x5000, 4))[0])


def test_dma_selects_and_reads(board: Board) -> None:
    assert board.bus.port_read(0x514, 4).to_bytes(4, "little") == b"QEMU"
    assert board.bus.port_read(0x518, 4).to_bytes(4, "little") == b" CFG"
    assert dma(board, Key.SIGNATURE << 16 | 8 | 2, 4, 0x6000) == 0
    assert board.pc.memory.read(0x6000, 4) == b"QEMU"


def test_dma_skips(board: Board) -> None:
    dma(board, Key.SIGNATURE << 16 | 8 | 4, 2, 0)
    dma(board, 2, 2, 0x6000)
    assert board.pc.memory.read(0x6000, 2) == b"MU"


@pytest.mark.parametrize(("control", "length", "address"), [(2, 4, 1 << 40), (2, 0xFFFFFFFF, 0), (16, 4, 0x6000)])
def test_dma_that_cannot_be_done_reports_an_error(board: Board, control: int, length: int, address: int) -> None:
    assert dma(board, control, length, address) == 1


def test_a_descriptor_outside_ram_is_ignored(board: Board) -> None:
    board.bus.port_write(0x514, 4, 0xFFFFFFFF)
    board.bus.port_write(0x518, 4, 0xFFFFFFFF)
