"""Filters on rows as people type them: ``level=2``, ``reason=CPUID,HLT``, ``rip>=0xffffffff81000000``,
``duration_us>50``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lzero.errors import UsageError
from lzero.trace.readers.reasons import reason_number
from lzero.trace.schema import COLUMN_NAMES, HandledBy, Isa

if TYPE_CHECKING:
    import polars as pl

__all__ = ["parse_filters"]

_FILTER: Final = re.compile(r"^\s*(?P<name>\w+)\s*(?P<operator>!=|>=|<=|=|>|<)\s*(?P<value>.+?)\s*$")
_SHORT: Final = {
    "field": "vmcs_field",
    "gpa": "guest_physical_address",
    "duration_us": "duration_ns",
    "time_s": "host_ns",
}
_SCALE: Final = {"duration_us": 1e3, "time_s": 1e9}


def parse_filters(texts: Sequence[str]) -> pl.Expr:
    """One expression that is true for the rows every filter lets through.

    Raises
    ------
    UsageError
        A filter is not of the form NAME OPERATOR VALUE, or its name or value is unknown.
    """
    import polars as pl

    result = pl.lit(True)
    for text in texts:
        result = result & _parse(text)
    return result


def _parse(text: str) -> pl.Expr:
    import polars as pl

    match = _FILTER.match(text)
    if match is None:
        raise UsageError(f"filter {text!r}: expected NAME=VALUE, or !=, <, <=, >, >= instead of =")
    name = match["name"]
    column = _SHORT.get(name, name)
    if column not in COLUMN_NAMES:
        raise UsageError(f"filter {text!r}: no column {name!r}; there are {', '.join((*_SHORT, *COLUMN_NAMES))}")
    operator = match["operator"]
    values = [_value(name, column, value.strip(), text) for value in match["value"].split(",")]
    if operator in ("=", "!="):
        chosen = pl.any_horizontal([_equals(column, value) for value in values])
        return chosen if operator == "=" else ~chosen
    if len(values) != 1:
        raise UsageError(f"filter {text!r}: {operator} takes one value")
    here, limit = pl.col(column), values[0][1]
    return {"<": here < limit, "<=": here <= limit, ">": here > limit, ">=": here >= limit}[operator]


def _equals(column: str, value: tuple[Isa | None, int]) -> pl.Expr:
    import polars as pl

    isa, number = value
    equal = pl.col(column) == number
    return equal & (pl.col("isa") == int(isa)) if isa is not None else equal


def _value(name: str, column: str, value: str, text: str) -> tuple[Isa | None, int]:
    """Numbering (for reasons) and number of a value."""
    try:
        if column in ("reason", "parent_reason"):
            found = reason_number(value) or reason_number(value.upper())
            if found is not None:
                return (found[0] if column == "reason" else None), found[1]
        elif column == "vmcs_field" and not value[:1].isdigit():
            from lzero.trace.names import field_number

            return None, field_number(value)
        elif column == "handled_by" and value.upper() in HandledBy.__members__:
            return None, HandledBy[value.upper()]
        elif name in _SCALE:
            return None, round(float(value) * _SCALE[name])
        elif column == "failed_entry" and value.lower() in ("true", "false"):
            return None, int(value.lower() == "true")
        return None, int(value, 0)
    except (ValueError, KeyError) as error:
        raise UsageError(f"filter {text!r}: {value!r} is no value of {name}") from error
