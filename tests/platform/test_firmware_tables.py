"""ACPI and MP tables: found as kernels find them, consistent, and taken apart by ACPI's own disassembler where it is
installed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from lzero.platform.firmware import acpi
from lzero.platform.firmware.aml import Buffer, EisaId, Integer, Name, Package, package_length
from pcboard import Board


def find(board: Board, signature: bytes) -> int:
    """Search the BIOS area as kernels do."""
    memory = board.pc.memory
    return next(a for a in range(0xE0000, 0x100000, 16) if memory.read(a, len(signature)) == signature)


def tables(board: Board) -> dict[bytes, bytes]:
    """All tables reachable from the root pointer, checksums checked."""
    memory = board.pc.memory
    rsdp = memory.read(find(board, b"RSD PTR "), 36)
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    found = {}

    def visit(address: int) -> bytes:
        size = memory.read_u32(address + 4)
        table = memory.read(address, size)
        if table[:4] != b"FACS":
            assert sum(table) & 0xFF == 0, table[:4]
        found[table[:4]] = table
        return table

    xsdt = visit(struct.unpack_from("<Q", rsdp, 24)[0])
    rsdt = visit(struct.unpack_from("<I", rsdp, 16)[0])
    children = struct.unpack_from(f"<{(len(xsdt) - 36) // 8}Q", xsdt, 36)
    assert children == struct.unpack_from(f"<{(len(rsdt) - 36) // 4}I", rsdt, 36)
    for child in children:
        visit(child)
    for offset in (36, 40):
        visit(struct.unpack_from("<I", found[b"FACP"], offset)[0])
    return found


def test_the_root_pointer_leads_to_all_tables(board: Board) -> None:
    assert set(tables(board)) == {b"XSDT", b"RSDT", b"FACP", b"APIC", b"FACS", b"DSDT"}
    assert board.pc.rsdp_address == find(board, b"RSD PTR ")


def test_the_fadt_says_where_to_power_off(board: Board) -> None:
    fadt = tables(board)[b"FACP"]
    assert len(fadt) == 244
    assert struct.unpack_from("<I", fadt, 64)[0] == 0x604
    assert struct.unpack_from("<H", fadt, 46)[0] == acpi.SCI_IRQ
    assert fadt[116:128] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0xCF9)


def test_fw_cfg_has_the_same_tables(board: Board) -> None:
    built = acpi.build()
    assert board.pc.memory.read(built.tables_address, len(built.tables)) == built.tables


@pytest.mark.parametrize("name", [b"FACP", b"DSDT", b"APIC", b"XSDT", b"RSDT", b"FACS"])
def test_the_disassembler_understands_it(board: Board, tmp_path: Path, name: bytes) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")
    file = tmp_path / f"{name.decode().lower()}.aml"
    file.write_bytes(tables(board)[name])
    done = subprocess.run([iasl, "-d", str(file)], capture_output=True, text=True, check=False)
    listing = file.with_suffix(".dsl").read_text()
    assert done.returncode == 0, done.stderr
    assert not [
        line
        for line in (done.stderr + listing).splitlines()
        if "Invalid" in line or "Warning" in line or "Error" in line
    ]
    if name == b"DSDT":
        assert "_S5" in listing
        assert 'EisaId ("PNP0501")' in listing


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (2, "0a02"), (0x100, "0b0001"), (0x10000, "0c00000100"), (1 << 32, "0e0000000001000000")],
)
def test_aml_integers_are_shortest(value: int, encoded: str) -> None:
    assert Integer(value).encode().hex() == encoded


def test_aml_refuses_what_it_cannot_say() -> None:
    for term in (Integer(-1), Integer(1 << 64), Name("TOOLONG", Integer(0))):
        with pytest.raises(ValueError, match="AML"):
            term.encode()


@pytest.mark.parametrize("size", [0, 62, 63, 4093, 4094, 1 << 20])
def test_aml_package_lengths_count_themselves(size: int) -> None:
    encoded = package_length(size)
    extra = encoded[0] >> 6
    length = encoded[0] & 0x3F if not extra else encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
    assert length == size + len(encoded) == size + 1 + extra


def test_aml_terms() -> None:
    assert Name("\\_S5", Package([Integer(5), Integer(0)])).encode().hex() == "085c5f53355f" + "1205020a0500"
    assert EisaId("PNP0501").encode().hex() == "0c41d00501"
    assert Buffer(b"ab").encode().hex() == "11050a026162"


def test_the_mp_table(board: Board) -> None:
    memory = board.pc.memory
    pointer = memory.read(find(board, b"_MP_"), 16)
    assert sum(pointer) & 0xFF == 0
    address = struct.unpack_from("<I", pointer, 4)[0]
    size, count = memory.read_u16(address + 4), memory.read_u16(address + 34)
    table = memory.read(address, size)
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    offset, kinds = 44, []
    for _ in range(count):
        kinds.append(table[offset])
        offset += 20 if table[offset] == 0 else 8
    assert offset == size
    assert [kinds.count(kind) for kind in range(5)] == [1, 1, 1, 15, 2]


def test_bios_data(board: Board) -> None:
    assert board.pc.memory.read_u16(0x400) == 0x3F8
    assert board.pc.memory.read_u16(0x40E) << 4 == 0x9FC00
    assert board.pc.memory.read_u16(0x413) == 639
