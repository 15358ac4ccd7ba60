"""Flat binaries: bytes at an address, entered at their first byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import ImageError
from lzero.platform.loaders.entry import (
    EntryMode,
    EntryState,
    long_mode_entry,
    protected_mode_entry,
    real_mode_entry,
)
from lzero.platform.memory import GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from lzero.platform.loaders.images import LoadOptions

__all__ = ["load"]

REAL_MODE_END = 0x10_0000
IDENTITY_MAP_END = 0x1_0000_0000


def load(data: bytes, path: Path, memory: GuestMemory, options: LoadOptions) -> EntryState:
    """Copy the binary to its address; enter it there in the mode the options say."""
    address = options.load_address or 0
    limit = REAL_MODE_END if options.entry_mode is EntryMode.REAL16 else IDENTITY_MAP_END
    if address >= limit:
        raise ImageError(
            f"image {path}: load address {address:#x} cannot be entered in mode {options.entry_mode}; "
            f"choose one below {limit:#x}"
        )
    if options.entry_mode is EntryMode.REAL16:
        state = real_mode_entry(address)
    elif options.entry_mode is EntryMode.LONG64:
        state = long_mode_entry(memory, address, {})
    else:
        state = protected_mode_entry(memory, address, {})
    try:
        memory.write(address, data)
    except GuestMemoryError as error:
        raise ImageError(f"image {path}: {len(data):#x} bytes do not fit at {address:#x}: {error}") from error
    return state
