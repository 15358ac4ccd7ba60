"""Names for guest addresses, from an ELF file's symbol table or a kernel's ``System.map``."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from lzero.errors import TraceFormatError, UsageError

__all__ = ["Symbols"]

_FARTHEST = 1 << 20  # an address further behind a symbol than this is in no function of the file


class Symbols:
    """Looks up the symbol an address lies in."""

    def __init__(self, symbols: list[tuple[int, str]]) -> None:
        ordered = sorted(symbols)
        self._addresses = [address for address, _ in ordered]
        self._names = [name for _, name in ordered]

    @classmethod
    def load(cls, path: Path) -> Symbols:
        """Symbols of an ELF file (``.symtab`` or ``.dynsym``) or of lines ``ADDRESS TYPE NAME``.

        Raises
        ------
        UsageError
            The file cannot be opened.
        TraceFormatError
            The file has no symbols.
        """
        try:
            with path.open("rb") as file:
                head = file.read(4)
        except OSError as error:
            raise UsageError(f"cannot open {path}: {error.strerror}") from error
        found = _elf_symbols(path) if head == b"\x7fELF" else _map_symbols(path)
        if not found:
            raise TraceFormatError(f"{path}: no symbols; give an ELF file that is not stripped, or a System.map")
        return cls(found)

    def name(self, address: int) -> str:
        """``symbol+0x12``, or the address in hex where no symbol is near."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0 or address - self._addresses[index] > _FARTHEST:
            return f"0x{address:x}"
        offset = address - self._addresses[index]
        return f"{self._names[index]}+0x{offset:x}" if offset else self._names[index]


def _elf_symbols(path: Path) -> list[tuple[int, str]]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    found = []
    with path.open("rb") as file:
        try:
            elf = ELFFile(file)
            for name in (".symtab", ".dynsym"):
                table = elf.get_section_by_name(name)
                for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                    if symbol["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE") and symbol["st_value"] and symbol.name:
                        found.append((int(symbol["st_value"]), str(symbol.name)))
                if found:
                    break
        except (ELFError, ValueError, KeyError, OverflowError) as error:
            raise TraceFormatError(f"{path}: damaged ELF file: {error}") from error
    return found


def _map_symbols(path: Path) -> list[tuple[int, str]]:
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] in "tTwW":
            try:
                found.append((int(words[0], 16), words[2]))
            except ValueError:
                continue
    return found
