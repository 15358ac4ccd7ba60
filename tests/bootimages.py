"""Boot images from small records: a bad-input test is one record with one field changed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

MULTIBOOT_MAGIC = 0x1BADB002


@dataclass(frozen=True)
class MultibootHeader:
    """A multiboot 1 header; ``addresses`` are header, load, load end, bss end, entry."""

    flags: int = 3
    addresses: tuple[int, int, int, int, int] | None = None

    def encode(self) -> bytes:
        """Magic, flags, checksum, and the addresses if there are any."""
        flags = self.flags | (1 << 16 if self.addresses else 0)
        words = [MULTIBOOT_MAGIC, flags, -(MULTIBOOT_MAGIC + flags) & 0xFFFFFFFF, *(self.addresses or ())]
        return struct.pack(f"<{len(words)}I", *words)


@dataclass(frozen=True)
class Elf:
    """An ELF executable with one loadable segment that holds ``body``."""

    body: bytes
    bits: int = 32
    machine: int = 3
    physical: int = 0x100000
    virtual: int | None = None
    entry: int = 0x100000
    extra_memory: int = 0
    file_size: int | None = None

    def encode(self) -> bytes:
        """The file."""
        wide = self.bits == 64
        offset = 0x1000
        virtual = self.physical if self.virtual is None else self.virtual
        size = len(self.body) if self.file_size is None else self.file_size
        memory = len(self.body) + self.extra_memory
        ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        header_size, program_size, word = (64, 56, "Q") if wide else (52, 32, "I")
        header = ident + struct.pack(
            f"<HHI{word}{word}{word}IHHHHHH",
            2,
            self.machine,
            1,
            self.entry,
            header_size,
            0,
            0,
            header_size,
            program_size,
            1,
            0,
            0,
            0,
        )
        if wide:
            program = struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, self.physical, size, memory, 0x1000)
        else:
            program = struct.pack("<IIIIIIII", 1, offset, virtual, self.physical, size, memory, 7, 0x1000)
        return (header + program).ljust(offset, b"\0") + self.body


@dataclass(frozen=True)
class BzImage:
    """A Linux bzImage: one setup sector beside the boot sector, then the protected-mode part."""

    payload: bytes = b""
    version: int = 0x020F
    extended_flags: int = 1
    command_line_size: int = 2047
    initrd_maximum: int = 0x7FFFFFFF
    preferred_address: int = 0x1000000
    init_size: int = 0x100000
    payload_size: int | None = None

    def encode(self) -> bytes:
        """The file."""
        setup = bytearray(1024)
        setup[0x1F1] = 1
        struct.pack_into("<H", setup, 0x1FE, 0xAA55)
        setup[0x201] = 0x6A
        setup[0x202:0x206] = b"HdrS"
        struct.pack_into("<H", setup, 0x206, self.version)
        setup[0x211] = 3
        struct.pack_into("<I", setup, 0x22C, self.initrd_maximum)
        struct.pack_into("<H", setup, 0x236, self.extended_flags)
        struct.pack_into("<I", setup, 0x238, self.command_line_size)
        size = len(self.payload) if self.payload_size is None else self.payload_size
        struct.pack_into("<II", setup, 0x248, 0x400, size)
        struct.pack_into("<QI", setup, 0x258, self.preferred_address, self.init_size)
        return bytes(setup) + b"\xcc" * 0x400 + self.payload


def multiboot_elf(**fields: object) -> bytes:
    """A multiboot ELF whose body begins with the header; fields of :class:`Elf` may be changed."""
    body = MultibootHeader().encode() + b"\xf4" * 20
    return replace(Elf(body=body), **fields).encode()  # type: ignore[arg-type]  # fields come by name from the tests
