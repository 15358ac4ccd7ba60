"""Guest RAM: bounds, the hole below 4 GiB, the e820 map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero.errors import UsageError
from lzero.platform.memory import HIGH_RAM_BASE, LOW_RAM_END, E820Type, GuestMemory, GuestMemoryError


def test_what_is_written_is_read() -> None:
    memory = GuestMemory(1 << 20)
    memory.write_u64(0xFFFF8, 0x1122334455667788)
    assert memory.read_u32(0xFFFFC) == 0x11223344
    assert memory.read_u16(0xFFFFE) == 0x1122
    assert memory.read_u8(0xFFFFF) == 0x11


@pytest.mark.parametrize("gpa", [-1, 0xFFFFD, 1 << 20, LOW_RAM_END, HIGH_RAM_BASE, 1 << 64])
def test_outside_ram_is_an_error_that_names_the_address(gpa: int) -> None:
    with pytest.raises(GuestMemoryError, match=r"is not RAM: RAM is 0x0-0xfffff"):
        GuestMemory(1 << 20).write_u32(gpa, 0)


def test_a_value_too_large_is_not_masked() -> None:
    with pytest.raises(OverflowError):
        GuestMemory(1 << 20).write_u8(0, 0x100)


@pytest.mark.parametrize("size", [0, 4096, (1 << 20) + 1, -4096, 1 << 70])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(UsageError):
        GuestMemory(size)


def test_ram_that_does_not_fit_below_the_hole_continues_at_4_gib() -> None:
    memory = GuestMemory(LOW_RAM_END + (1 << 20))
    memory.write_u8(HIGH_RAM_BASE, 0x5A)
    assert memory.view[LOW_RAM_END] == 0x5A
    assert [(r.gpa, r.size, r.host_offset) for r in memory.regions] == [
        (0, LOW_RAM_END, 0),
        (HIGH_RAM_BASE, 1 << 20, LOW_RAM_END),
    ]
    with pytest.raises(GuestMemoryError):
        memory.read(LOW_RAM_END - 4, 8)
    assert memory.e820()[-1].base == HIGH_RAM_BASE


def test_the_e820_map_is_sorted_and_leaves_the_video_window_out() -> None:
    entries = GuestMemory(64 << 20).e820()
    assert all(a.base + a.size <= b.base for a, b in zip(entries, entries[1:], strict=False))
    usable = [(e.base, e.base + e.size) for e in entries if e.type is E820Type.RAM]
    assert usable == [(0, 0x9FC00), (0x100000, 64 << 20)]


@given(st.integers(-(1 << 65), 1 << 65), st.integers(0, 64))
def test_contains_and_access_agree(gpa: int, size: int) -> None:
    memory = GuestMemory(1 << 20)
    if memory.contains(gpa, size):
        assert len(memory.read(gpa, size)) == size
    else:
        with pytest.raises(GuestMemoryError):
            memory.read(gpa, size)
