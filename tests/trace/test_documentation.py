"""docs/traces.md says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

from lzero.trace.schema import COLUMNS

PAGE = Path(__file__).resolve().parents[2] / "docs/traces.md"
TYPES = {"u8": "u64", "i8": "i64", "u4": "u32", "i4": "i32", "u2": "u16", "i2": "i16", "u1": "u8", "?": "bool"}


def test_the_table_of_columns_is_the_schema() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (-?\d+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(column.name, TYPES[column.type], str(column.unknown), column.meaning) for column in COLUMNS]
