"""``--shadow-vmcs``: which fields it means, and what it says to files that mean none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lzero.errors import UsageError
from lzero.hypervisor.nested.shadow_fields import load_shadow_fields
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field


def test_off_and_default() -> None:
    assert not load_shadow_fields("off").active
    default = load_shadow_fields("default")
    assert default.write == {encoding for encoding, row in VMCS_FIELDS.items() if row.in_kvm_shadow_rw}
    assert default.read == default.write | {encoding for encoding, row in VMCS_FIELDS.items() if row.in_kvm_shadow_ro}


def test_a_plan_of_ours(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[shadow]\nread_only = ["EXIT_REASON"]\nread_write = ["GUEST_RIP"]\n[predicted]\nexits_removed = 1\n'
    )
    fields = load_shadow_fields(str(plan))
    assert fields.read == {Field.EXIT_REASON, Field.GUEST_RIP}
    assert fields.write == {Field.GUEST_RIP}


def test_names_in_any_case(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[shadow]\nread_only = ["exit_reason"]\n')
    assert load_shadow_fields(str(plan)).read == {Field.EXIT_REASON}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("read = []", "no table"),
        ("[shadow]", "no table"),
        ("[shadow]\nread_only = 3", "lists of VMCS field names"),
        ('[shadow]\nread_only = ["GUEST_RYP"]', "'GUEST_RYP' is no VMCS field"),
        ("[shadow]\nread_only = [7]", "'7' is no VMCS field"),
        ('[shadow]\nread_only = ["GUEST_RIP"]\nread_write = ["guest_rip"]', "listed twice: GUEST_RIP"),
        ("shadow = 3", "no table"),
        ("[shadow", "no TOML"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_shadow_fields(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_shadow_fields(str(tmp_path / "absent.toml"))
