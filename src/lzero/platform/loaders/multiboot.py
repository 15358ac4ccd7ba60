"""Multiboot 1 kernels (Multiboot Specification 0.6.96).

A kernel is entered in 32-bit protected mode with a magic number in EAX and the address of the information structure
in EBX. ELF files are placed by their program headers, unless the multiboot header carries load addresses (the "a.out
kludge"), which take precedence.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import ImageError
from lzero.platform.loaders.elf import load_segments, parse_elf
from lzero.platform.loaders.entry import MULTIBOOT_INFO_ADDRESS, EntryState, protected_mode_entry
from lzero.platform.loaders.images import ELF_MAGIC, Module, find_multiboot_header, read_image
from lzero.platform.memory import EBDA_BASE, PAGE_SIZE, GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from lzero.platform.loaders.images import LoadOptions

__all__ = ["load"]

ENTRY_MAGIC = 0x2BADB002
HEADER_ADDRESSES = 1 << 16
KNOWN_REQUIREMENTS = 0x3
"""Page-aligned modules and memory information; a video mode (bit 2) is a wish that no screen can fulfil, and is
tolerated.
"""
REQUIREMENTS_MASK = 0xFFFF
VIDEO_MODE = 4
INFO_SIZE = 88
BOOT_DEVICE = 0x8000_FFFF
LOADER_NAME = b"lzero"
LOW_LIMIT = EBDA_BASE - 0x1_0000


class InfoFlag(IntFlag):
    """Which fields of the information structure are valid (3.3)."""

    MEMORY = 1
    BOOT_DEVICE = 2
    COMMAND_LINE = 4
    MODULES = 8
    MEMORY_MAP = 0x40
    LOADER_NAME = 0x200


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """Where a module is."""

    start: int
    end: int
    string: str


def load(data: bytes, path: Path, memory: GuestMemory, options: LoadOptions) -> EntryState:
    """Load the kernel, its modules and the information structure."""
    header = find_multiboot_header(data)
    assert header is not None, "the caller detected a multiboot header"
    flags = struct.unpack_from("<I", data, header + 4)[0]
    unknown = flags & REQUIREMENTS_MASK & ~(KNOWN_REQUIREMENTS | VIDEO_MODE)
    if unknown:
        raise ImageError(f"image {path}: the multiboot header requires features {unknown:#x} that no loader knows")
    if flags & HEADER_ADDRESSES:
        entry, end = _load_by_header(data, header, path, memory)
    elif data[:4] == ELF_MAGIC:
        image = parse_elf(data, path)
        load_segments(image, path, memory)
        entry, end = image.entry_physical(), image.end
    else:
        raise ImageError(f"image {path}: a multiboot kernel that is neither ELF nor has load addresses in its header")
    if not memory.contains(entry):
        raise ImageError(f"image {path}: the entry point {entry:#x} is outside RAM")
    modules = _load_modules(_wanted_modules(options), end, memory)
    command_line = os.fsencode(path) + b" " + options.encoded_command_line
    info = _write_info(memory, command_line, modules)
    return protected_mode_entry(memory, entry, {"rax": ENTRY_MAGIC, "rbx": info})


def _load_by_header(data: bytes, header: int, path: Path, memory: GuestMemory) -> tuple[int, int]:
    """Place the file by the addresses in the multiboot header; entry point and end."""
    if header + 32 > len(data):
        raise ImageError(f"image {path}: truncated in its multiboot header")
    header_at, load_at, load_end, bss_end, entry = struct.unpack_from("<5I", data, header + 12)
    start = header - (header_at - load_at)
    size = load_end - load_at if load_end else len(data) - start
    if start < 0 or size <= 0 or header_at < load_at:
        raise ImageError(
            f"image {path}: the addresses in its multiboot header contradict each other "
            f"(header {header_at:#x} at file offset {header:#x}, load {load_at:#x}-{load_end:#x})"
        )
    if start + size > len(data):
        raise ImageError(f"image {path}: truncated: its header promises {start + size:#x} bytes, it has {len(data):#x}")
    end = max(load_at + size, bss_end)
    try:
        memory.host_offset(load_at, end - load_at)
    except GuestMemoryError as error:
        raise ImageError(f"image {path}: does not fit at {load_at:#x}-{end:#x}; give more memory ({error})") from error
    memory.write(load_at, data[start : start + size])
    memory.fill(load_at + size, end - load_at - size)
    return entry, end


def _wanted_modules(options: LoadOptions) -> tuple[Module, ...]:
    first = (Module(options.initrd),) if options.initrd is not None else ()
    return first + options.modules


def _load_modules(modules: tuple[Module, ...], end: int, memory: GuestMemory) -> list[LoadedModule]:
    """Page-aligned, one after the other, behind the kernel."""
    loaded = []
    for module in modules:
        contents = read_image(module.path, "module")
        start = -(-end // PAGE_SIZE) * PAGE_SIZE
        try:
            memory.write(start, contents)
        except GuestMemoryError as error:
            raise ImageError(
                f"module {module.path}: does not fit behind the kernel; give more memory ({error})"
            ) from error
        end = start + len(contents)
        loaded.append(LoadedModule(start, end, f"{module.path} {module.arguments}".rstrip()))
    return loaded


class _Area:
    """Low memory behind the information structure, handed out from the bottom."""

    def __init__(self, memory: GuestMemory, start: int) -> None:
        self._memory = memory
        self._next = start

    def place(self, data: bytes) -> int:
        address = self._next
        if address + len(data) > LOW_LIMIT:
            raise ImageError("command line and module strings are longer than low memory; shorten them")
        self._memory.write(address, data)
        self._next = -(-(address + len(data)) // 4) * 4
        return address


def _write_info(memory: GuestMemory, command_line: bytes, modules: list[LoadedModule]) -> int:
    """The information structure and what it points to; its address."""
    area = _Area(memory, MULTIBOOT_INFO_ADDRESS + INFO_SIZE)
    entries = memory.e820()
    # An entry's size field does not count itself (3.3, mmap).
    memory_map = b"".join(struct.pack("<IQQI", 20, e.base, e.size, e.type) for e in entries)
    map_address = area.place(memory_map)
    command_line_address = area.place(command_line.rstrip() + b"\0")
    name_address = area.place(LOADER_NAME + b"\0")
    strings = [area.place(os.fsencode(module.string) + b"\0") for module in modules]
    table = b"".join(
        struct.pack("<IIII", module.start, module.end, string, 0)
        for module, string in zip(modules, strings, strict=True)
    )
    modules_address = area.place(table)
    flags = InfoFlag.MEMORY | InfoFlag.BOOT_DEVICE | InfoFlag.COMMAND_LINE | InfoFlag.MODULES
    flags |= InfoFlag.MEMORY_MAP | InfoFlag.LOADER_NAME
    upper = (memory.regions[0].end - (1 << 20)) >> 10
    info = struct.pack(
        "<12I",
        flags,
        EBDA_BASE >> 10,
        upper,
        BOOT_DEVICE,
        command_line_address,
        len(modules),
        modules_address,
        *(0, 0, 0, 0),
        len(memory_map),
    )
    # After the map's length: map address, drives (2), configuration table, loader name, APM table, VBE (4 words).
    info += struct.pack("<5I", map_address, 0, 0, 0, name_address)
    memory.write(MULTIBOOT_INFO_ADDRESS, info.ljust(INFO_SIZE, b"\0"))
    return MULTIBOOT_INFO_ADDRESS
