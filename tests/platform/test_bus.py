"""Port and MMIO decoding."""

from __future__ import annotations

import pytest

from lzero.platform.bus import COUNTED_ADDRESSES, Bus


class Wide:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def port_read(self, port: int, size: int) -> int:
        self.seen.append((port, size))
        return 0x1_2345_6789

    def port_write(self, port: int, size: int, value: int) -> None:
        self.seen.append((port, size, value))

    mmio_read, mmio_write = port_read, port_write


def test_nobody_there_reads_all_ones_and_is_counted() -> None:
    bus = Bus()
    assert [bus.port_read(0x1234, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    bus.port_write(0x1234, 2, 0)
    assert bus.unclaimed_port_reads[0x1234] == 3
    assert bus.unclaimed_port_writes == {0x1234: 1, 0x1235: 1}
    assert bus.mmio_read(0xD0000000, 8) == 0xFFFF_FFFF_FFFF_FFFF
    bus.mmio_write(0xD0000008, 4, 1)
    assert bus.unclaimed_mmio_pages == {0xD0000: 2}


def test_wider_accesses_to_byte_registers_are_split() -> None:
    bus = Bus()
    written: list[tuple[int, int]] = []
    for port in (0x10, 0x11):
        bus.register_byte_port(port, lambda port=port: port, lambda value, port=port: written.append((port, value)))
    assert bus.port_read(0x10, 2) == 0x1110
    bus.port_write(0x10, 2, 0xBEEF)
    assert written == [(0x10, 0xEF), (0x11, 0xBE)]


def test_ports_wrap_at_the_end_of_the_space() -> None:
    bus = Bus()
    bus.register_byte_port(0, lambda: 0xAB, None)
    assert bus.port_read(0xFFFF, 2) == 0xABFF


def test_a_wide_device_sees_the_width_and_its_value_is_cut_to_it() -> None:
    bus, device = Bus(), Wide()
    bus.register_ports(0x20, 0x23, device)
    assert bus.port_read(0x20, 2) == 0x6789
    bus.port_write(0x21, 1, 0x1FF)
    assert device.seen == [(0x20, 2), (0x21, 1, 0xFF)]


def test_claiming_twice_is_a_mistake_of_the_board() -> None:
    bus, device = Bus(), Wide()
    bus.register_ports(0x20, 0x23, device)
    bus.register_mmio(0x1000, 0x2000, device)
    with pytest.raises(ValueError, match="0x22 is claimed twice"):
        bus.register_byte_port(0x22, lambda: 0, None)
    with pytest.raises(ValueError, match="claimed twice"):
        bus.register_mmio(0x2000, 0x1000, device)
    with pytest.raises(ValueError, match="not page-aligned"):
        bus.register_mmio(0x2800, 0x1000, device)


def test_mmio_offsets_count_from_the_device_and_pages_can_be_given_back() -> None:
    bus, device = Bus(), Wide()
    bus.register_mmio(0xFEC00000, 0x2000, device)
    bus.mmio_write(0xFEC01010, 4, 5)
    assert device.seen == [(0x1010, 4, 5)]
    assert bus.is_mmio(0xFEC01FFF)
    bus.unregister_mmio(0xFEC00000, 0x2000)
    assert not bus.is_mmio(0xFEC01FFF)


def test_a_guest_that_scans_its_address_space_does_not_fill_the_hosts_memory() -> None:
    bus = Bus()
    for page in range(COUNTED_ADDRESSES + 100):
        bus.mmio_read(page << 12, 4)
    assert len(bus.unclaimed_mmio_pages) == COUNTED_ADDRESSES
