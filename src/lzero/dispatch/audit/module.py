"""A relocatable kernel module: its sections, symbols and relocations, checked on the way in.

Nothing read from the file is trusted: every offset is checked against the file's size before it is used, and a file
that does not hold together is one :class:`~lzero.errors.ImageError`.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lzero.dispatch.audit.compression import read_module_bytes
from lzero.errors import ImageError

__all__ = ["KernelModule", "Relocation", "Section", "Symbol", "load_module"]

_SHF_WRITE = 0x1
_SHF_ALLOC = 0x2
_SHF_EXECINSTR = 0x4
_SHT_NOBITS = "SHT_NOBITS"
_STT_OBJECT = 1
_STT_FUNC = 2
_STT_SECTION = 3
_SHN_LORESERVE = 0xFF00

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

R_X86_64_64 = 1
R_X86_64_PC32 = 2
R_X86_64_PLT32 = 4
R_X86_64_32S = 11


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol: ``section`` is the section's index, or None for one that another module or the kernel defines."""

    name: str
    section: int | None
    offset: int
    size: int
    kind: int

    @property
    def is_function(self) -> bool:
        """Whether the symbol is marked as a function."""
        return self.kind == _STT_FUNC


@dataclass(frozen=True, slots=True)
class Relocation:
    """One relocation with addend: at ``offset`` of the section it belongs to."""

    offset: int
    type: int
    symbol: Symbol
    addend: int

    @property
    def target(self) -> tuple[int | None, int]:
        """Section index and offset that the stored *address* denotes (for an address field, not a branch)."""
        return self.symbol.section, self.symbol.offset + self.addend


@dataclass(frozen=True, slots=True)
class Section:
    """One section with its bytes (empty for one without contents) and its relocations in order of offset."""

    index: int
    name: str
    flags: int
    size: int
    data: bytes
    relocations: tuple[Relocation, ...] = ()

    @property
    def executable(self) -> bool:
        """Whether the section holds instructions that are loaded."""
        return self.flags & (_SHF_EXECINSTR | _SHF_ALLOC) == _SHF_EXECINSTR | _SHF_ALLOC

    @property
    def writable(self) -> bool:
        """Whether the section is mapped writable (``.data..ro_after_init`` still counts: it is writable during
        init).
        """
        return bool(self.flags & _SHF_WRITE)

    def relocations_in(self, start: int, end: int) -> tuple[Relocation, ...]:
        """Relocations whose field starts in ``start <= offset < end``."""
        first = bisect.bisect_left(self.relocations, start, key=lambda relocation: relocation.offset)
        last = bisect.bisect_left(self.relocations, end, key=lambda relocation: relocation.offset)
        return self.relocations[first:last]


@dataclass(frozen=True, slots=True)
class KernelModule:
    """A kernel module as far as an audit needs it."""

    path: Path
    name: str
    version_magic: str | None
    compilers: tuple[str, ...]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    functions: Mapping[int, tuple[Symbol, ...]] = field(repr=False)
    """Function symbols by section index, in order of offset; padding symbols (``__pfx_``) are left out."""

    def section(self, name: str) -> Section | None:
        """The first section of that name, or None."""
        return next((section for section in self.sections if section.name == name), None)

    def symbol(self, name: str) -> Symbol | None:
        """The first defined symbol of that name, or None."""
        return next((symbol for symbol in self.symbols if symbol.name == name and symbol.section is not None), None)

    def function_at(self, section: int | None, offset: int) -> Symbol | None:
        """The function whose bytes hold ``offset``, or None where no function symbol covers it."""
        if section is None:
            return None
        functions = self.functions.get(section, ())
        index = bisect.bisect_right(functions, offset, key=lambda symbol: symbol.offset) - 1
        # Aliases share an offset; the covering one may be a few entries back.
        for symbol in functions[max(index - 3, 0) : index + 1][::-1]:
            if symbol.offset <= offset < symbol.offset + symbol.size:
                return symbol
        return None

    def describe_address(self, section: int | None, offset: int, external: str = "") -> str:
        """A readable name for an address: ``function``, ``function+0x12``, ``symbol`` or ``.data+0x40``."""
        if section is None:
            return f"{external}+{offset:#x}" if offset else external
        function = self.function_at(section, offset)
        if function is not None:
            return function.name if function.offset == offset else f"{function.name}+{offset - function.offset:#x}"
        for symbol in self.symbols:
            if (
                symbol.section == section
                and symbol.kind == _STT_OBJECT
                and symbol.offset <= offset < symbol.offset + symbol.size
            ):
                return symbol.name if symbol.offset == offset else f"{symbol.name}+{offset - symbol.offset:#x}"
        return f"{self.sections[section].name}+{offset:#x}"

    @property
    def function_count(self) -> int:
        """Number of named functions; ``.cold`` halves count with their function and aliases once."""
        return sum(
            len({symbol.offset for symbol in functions if not symbol.name.endswith(".cold")})
            for functions in self.functions.values()
        )


def load_module(path: Path) -> KernelModule:
    """Read the module at ``path`` (plain or packed).

    Raises
    ------
    ImageError
        The file is missing, truncated, packed in an unknown way, not ELF, not x86-64, not a relocatable object, or
        stripped.
    """
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError

    data = read_module_bytes(path)
    if not data.startswith(b"\x7fELF"):
        raise ImageError(
            f"{path}: not an ELF file and not packed with xz, zstd or gzip (first bytes {data[:4].hex(' ')}); "
            "give a kernel module such as kvm-intel.ko"
        )
    try:
        return _Loader(path, data).load()
    except ImageError:
        raise
    except (
        ELFError,
        ConstructError,
        ValueError,
        KeyError,
        IndexError,
        OverflowError,
        AttributeError,
        TypeError,
    ) as error:
        # pyelftools reports damaged headers through all of these.
        raise ImageError(
            f"{path}: the ELF structure is damaged or cut short ({error}); fetch the module again"
        ) from error


class _Loader:
    """Turns the bytes of an ELF file into a :class:`KernelModule`."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data

    def load(self) -> KernelModule:
        from elftools.elf.elffile import ELFFile

        elf = ELFFile(io.BytesIO(self.data))
        machine = elf["e_machine"]
        if elf.elfclass != 64 or machine != "EM_X86_64" or not elf.little_endian:
            raise ImageError(
                f"{self.path}: built for {machine} ({elf.elfclass} bit), only x86-64 modules can be audited"
            )
        if elf["e_type"] != "ET_REL":
            raise ImageError(
                f"{self.path}: an ELF file of type {elf['e_type']}, not a kernel module (ET_REL); "
                "a linked image keeps no relocations to audit"
            )
        headers = self._headers(elf)
        names = [header.name for header in headers]
        symbol_table = next((i for i, header in enumerate(headers) if header["sh_type"] == "SHT_SYMTAB"), None)
        if symbol_table is None:
            raise ImageError(
                f"{self.path}: stripped: it has no symbol table, so functions and targets have no names; {_HINT}"
            )
        symbols = self._symbols(headers, symbol_table)
        sections = self._sections(headers, symbols)
        functions = _functions_by_section(symbols)
        if not functions:
            raise ImageError(f"{self.path}: stripped: its symbol table names no function; {_HINT}")
        if not any(section.relocations for section in sections if section.executable):
            raise ImageError(
                f"{self.path}: it has no relocations for its code, so branch targets cannot be told; {_HINT}"
            )
        info = _modinfo(sections, names)
        return KernelModule(
            path=self.path,
            name=info.get("name", self.path.name.split(".")[0]),
            version_magic=info.get("vermagic"),
            compilers=_compilers(sections),
            sections=sections,
            symbols=tuple(symbols),
            functions=functions,
        )

    def _headers(self, elf: Any) -> list[Any]:
        table_end = elf["e_shoff"] + elf["e_shnum"] * elf["e_shentsize"]
        if elf["e_shoff"] == 0 or elf.num_sections() == 0:
            raise ImageError(f"{self.path}: it has no section headers; {_HINT}")
        if table_end > len(self.data):
            raise ImageError(
                f"{self.path}: truncated: its section headers end at {table_end:#x} "
                f"but the file has {len(self.data):#x} bytes"
            )
        headers = list(elf.iter_sections())
        for header in headers:
            end = header["sh_offset"] + header["sh_size"]
            if header["sh_type"] not in (_SHT_NOBITS, "SHT_NULL") and end > len(self.data):
                raise ImageError(
                    f"{self.path}: truncated: section {header.name!r} ends at {end:#x} "
                    f"but the file has {len(self.data):#x} bytes"
                )
        return headers

    def _contents(self, header: Any) -> bytes:
        if header["sh_type"] in (_SHT_NOBITS, "SHT_NULL"):
            return b""
        start = header["sh_offset"]
        return self.data[start : start + header["sh_size"]]

    def _records(self, header: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        contents = self._contents(header)
        if len(contents) % dtype.itemsize:
            raise ImageError(
                f"{self.path}: section {header.name!r} is not a whole number of {dtype.itemsize}-byte records"
            )
        return np.frombuffer(contents, dtype)

    def _symbols(self, headers: list[Any], table: int) -> list[Symbol]:
        strings = self._contents(headers[headers[table]["sh_link"]])
        section_names = [header.name for header in headers]
        symbols: list[Symbol] = []
        for record in self._records(headers[table], _SYMBOL).tolist():
            name_offset, info, _, index, value, size = record
            section = index if 0 < index < _SHN_LORESERVE else None
            if section is not None and section >= len(headers):
                raise ImageError(f"{self.path}: symbol {len(symbols)} is in section {section}, of {len(headers)}")
            kind = info & 0xF
            name = _string(strings, name_offset)
            if kind == _STT_SECTION and section is not None and not name:
                name = section_names[section]
            symbols.append(Symbol(name, section, value, size, kind))
        return symbols

    def _sections(self, headers: list[Any], symbols: list[Symbol]) -> tuple[Section, ...]:
        relocations: dict[int, tuple[Relocation, ...]] = {}
        for header in headers:
            if header["sh_type"] == "SHT_RELA":
                relocations[header["sh_info"]] = self._relocations(header, headers, symbols)
        return tuple(
            Section(
                index=index,
                name=header.name,
                flags=header["sh_flags"],
                size=header["sh_size"],
                data=self._contents(header),
                relocations=relocations.get(index, ()),
            )
            for index, header in enumerate(headers)
        )

    def _relocations(self, header: Any, headers: list[Any], symbols: list[Symbol]) -> tuple[Relocation, ...]:
        target = header["sh_info"]
        if target >= len(headers):
            raise ImageError(f"{self.path}: {header.name!r} relocates section {target}, of {len(headers)}")
        size = headers[target]["sh_size"]
        result: list[Relocation] = []
        for offset, kind, symbol, addend in self._records(header, _RELA).tolist():
            if symbol >= len(symbols) or offset >= size:
                raise ImageError(f"{self.path}: entry {len(result)} of {header.name!r} points outside the file")
            result.append(Relocation(offset, kind, symbols[symbol], addend))
        result.sort(key=lambda relocation: relocation.offset)
        return tuple(result)


_HINT = "take the module from the distribution's kernel package"


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("ascii", "backslashreplace")


def _functions_by_section(symbols: list[Symbol]) -> dict[int, tuple[Symbol, ...]]:
    by_section: dict[int, list[Symbol]] = {}
    for symbol in symbols:
        if symbol.is_function and symbol.section is not None and not symbol.name.startswith("__pfx_"):
            by_section.setdefault(symbol.section, []).append(symbol)
    return {
        index: tuple(sorted(found, key=lambda symbol: (symbol.offset, symbol.size)))
        for index, found in by_section.items()
    }


def _modinfo(sections: tuple[Section, ...], names: list[str]) -> dict[str, str]:
    if ".modinfo" not in names:
        return {}
    pairs = (entry.partition(b"=") for entry in sections[names.index(".modinfo")].data.split(b"\0"))
    return {
        key.decode("ascii", "replace"): value.decode("utf-8", "replace").strip() for key, found, value in pairs if found
    }


def _compilers(sections: tuple[Section, ...]) -> tuple[str, ...]:
    found = next((section.data for section in sections if section.name == ".comment"), b"")
    return tuple(sorted({part.decode("utf-8", "replace") for part in found.split(b"\0") if part}))
