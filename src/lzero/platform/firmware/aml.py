"""A few ACPI machine language terms, enough to write a small DSDT (ACPI 6.5, chapter 20).

Terms are plain values with an ``encode`` method; there is nothing to parse and nothing to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Buffer",
    "Device",
    "EisaId",
    "Integer",
    "IoPorts",
    "Irq",
    "Name",
    "Package",
    "Resources",
    "Scope",
    "Term",
]

NAME_OP, BUFFER_OP, PACKAGE_OP, SCOPE_OP = 0x08, 0x11, 0x12, 0x10
DEVICE_OP = b"\x5b\x82"
ZERO_OP, ONE_OP = 0x00, 0x01
INTEGER_PREFIXES = ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8))
SMALL_PACKAGE = 0x3F
IO_DESCRIPTOR, IRQ_DESCRIPTOR, END_TAG = 0x47, 0x22, b"\x79\x00"
DECODE_16_BITS = 1


class Term(Protocol):
    """Anything that can stand in a definition block."""

    def encode(self) -> bytes:
        """The term's AML."""
        ...


def package_length(size: int) -> bytes:
    """PkgLength for ``size`` bytes that follow it; the length counts its own bytes (20.2.4)."""
    if size + 1 <= SMALL_PACKAGE:
        return bytes([size + 1])
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML package of {size} bytes is too long")


def name_string(path: str) -> bytes:
    """A name path: an optional root, then one segment of up to four characters."""
    root, segment = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    if not 1 <= len(segment) <= 4:
        raise ValueError(f"AML name {path!r} is not one segment of 1 to 4 characters")
    return root + segment.ljust(4, "_").encode("ascii")


@dataclass(frozen=True, slots=True)
class Integer:
    """A constant in its shortest encoding."""

    value: int

    def encode(self) -> bytes:
        """The term's AML."""
        if self.value in (ZERO_OP, ONE_OP):
            return bytes([self.value])
        for prefix, size in INTEGER_PREFIXES:
            if 0 <= self.value < 1 << 8 * size:
                return bytes([prefix]) + self.value.to_bytes(size, "little")
        raise ValueError(f"{self.value:#x} is no 64-bit AML integer")


@dataclass(frozen=True, slots=True)
class EisaId:
    """A compressed hardware ID such as ``PNP0501`` (19.6.36): three letters and four hexadecimal digits, big endian."""

    text: str

    def encode(self) -> bytes:
        """The term's AML."""
        letters = [ord(c) - ord("A") + 1 for c in self.text[:3]]
        number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(self.text[3:], 16)
        return b"\x0c" + number.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A byte buffer."""

    data: bytes

    def encode(self) -> bytes:
        """The term's AML."""
        body = Integer(len(self.data)).encode() + self.data
        return bytes([BUFFER_OP]) + package_length(len(body)) + body


@dataclass(frozen=True, slots=True)
class Package:
    """A list of values."""

    elements: Sequence[Term]

    def encode(self) -> bytes:
        """The term's AML."""
        body = bytes([len(self.elements)]) + b"".join(element.encode() for element in self.elements)
        return bytes([PACKAGE_OP]) + package_length(len(body)) + body


@dataclass(frozen=True, slots=True)
class Name:
    """A named value."""

    path: str
    value: Term

    def encode(self) -> bytes:
        """The term's AML."""
        return bytes([NAME_OP]) + name_string(self.path) + self.value.encode()


@dataclass(frozen=True, slots=True)
class Scope:
    """Terms inside an existing object."""

    path: str
    terms: Sequence[Term]

    def encode(self) -> bytes:
        """The term's AML."""
        body = name_string(self.path) + b"".join(term.encode() for term in self.terms)
        return bytes([SCOPE_OP]) + package_length(len(body)) + body


@dataclass(frozen=True, slots=True)
class Device:
    """A device object."""

    path: str
    terms: Sequence[Term]

    def encode(self) -> bytes:
        """The term's AML."""
        body = name_string(self.path) + b"".join(term.encode() for term in self.terms)
        return DEVICE_OP + package_length(len(body)) + body


@dataclass(frozen=True, slots=True)
class IoPorts:
    """Resource descriptor: ``count`` fixed I/O ports (6.4.2.5)."""

    first: int
    count: int

    def encode(self) -> bytes:
        """The descriptor's bytes."""
        first = self.first.to_bytes(2, "little")
        return bytes([IO_DESCRIPTOR, DECODE_16_BITS]) + first + first + bytes([1, self.count])


@dataclass(frozen=True, slots=True)
class Irq:
    """Resource descriptor: an edge-triggered ISA interrupt (6.4.2.1)."""

    number: int

    def encode(self) -> bytes:
        """The descriptor's bytes."""
        return bytes([IRQ_DESCRIPTOR]) + (1 << self.number).to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class Resources:
    """A resource template: descriptors and the end tag, as a buffer."""

    descriptors: Sequence[IoPorts | Irq]

    def encode(self) -> bytes:
        """The term's AML."""
        return Buffer(b"".join(descriptor.encode() for descriptor in self.descriptors) + END_TAG).encode()
