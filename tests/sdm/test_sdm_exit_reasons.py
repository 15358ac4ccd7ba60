"""Exit reasons: numbers, names, no unexplained holes."""

from __future__ import annotations

import pytest

from lzero.sdm.exit_reasons import (
    EXIT_REASONS,
    RESERVED_EXIT_REASONS,
    ExitReason,
    exit_reason_from_name,
    exit_reason_name,
)
from lzero.sdm.svm_exit_codes import SVM_EXIT_CODES, svm_exit_code_from_name, svm_exit_name


def test_every_member_has_a_row_and_every_row_a_member() -> None:
    assert set(EXIT_REASONS) == {int(reason) for reason in ExitReason}
    assert all(row.name == ExitReason(number).name for number, row in EXIT_REASONS.items())


def test_no_number_is_missing_without_being_reserved() -> None:
    numbers = set(range(max(EXIT_REASONS) + 1))
    assert numbers - set(EXIT_REASONS) == RESERVED_EXIT_REASONS


def test_names_of_all_kinds_are_unambiguous() -> None:
    seen: dict[str, int] = {}
    for row in EXIT_REASONS.values():
        for name in (row.name, row.sdm_name, row.kvm_macro or row.name, *row.aliases):
            key = "".join(c for c in name.upper() if c.isalnum())
            assert seen.setdefault(key, row.number) == row.number, name


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("CPUID", 10),
        ("EXIT_REASON_VMREAD", 23),
        ("PENDING_INTERRUPT", 7),
        ("EXIT_REASON_PENDING_INTERRUPT", 7),
        ("ept_misconfig", 49),
        ("VM-entry failure due to invalid guest state", 33),
        ("VMX-preemption timer expired", 52),
        ("48", 48),
    ],
)
def test_lookup_by_any_name(name: str, number: int) -> None:
    assert exit_reason_from_name(name) == number


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="EPT_MISCONFIG"):
        exit_reason_from_name("EPT_MISCONF")


def test_unknown_number_prints_as_number() -> None:
    assert exit_reason_name(48) == "EPT_VIOLATION"
    assert exit_reason_name(999) == "999"


def test_sections_are_present() -> None:
    assert all(row.section for row in EXIT_REASONS.values())


def test_svm_codes() -> None:
    assert svm_exit_name(0x72) == "cpuid"
    assert svm_exit_name(-1) == "invalid_guest_state"
    assert svm_exit_name(0x777) == "0x777"
    assert svm_exit_code_from_name("SVM_EXIT_NPF") == 0x400
    assert svm_exit_code_from_name("write_cr0") == 0x10
    names = [row.trace_name for row in SVM_EXIT_CODES.values()]
    assert len(names) == len(set(names))
    with pytest.raises(KeyError):
        svm_exit_code_from_name("no such exit")
