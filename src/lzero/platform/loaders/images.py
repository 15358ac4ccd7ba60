"""Which loader an image needs, and loading it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lzero.errors import ImageError
from lzero.platform.loaders.entry import EntryMode, EntryState
from lzero.platform.memory import GuestMemory

__all__ = ["ImageKind", "LoadOptions", "Module", "detect", "load", "read_image"]

ELF_MAGIC = b"\x7fELF"
BOOT_FLAG_OFFSET, BOOT_FLAG = 0x1FE, 0xAA55
LINUX_MAGIC_OFFSET, LINUX_MAGIC = 0x202, b"HdrS"
LINUX_BANNER = b"Linux version "
MULTIBOOT_MAGIC = 0x1BADB002
MULTIBOOT_SEARCH = 8192
LARGEST_IMAGE = 1 << 31
MULTIBOOT2_MAGIC = (0xE85250D6).to_bytes(4, "little")
MULTIBOOT2_SEARCH = 32768
FOREIGN = (
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"07070", "a cpio archive; give it with --initrd, and a kernel as the image"),
    (b"!<arch>", "an archive (a Debian package?); unpack it and give the kernel in it"),
    (b"QFI\xfb", "a qcow2 disk image; there is no disk and no firmware to boot from it"),
    (b"MZ", "an EFI or DOS executable without a Linux boot header"),
)
"""Files that people give by mistake, by their first bytes, and what to do."""


class ImageKind(Enum):
    """The boot protocols."""

    MULTIBOOT = "multiboot"
    LINUX = "linux"
    LINUX_ELF = "linux-elf"
    FLAT = "flat"


@dataclass(frozen=True, slots=True)
class Module:
    """A multiboot module: a file and the string the kernel finds beside it."""

    path: Path
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What to load with the image.

    Parameters
    ----------
    args, append:
        Words of the guest's command line; ``append`` comes last.
    initrd:
        Linux: initial RAM disk. Multiboot: the first module.
    modules:
        Multiboot modules.
    kernel_entry:
        Linux: ``elf`` enters the unpacked kernel directly (if the payload can be unpacked here), ``decompressor``
        leaves that to the image's own code.
    load_address:
        Load as a flat binary at this guest-physical address, whatever the file looks like.
    entry_mode:
        Processor mode in which a flat binary is entered.
    rsdp:
        Guest-physical address of the ACPI root pointer, for Linux; 0 if there is none.
    """

    args: tuple[str, ...] = ()
    append: str = ""
    initrd: Path | None = None
    modules: tuple[Module, ...] = ()
    kernel_entry: str = "elf"
    load_address: int | None = None
    entry_mode: EntryMode = EntryMode.PROTECTED32
    rsdp: int = 0

    @property
    def encoded_command_line(self) -> bytes:
        """The words, without the image's name."""
        return os.fsencode(" ".join(word for word in (*self.args, self.append) if word))


def read_image(path: Path, what: str = "image") -> bytes:
    """The file's bytes.

    Raises
    ------
    ImageError
        If it is missing, unreadable, empty or larger than 2 GiB.
    """
    try:
        if path.stat().st_size > LARGEST_IMAGE:
            raise ImageError(
                f"{what} {path}: {path.stat().st_size >> 20} MiB is larger than any guest image; wrong file?"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{what} {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data:
        raise ImageError(f"{what} {path}: the file is empty")
    return data


def find_multiboot_header(data: bytes) -> int | None:
    """Offset of a multiboot 1 header: 4-byte aligned in the first 8 KiB, with a right checksum."""
    for offset in range(0, min(len(data), MULTIBOOT_SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset
    return None


def _kind(data: bytes, name: str) -> ImageKind:
    if find_multiboot_header(data) is not None:
        return ImageKind.MULTIBOOT
    if data[LINUX_MAGIC_OFFSET : LINUX_MAGIC_OFFSET + 4] == LINUX_MAGIC and _has_boot_flag(data):
        return ImageKind.LINUX
    if data[:4] == ELF_MAGIC:
        if LINUX_BANNER in data:
            return ImageKind.LINUX_ELF
        if MULTIBOOT2_MAGIC in data[:MULTIBOOT2_SEARCH]:
            raise ImageError(f"image {name}: a multiboot 2 kernel; build it with a multiboot 1 header")
        raise ImageError(
            f"image {name}: an ELF file without a multiboot header in its first 8 KiB, and no Linux kernel"
        )
    for magic, what in FOREIGN:
        if data.startswith(magic):
            raise ImageError(f"image {name}: {what}")
    raise ImageError(
        f"image {name}: neither a multiboot kernel nor a Linux bzImage; "
        "if it is a flat binary, say where to load it (--load-address)"
    )


def _has_boot_flag(data: bytes) -> bool:
    return len(data) > BOOT_FLAG_OFFSET + 1 and struct.unpack_from("<H", data, BOOT_FLAG_OFFSET)[0] == BOOT_FLAG


def detect(path: Path) -> ImageKind:
    """The boot protocol an image speaks; ImageError if it is none of them."""
    return _kind(read_image(path), str(path))


def load(image: Path, memory: GuestMemory, options: LoadOptions | None = None) -> EntryState:
    """Load a guest into memory.

    Raises
    ------
    ImageError
        If the image or a file that goes with it is missing, damaged, foreign, or does not fit into memory.
    """
    from lzero.platform.loaders import flat, linux, multiboot

    options = options or LoadOptions()
    data = read_image(image)
    if options.load_address is not None:
        return flat.load(data, image, memory, options)
    kind = _kind(data, str(image))
    if kind is ImageKind.MULTIBOOT:
        return multiboot.load(data, image, memory, options)
    if kind is ImageKind.LINUX_ELF:
        return linux.load_elf(data, image, memory, options)
    return linux.load_bzimage(data, image, memory, options)
