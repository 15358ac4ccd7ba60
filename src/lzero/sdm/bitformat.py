"""Bit formats as data: a frozen dataclass whose fields say which bits they are.

::

    @dataclass(frozen=True)
    class MovDr(BitFormat):
        register: int = bits(2, 0)
        from_dr: bool = bits(4, 4)

gives ``MovDr(7).pack()``, ``MovDr.unpack(0x17)`` and a printable form. A value that does not fit raises ValueError; it
is never masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Self, cast, get_type_hints

__all__ = ["BitFormat", "bits"]


def bits(msb: int, lsb: int, default: int = 0) -> Any:  # noqa: ANN401 - stands for a field of any integer type
    """A field of a :class:`BitFormat` in bits ``msb`` down to ``lsb``."""
    return field(default=default, metadata={"lsb": lsb, "width": msb - lsb + 1})


@dataclass(frozen=True)
class _Layout:
    name: str
    lsb: int
    limit: int
    convert: type[int]


# Filled on first use of a class: type hints cannot be resolved while its module is still being imported.
_LAYOUTS: dict[type[BitFormat], tuple[_Layout, ...]] = {}
_DEFINED: dict[type[BitFormat], int] = {}


def _layout(cls: type[BitFormat]) -> tuple[_Layout, ...]:
    layout = _LAYOUTS.get(cls)
    if layout is None:
        hints = get_type_hints(cls)
        layout = _LAYOUTS[cls] = tuple(
            _Layout(f.name, f.metadata["lsb"], 1 << f.metadata["width"], cast("type[int]", hints[f.name]))
            for f in fields(cls)
        )
    return layout


@dataclass(frozen=True)
class BitFormat:
    """Base of all formats; subclasses list their fields with :func:`bits`."""

    def __post_init__(self) -> None:
        for item in _layout(type(self)):
            value = getattr(self, item.name)
            if not 0 <= value < item.limit:
                where = f"{type(self).__name__}.{item.name}"
                raise ValueError(f"{where}: {value:#x} does not fit in 0..{item.limit - 1:#x}")

    @classmethod
    def defined_bits(cls) -> int:
        """Mask of the bits that some field covers; the others are reserved."""
        mask = _DEFINED.get(cls)
        if mask is None:
            mask = _DEFINED[cls] = sum(int(item.limit - 1) << item.lsb for item in _layout(cls))
        return mask

    @classmethod
    def unpack(cls, value: int) -> Self:
        """Decode ``value``.

        Raises
        ------
        ValueError
            A bit that no field covers is 1.
        """
        stray = value & ~cls.defined_bits()
        if stray:
            raise ValueError(f"{cls.__name__}: reserved bits {stray:#x} are set in {value:#x}")
        return cls(**{i.name: i.convert(value >> i.lsb & (i.limit - 1)) for i in _layout(cls)})

    @classmethod
    def unpack_lenient(cls, value: int) -> Self:
        """Decode ``value`` from a source that may have reserved bits set: they are dropped, which loses them."""
        return cls.unpack(value & cls.defined_bits())

    def pack(self) -> int:
        """The encoded value."""
        return sum(int(getattr(self, item.name)) << item.lsb for item in _layout(type(self)))

    def __str__(self) -> str:
        parts = []
        for item in _layout(type(self)):
            value = getattr(self, item.name)
            if isinstance(value, bool) or item.convert is bool:
                if value:
                    parts.append(item.name)
            elif isinstance(value, IntEnum):
                parts.append(f"{item.name}={value.name}")
            else:
                parts.append(f"{item.name}={value:#x}" if value > 9 else f"{item.name}={value}")
        return f"{type(self).__name__}({' '.join(parts)})"
