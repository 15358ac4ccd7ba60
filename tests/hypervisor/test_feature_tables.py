"""docs/features.md says what is offered: every bit is there, as features.py has it, with a test that exists."""

from __future__ import annotations

import re
from enum import IntFlag
from pathlib import Path

import pytest

from lzero.hypervisor.features import NESTED, PROCESSOR
from lzero.sdm.capabilities import EptVpidCap, VmxCapabilities, VmxMisc
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, ProcBased3, VmEntry, VmExit, VmExit2, VmFunctions

ROOT = Path(__file__).resolve().parents[2]
WORDS: dict[type[IntFlag], str] = {
    PinBased: "pin",
    ProcBased: "proc",
    ProcBased2: "proc2",
    ProcBased3: "proc3",
    VmExit: "exit",
    VmExit2: "exit2",
    VmEntry: "entry",
    VmFunctions: "vmfunc",
    EptVpidCap: "ept_vpid",
    VmxMisc: "misc",
}


def tables() -> dict[str, dict[str, tuple[bool, bool, str]]]:
    """Rows by the name of the control word, then of the bit."""
    found: dict[str, dict[str, tuple[bool, bool, str]]] = {}
    rows: dict[str, tuple[bool, bool, str]] = {}
    for line in (ROOT / "docs/features.md").read_text().splitlines():
        match = re.fullmatch(r"\| `(\w+)` \| (\w+) \| (\w+) \| (.+) \|", line)
        if match is None:
            continue
        name, processor, l1, text = match.groups()
        if processor == "processor":
            rows = found[name] = {}
        else:
            rows[name] = processor == "yes", l1 == "yes", text
    return found


TABLES = tables()


def offered(capabilities: VmxCapabilities, word: str, bit: int) -> bool:
    value = getattr(capabilities, word)
    return bool((value if isinstance(value, int) else value.allowed1) & bit)


@pytest.mark.parametrize("flags", WORDS, ids=lambda flags: flags.__name__)
def test_every_bit_is_in_the_table_as_it_is_offered(flags: type[IntFlag]) -> None:
    word = WORDS[flags]
    expected = {m.name: (offered(PROCESSOR, word, m.value), offered(NESTED, word, m.value)) for m in flags}
    assert {name: row[:2] for name, row in TABLES[flags.__name__].items()} == expected


def test_what_l1_is_offered_has_a_test_and_what_it_is_not_has_a_reason() -> None:
    for rows in TABLES.values():
        for name, (_, l1, text) in rows.items():
            node = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", text)
            assert (node is not None) == l1, name
            if node is not None:
                assert f"\ndef {node[2]}(" in (ROOT / node[1]).read_text(), text


def test_no_offered_bit_is_unknown() -> None:
    """A bit that L1 may set and that no table names would go untested; default-1 bits aside (A.2)."""
    for flags, word in WORDS.items():
        value = getattr(NESTED, word)
        known = sum(member.value for member in flags)
        if isinstance(value, int):
            assert flags is VmxMisc or not value & ~known
        else:
            assert not value.allowed1 & ~value.allowed0 & ~known
