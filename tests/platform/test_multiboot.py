"""Multiboot 1 kernels, good and bad."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootimages import Elf, MultibootHeader, multiboot_elf
from lzero.errors import ImageError
from lzero.platform.loaders import EntryMode, ImageKind, LoadOptions, Module, detect, load
from lzero.platform.memory import GuestMemory

MIB = 1 << 20


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(16 * MIB)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.elf"
    path.write_bytes(multiboot_elf())
    return path


def info_words(memory: GuestMemory, address: int) -> tuple[int, ...]:
    return struct.unpack("<22I", memory.read(address, 88))


def string_at(memory: GuestMemory, address: int) -> str:
    return memory.read(address, 256).split(b"\0")[0].decode()


def test_entry_state(memory: GuestMemory, image: Path) -> None:
    state = load(image, memory)
    assert detect(image) is ImageKind.MULTIBOOT
    assert (state.mode, state.rip) == (EntryMode.PROTECTED32, 0x100000)
    assert state.registers["rax"] == 0x2BADB002
    assert state.cr0 & 0x80000001 == 1
    assert state.segments["cs"].limit == 0xFFFFFFFF
    descriptor = memory.read_u64(state.gdt_base + state.segments["cs"].selector)
    assert descriptor == 0x00CF9B000000FFFF


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_are_placed_and_their_rest_cleared(memory: GuestMemory, tmp_path: Path, bits: int) -> None:
    memory.fill(0x100000, 0x1000, 0xAA)
    path = tmp_path / "kernel"
    path.write_bytes(multiboot_elf(bits=bits, machine=62 if bits == 64 else 3, extra_memory=0x100))
    load(path, memory)
    assert memory.read(0x10000C, 20) == b"\xf4" * 20
    assert memory.read(0x100020, 0x100) == bytes(0x100)
    assert memory.read_u8(0x100120) == 0xAA


def test_a_virtual_entry_point_becomes_physical(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(multiboot_elf(bits=64, machine=62, virtual=0xFFFFFFFF80100000, entry=0xFFFFFFFF8010000C))
    assert load(path, memory).rip == 0x10000C


def test_information_for_the_kernel(memory: GuestMemory, image: Path) -> None:
    state = load(image, memory, LoadOptions(args=("one", "two"), append="three"))
    words = info_words(memory, state.registers["rbx"])
    assert words[0] == 0x24F
    assert (words[1], words[2]) == (639, 15 * 1024)
    assert string_at(memory, words[4]) == f"{image} one two three"
    assert words[5] == 0
    entries, address = [], words[12]
    while address < words[12] + words[11]:
        size, base, length, kind = struct.unpack("<IQQI", memory.read(address, 24))
        entries.append((base, length, kind))
        address += size + 4
    assert entries == [(e.base, e.size, e.type) for e in memory.e820()]
    assert string_at(memory, words[16]) == "lzero"


def test_a_command_line_of_any_bytes(memory: GuestMemory, image: Path) -> None:
    state = load(image, memory, LoadOptions(args=(b"\xff\xfe".decode(errors="surrogateescape"),)))
    address = info_words(memory, state.registers["rbx"])[4]
    assert memory.read(address, 200).split(b"\0")[0].endswith(b" \xff\xfe")


def test_modules_are_page_aligned_behind_the_kernel(memory: GuestMemory, image: Path, tmp_path: Path) -> None:
    for name in ("env", "second"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    options = LoadOptions(initrd=tmp_path / "env", modules=(Module(tmp_path / "second", "with words"),))
    state = load(image, memory, options)
    words = info_words(memory, state.registers["rbx"])
    assert words[5] == 2
    modules = [struct.unpack("<III", memory.read(words[6] + 16 * i, 12)) for i in range(2)]
    assert modules[0][:2] == (0x101000, 0x101000 + 3000)
    assert modules[1][0] == 0x102000
    assert memory.read(modules[1][0], 6) == b"second"
    assert string_at(memory, modules[1][2]) == f"{tmp_path / 'second'} with words"


def test_addresses_in_the_header_take_precedence_over_elf(memory: GuestMemory, tmp_path: Path) -> None:
    header = MultibootHeader(addresses=(0x201000, 0x200000, 0x201040, 0x202000, 0x200010))
    path = tmp_path / "kernel"
    path.write_bytes(Elf(body=header.encode().ljust(0x100, b"\x90"), bits=64, machine=62).encode())
    memory.fill(0x201040, 0x1000, 0xAA)
    state = load(path, memory)
    assert state.rip == 0x200010
    assert memory.read(0x200000, 4) == b"\x7fELF"
    assert memory.read(0x201040, 0xFC0) == bytes(0xFC0)
    assert memory.read_u8(0x202000) == 0xAA


def test_a_kernel_that_is_no_elf(memory: GuestMemory, tmp_path: Path) -> None:
    header = MultibootHeader(addresses=(0x100000, 0x100000, 0, 0, 0x100020))
    path = tmp_path / "kernel.bin"
    path.write_bytes(header.encode() + b"\xf4")
    assert load(path, memory).rip == 0x100020
    assert memory.read_u8(0x100020) == 0xF4


BAD_KERNELS = {
    "truncated": (multiboot_elf()[:-8], "truncated"),
    "not x86": (multiboot_elf(machine=183), "EM_AARCH64"),
    "outside RAM": (multiboot_elf(physical=0x4000000), "give the guest more memory"),
    "huge": (multiboot_elf(extra_memory=0x7FFFFFFF), "give the guest more memory"),
    "entry outside RAM": (multiboot_elf(entry=0xFEE00000), "outside RAM"),
    "file larger than memory size": (multiboot_elf(file_size=0x10000), "damaged"),
    "unknown requirement": (Elf(body=MultibootHeader(flags=8).encode()).encode(), "requires features 0x8"),
    "neither": (MultibootHeader().encode().ljust(64, b"\0"), "neither ELF nor"),
    "contradictory addresses": (
        MultibootHeader(addresses=(0x100000, 0x200000, 0, 0, 0)).encode(),
        "contradict each other",
    ),
    "promises more than it has": (
        MultibootHeader(addresses=(0x100000, 0x100000, 0x200000, 0, 0x100000)).encode(),
        "truncated",
    ),
    "does not fit by its header": (
        MultibootHeader(addresses=(0xF0000000, 0xF0000000, 0, 0, 0xF0000000)).encode(),
        "does not fit",
    ),
    "cut off inside the header": (
        MultibootHeader(addresses=(0x100000, 0x100000, 0, 0, 0)).encode()[:20],
        "truncated in its multiboot header",
    ),
    "no header": (Elf(body=b"\xf4").encode(), "without a multiboot header"),
    "text": (b"#!/bin/sh\n", "neither a multiboot kernel nor a Linux bzImage"),
    "empty": (b"", "empty"),
    "multiboot 2": (Elf(body=b"\xd6\x50\x52\xe8").encode(), "multiboot 2"),
    "gzip": (b"\x1f\x8b\x08\0", "unpack it first"),
    "initramfs": (b"070701" + b"0" * 100, "--initrd"),
    "disk": (b"QFI\xfb\0\0", "qcow2"),
    "EFI": (b"MZ" + bytes(1000), "EFI"),
}


@pytest.mark.parametrize("name", BAD_KERNELS)
def test_bad_kernels_say_what_is_wrong(memory: GuestMemory, tmp_path: Path, name: str) -> None:
    data, message = BAD_KERNELS[name]
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        load(path, memory)
    assert str(path) in str(caught.value)


def test_missing_files(memory: GuestMemory, image: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ImageError, match="No such file"):
        load(missing, memory)
    with pytest.raises(ImageError, match="Is a directory"):
        load(tmp_path, memory)
    with pytest.raises(ImageError, match=r"module .*nowhere: cannot be read"):
        load(image, memory, LoadOptions(modules=(Module(missing),)))


def test_a_module_that_does_not_fit(memory: GuestMemory, image: Path, tmp_path: Path) -> None:
    module = tmp_path / "big"
    module.write_bytes(bytes(16 * MIB))
    with pytest.raises(ImageError, match="does not fit behind the kernel"):
        load(image, memory, LoadOptions(modules=(Module(module),)))


def test_a_command_line_longer_than_low_memory(memory: GuestMemory, image: Path) -> None:
    with pytest.raises(ImageError, match="shorten"):
        load(image, memory, LoadOptions(append="x" * (1 << 20)))


@given(data=st.data())
def test_damaged_elf_headers_load_or_are_image_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    image = bytearray(multiboot_elf(bits=data.draw(st.sampled_from([32, 64])), machine=62))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(4, 120))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        state = load(path, GuestMemory(2 * MIB))
    except ImageError:
        return
    assert state.mode is EntryMode.PROTECTED32
