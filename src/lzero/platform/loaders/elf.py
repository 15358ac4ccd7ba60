"""ELF executables as the loaders need them: entry point and loadable segments."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from lzero.errors import ImageError
from lzero.platform.memory import GuestMemory, GuestMemoryError

__all__ = ["ElfImage", "ElfSegment", "load_segments", "parse_elf"]

MACHINES = ("EM_386", "EM_X86_64")


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """A loadable segment: where it goes, its bytes, and its size in memory."""

    physical: int
    virtual: int
    data: bytes
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable; ``bits`` is 32 or 64."""

    bits: int
    entry: int
    segments: tuple[ElfSegment, ...]

    @property
    def end(self) -> int:
        """First physical address behind everything loaded."""
        return max(s.physical + s.memory_size for s in self.segments)

    def entry_physical(self) -> int:
        """The entry point as a physical address: some linkers give it as a virtual one."""
        for s in self.segments:
            if s.virtual <= self.entry < s.virtual + s.memory_size:
                return self.entry - s.virtual + s.physical
        return self.entry


def parse_elf(data: bytes, path: Path) -> ElfImage:
    """Read the headers.

    Raises
    ------
    ImageError
        If the file is damaged, truncated, for another processor, or has nothing to load.
    """
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf["e_machine"] not in MACHINES:
            raise ImageError(f"image {path}: an ELF file for {elf['e_machine']}, not for x86")
        headers = [segment.header for segment in elf.iter_segments() if segment.header.p_type == "PT_LOAD"]
        bits, entry = elf.elfclass, elf.header.e_entry
    except (ELFError, ConstructError, ValueError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        raise ImageError(f"image {path}: a damaged ELF file ({error or type(error).__name__})") from error
    segments = []
    for h in headers:
        if h.p_offset + h.p_filesz > len(data) or h.p_filesz > h.p_memsz:
            raise ImageError(
                f"image {path}: truncated or damaged: a segment wants bytes {h.p_offset:#x}-"
                f"{h.p_offset + h.p_filesz:#x} of a file of {len(data):#x}"
            )
        if h.p_memsz:
            contents = data[h.p_offset : h.p_offset + h.p_filesz]
            segments.append(ElfSegment(h.p_paddr, h.p_vaddr, contents, h.p_memsz))
    if not segments:
        raise ImageError(f"image {path}: an ELF file with nothing to load (an object file or a library?)")
    return ElfImage(bits, entry, tuple(segments))


def load_segments(image: ElfImage, path: Path, memory: GuestMemory) -> None:
    """Copy the segments to their physical addresses; what the file does not hold is zero already in a new machine,
    and is cleared.
    """
    for s in image.segments:
        try:
            memory.host_offset(s.physical, s.memory_size)
            memory.write(s.physical, s.data)
            memory.fill(s.physical + len(s.data), s.memory_size - len(s.data))
        except GuestMemoryError as error:
            raise ImageError(
                f"image {path}: a segment of {s.memory_size:#x} bytes does not fit at {s.physical:#x}; "
                f"give the guest more memory ({error})"
            ) from error
