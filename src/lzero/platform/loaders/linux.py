"""Linux kernels by the 64-bit boot protocol (Documentation/arch/x86/boot.rst), protocol 2.12 and newer.

Two ways in. ``elf``: the payload is unpacked on the host, the ELF kernel placed by its program headers and entered at
its ``startup_64``; twice as fast, no KASLR. ``decompressor``: the image's own code unpacks itself, as on a real
machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import ImageError
from lzero.platform.loaders.elf import load_segments, parse_elf
from lzero.platform.loaders.entry import (
    COMMAND_LINE_ADDRESS,
    COMMAND_LINE_LIMIT,
    ZERO_PAGE_ADDRESS,
    EntryState,
    long_mode_entry,
)
from lzero.platform.loaders.images import ELF_MAGIC, read_image
from lzero.platform.loaders.payload import unpack
from lzero.platform.memory import PAGE_SIZE, GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from lzero.platform.loaders.images import LoadOptions

__all__ = ["load_bzimage", "load_elf"]


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A field of the setup header or the zero page; offsets are the same in both."""

    offset: int
    format: str

    def read(self, image: bytes) -> int:
        """The field's value in an image."""
        return int(struct.unpack_from(self.format, image, self.offset)[0])

    def write(self, page: bytearray, value: int) -> None:
        """Set the field in a zero page."""
        struct.pack_into(self.format, page, self.offset, value)


# boot.rst, "Details of Header Fields" and Documentation/arch/x86/zero-page.rst
RSDP_ADDRESS = HeaderField(0x070, "<Q")
EXT_RAMDISK_IMAGE = HeaderField(0x0C0, "<I")
EXT_RAMDISK_SIZE = HeaderField(0x0C4, "<I")
EXT_COMMAND_LINE = HeaderField(0x0C8, "<I")
E820_COUNT = HeaderField(0x1E8, "<B")
SETUP_SECTORS = HeaderField(0x1F1, "<B")
BOOT_FLAG = HeaderField(0x1FE, "<H")
HEADER_JUMP = HeaderField(0x201, "<B")
HEADER_MAGIC = HeaderField(0x202, "<I")
VERSION = HeaderField(0x206, "<H")
LOADER_TYPE = HeaderField(0x210, "<B")
LOAD_FLAGS = HeaderField(0x211, "<B")
RAMDISK_IMAGE = HeaderField(0x218, "<I")
RAMDISK_SIZE = HeaderField(0x21C, "<I")
HEAP_END = HeaderField(0x224, "<H")
COMMAND_LINE = HeaderField(0x228, "<I")
INITRD_MAXIMUM = HeaderField(0x22C, "<I")
ALIGNMENT = HeaderField(0x230, "<I")
RELOCATABLE = HeaderField(0x234, "<B")
EXTENDED_FLAGS = HeaderField(0x236, "<H")
COMMAND_LINE_SIZE = HeaderField(0x238, "<I")
PAYLOAD_OFFSET = HeaderField(0x248, "<I")
PAYLOAD_SIZE = HeaderField(0x24C, "<I")
PREFERRED_ADDRESS = HeaderField(0x258, "<Q")
INIT_SIZE = HeaderField(0x260, "<I")

SETUP_HEADER_START = 0x1F1
HEADER_BASE = 0x202
E820_TABLE, E820_LIMIT = 0x2D0, 128
SECTOR = 512
DEFAULT_SETUP_SECTORS = 4
OLDEST_VERSION = 0x020C
KERNEL_64 = 1
LOADER_UNDEFINED = 0xFF
LOADED_HIGH, KASLR, CAN_USE_HEAP = 1, 2, 0x80
ENTRY_64_OFFSET = 0x200
HEADER_MAGIC_VALUE = 0x53726448
BOOT_FLAG_VALUE = 0xAA55
ELF_INITRD_MAXIMUM = 0x7FFF_FFFF
HEAP_END_OFFSET = 0xFE00


def load_bzimage(data: bytes, path: Path, memory: GuestMemory, options: LoadOptions) -> EntryState:
    """Load a bzImage; enter the unpacked kernel or the decompressor, as the options say."""
    _check_header(data, path)
    setup_size = ((SETUP_SECTORS.read(data) or DEFAULT_SETUP_SECTORS) + 1) * SECTOR
    page = bytearray(PAGE_SIZE)
    header_end = HEADER_BASE + HEADER_JUMP.read(data)
    page[SETUP_HEADER_START:header_end] = data[SETUP_HEADER_START:header_end]
    kernel = _unpacked_kernel(data, setup_size, path) if options.kernel_entry == "elf" else None
    if kernel is not None:
        image = parse_elf(kernel, path)
        load_segments(image, path, memory)
        entry, end = image.entry_physical(), image.end
        # There was no decompressor to place the kernel at random.
        LOAD_FLAGS.write(page, LOAD_FLAGS.read(data) & ~KASLR)
    else:
        entry, end = _load_protected_mode(data[setup_size:], data, path, memory)
    return _enter(page, entry, end, INITRD_MAXIMUM.read(data), COMMAND_LINE_SIZE.read(data), memory, options)


def load_elf(data: bytes, path: Path, memory: GuestMemory, options: LoadOptions) -> EntryState:
    """Load an uncompressed kernel (``vmlinux``) and enter its ``startup_64``."""
    image = parse_elf(data, path)
    if image.bits != 64:
        raise ImageError(f"image {path}: a 32-bit Linux kernel; only 64-bit kernels can be entered directly")
    load_segments(image, path, memory)
    page = bytearray(PAGE_SIZE)
    BOOT_FLAG.write(page, BOOT_FLAG_VALUE)
    HEADER_MAGIC.write(page, HEADER_MAGIC_VALUE)
    VERSION.write(page, 0x020F)
    LOAD_FLAGS.write(page, LOADED_HIGH)
    return _enter(page, image.entry_physical(), image.end, ELF_INITRD_MAXIMUM, 2047, memory, options)


def _check_header(data: bytes, path: Path) -> None:
    if len(data) < INIT_SIZE.offset + 4:
        raise ImageError(f"image {path}: truncated in the Linux setup header")
    version = VERSION.read(data)
    if version < OLDEST_VERSION or not EXTENDED_FLAGS.read(data) & KERNEL_64:
        raise ImageError(
            f"image {path}: boot protocol {version >> 8}.{version & 0xFF:02}, "
            "without a 64-bit entry point; a 64-bit kernel of version 3.8 or newer has one"
        )


def _unpacked_kernel(data: bytes, setup_size: int, path: Path) -> bytes | None:
    """The ELF kernel inside a bzImage; None if its compression is unknown here."""
    start = setup_size + PAYLOAD_OFFSET.read(data)
    size = PAYLOAD_SIZE.read(data)
    if start + size > len(data):
        raise ImageError(
            f"image {path}: truncated: its payload is bytes {start:#x}-{start + size:#x}, it has {len(data):#x}"
        )
    kernel = unpack(data[start : start + size])
    return kernel if kernel is not None and kernel.startswith(ELF_MAGIC) else None


def _load_protected_mode(code: bytes, data: bytes, path: Path, memory: GuestMemory) -> tuple[int, int]:
    """Place the protected-mode part at its preferred address; 64-bit entry point and end of the area it works in."""
    address = PREFERRED_ADDRESS.read(data)
    end = address + max(INIT_SIZE.read(data), len(code))
    try:
        memory.host_offset(address, end - address)
    except GuestMemoryError as error:
        raise ImageError(f"image {path}: the kernel needs {address:#x}-{end:#x}; give more memory ({error})") from error
    memory.write(address, code)
    return address + ENTRY_64_OFFSET, end


def _enter(
    page: bytearray,
    entry: int,
    kernel_end: int,
    initrd_maximum: int,
    command_line_size: int,
    memory: GuestMemory,
    options: LoadOptions,
) -> EntryState:
    """Fill in the zero page, place command line and initrd."""
    if not memory.contains(entry):
        raise ImageError(f"the kernel's entry point {entry:#x} is outside RAM")
    command_line = options.encoded_command_line
    limit = min(command_line_size or 255, COMMAND_LINE_LIMIT - 1)
    if len(command_line) > limit:
        raise ImageError(f"the kernel takes a command line of {limit} bytes, not {len(command_line)}; shorten it")
    memory.write(COMMAND_LINE_ADDRESS, command_line + b"\0")
    COMMAND_LINE.write(page, COMMAND_LINE_ADDRESS)
    LOADER_TYPE.write(page, LOADER_UNDEFINED)
    LOAD_FLAGS.write(page, LOAD_FLAGS.read(bytes(page)) | LOADED_HIGH | CAN_USE_HEAP)
    HEAP_END.write(page, HEAP_END_OFFSET)
    RSDP_ADDRESS.write(page, options.rsdp)
    entries = memory.e820()[:E820_LIMIT]
    E820_COUNT.write(page, len(entries))
    for i, e in enumerate(entries):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * i, e.base, e.size, e.type)
    if options.initrd is not None:
        address, size = _load_initrd(options.initrd, kernel_end, initrd_maximum, memory)
        RAMDISK_IMAGE.write(page, address)
        RAMDISK_SIZE.write(page, size)
    memory.write(ZERO_PAGE_ADDRESS, page)
    return long_mode_entry(memory, entry, {"rsi": ZERO_PAGE_ADDRESS})


def _load_initrd(path: Path, kernel_end: int, maximum: int, memory: GuestMemory) -> tuple[int, int]:
    """As high as RAM below 4 GiB and the kernel allow; address and size."""
    contents = read_image(path, "initrd")
    top = min(memory.regions[0].end, maximum + 1)
    address = (top - len(contents)) // PAGE_SIZE * PAGE_SIZE
    if address < kernel_end:
        raise ImageError(
            f"initrd {path}: {len(contents) >> 10} KiB do not fit between the kernel's end {kernel_end:#x} "
            f"and {top:#x}; give more memory"
        )
    memory.write(address, contents)
    return address, len(contents)
