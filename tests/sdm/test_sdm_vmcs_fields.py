"""VMCS fields and control bits: encodings agree with width and kind, names are unique, KVM's set is KVM's set."""

from __future__ import annotations

from collections import Counter

import pytest

from lzero.sdm import vmcs_fields
from lzero.sdm.controls import CONTROLS, DEFAULT1_PROC, PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.vmcs_fields import (
    KVM_SHADOW_READ_ONLY,
    KVM_SHADOW_READ_WRITE,
    MAX_FIELD_INDEX,
    VMCS_FIELDS,
    Field,
    Kind,
    Width,
    field_from_name,
    field_name,
)


def test_every_field_has_exactly_one_row() -> None:
    listed = Counter(field for _, _, fields in vmcs_fields._TABLE for field in fields)
    assert set(listed) == set(Field)
    assert [field for field, times in listed.items() if times > 1] == []


def test_encodings_rebuild_from_width_kind_and_index() -> None:
    for row in VMCS_FIELDS.values():
        assert row.encoding == row.width.value << 13 | row.kind.value << 10 | row.index << 1, row.name


def test_no_full_access_encoding_is_odd_or_has_reserved_bits() -> None:
    assert [row.name for row in VMCS_FIELDS.values() if row.encoding & ~0x6FFE] == []


# Lines of tables B-1 to B-15, counting both halves of a 64-bit field; the manual of 2026 counts these.
APPENDIX_B = {
    (Width.W16, Kind.CONTROL): 5,
    (Width.W16, Kind.GUEST_STATE): 11,
    (Width.W16, Kind.HOST_STATE): 7,
    (Width.W64, Kind.CONTROL): 74,
    (Width.W64, Kind.EXIT_INFORMATION): 6,
    (Width.W64, Kind.GUEST_STATE): 42,
    (Width.W64, Kind.HOST_STATE): 24,
    (Width.W32, Kind.CONTROL): 20,
    (Width.W32, Kind.EXIT_INFORMATION): 8,
    (Width.W32, Kind.GUEST_STATE): 23,
    (Width.W32, Kind.HOST_STATE): 1,
    (Width.NATURAL, Kind.CONTROL): 8,
    (Width.NATURAL, Kind.EXIT_INFORMATION): 6,
    (Width.NATURAL, Kind.GUEST_STATE): 23,
    (Width.NATURAL, Kind.HOST_STATE): 15,
}


def test_as_many_fields_as_the_manual_lists() -> None:
    # The tables dropped the ENCLV-exiting bitmap, which processors have, and do not have these yet, which its text has.
    unlisted = {
        Field.ENCLV_EXITING_BITMAP,
        Field.VIRTUAL_TIMER_VECTOR,
        Field.GUEST_DEADLINE,
        Field.GUEST_DEADLINE_SHADOW,
        Field.GUEST_IA32_SPEC_CTRL,
        Field.HOST_IA32_SPEC_CTRL,
    }
    rows = [row for row in VMCS_FIELDS.values() if row.encoding not in unlisted]
    lines = Counter((row.width, row.kind) for row in rows for _ in range(2 if row.width is Width.W64 else 1))
    assert lines == APPENDIX_B


@pytest.mark.parametrize(
    ("suffix", "width"),
    [
        ("_SELECTOR", Width.W16),
        ("_LIMIT", Width.W32),
        ("_ACCESS_RIGHTS", Width.W32),
        ("_BASE", Width.NATURAL),
        ("_COUNT", Width.W32),
    ],
)
def test_width_follows_from_the_kind_of_value(suffix: str, width: Width) -> None:
    rows = [row for row in VMCS_FIELDS.values() if row.name.endswith(suffix)]
    assert rows
    assert {row.width for row in rows} == {width}


def test_host_and_guest_names_are_in_host_and_guest_areas() -> None:
    for row in VMCS_FIELDS.values():
        if row.name.startswith("HOST_"):
            assert row.kind is Kind.HOST_STATE, row.name
        if row.kind is Kind.GUEST_STATE:
            assert row.section.startswith("25.4"), row.name
        if row.kind is Kind.EXIT_INFORMATION:
            assert row.section.startswith("25.9"), row.name


@pytest.mark.parametrize(
    ("kvm_name", "encoding"),
    [
        ("PIN_BASED_VM_EXEC_CONTROL", 0x4000),
        ("CPU_BASED_VM_EXEC_CONTROL", 0x4002),
        ("VM_EXIT_REASON", 0x4402),
        ("GUEST_CS_AR_BYTES", 0x4816),
        ("EPT_POINTER", 0x201A),
        ("HOST_RIP", 0x6C16),
        ("VMX_PREEMPTION_TIMER_VALUE", 0x482E),
    ],
)
def test_kvm_names_are_aliases(kvm_name: str, encoding: int) -> None:
    assert Field[kvm_name] == encoding
    assert VMCS_FIELDS[encoding].kvm_name == kvm_name
    assert field_from_name(kvm_name.lower()) == encoding


def test_names_and_high_halves() -> None:
    assert field_name(0x201A) == "EPT_POINTER"
    assert field_name(0x201B) == "EPT_POINTER_HIGH"
    assert field_name(0x7FFE) == "0x7ffe"
    assert field_from_name("EPT_POINTER_HIGH") == 0x201B
    with pytest.raises(KeyError):
        field_from_name("GUEST_RIP_HIGH")


def test_shadow_sets_do_not_overlap_and_are_in_the_rows() -> None:
    assert not KVM_SHADOW_READ_ONLY & KVM_SHADOW_READ_WRITE
    assert {row.encoding for row in VMCS_FIELDS.values() if row.in_kvm_shadow_ro} == KVM_SHADOW_READ_ONLY
    assert {row.encoding for row in VMCS_FIELDS.values() if row.in_kvm_shadow_rw} == KVM_SHADOW_READ_WRITE


def test_highest_index_is_that_of_some_field() -> None:
    assert max(row.index for row in VMCS_FIELDS.values()) == MAX_FIELD_INDEX


def test_controls_have_one_row_per_bit_and_single_bits() -> None:
    for (word, bit), row in CONTROLS.items():
        assert int(row.flag) == 1 << bit, (word, row.name)
        assert row.section
    assert len({(row.word, row.name) for row in CONTROLS.values()}) == len(CONTROLS)


def test_control_bits_published_elsewhere() -> None:
    assert PinBased.PIN_BASED_VIRTUAL_NMIS == 0x20
    assert ProcBased.USE_MSR_BITMAPS == 1 << 28
    assert ProcBased2.VMCS_SHADOWING == 1 << 14
    assert VmExit.HOST_ADDRESS_SPACE_SIZE == VmEntry.IA32E_MODE_GUEST == 1 << 9
    assert DEFAULT1_PROC & (ProcBased.CR3_LOAD_EXITING | ProcBased.CR3_STORE_EXITING)
    assert CONTROLS["ProcBased2", 1].kvm_name == "SECONDARY_EXEC_ENABLE_EPT"
