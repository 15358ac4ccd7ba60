"""Plans: partial runs agree with full ones, nothing raises, and the page of the documentation is current."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from checkcases import CASES, Case
from checkstate import EVERYTHING, STATES, State, long_mode
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.cpu.checks import (
    ALL_DIRTY,
    CHECKS,
    FIELD_BIT,
    PROCESSOR_BIT,
    CheckContext,
    CheckGroup,
    CheckPlan,
    Failure,
    MsrListKind,
    check_msr_entry,
    field_mask,
    run_checks,
)
from lzero.cpu.checks.document import main, render
from lzero.sdm.capabilities import ControlRange, VmxCapabilities
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field

DOCS = Path(__file__).parents[2] / "docs"
U64 = (1 << 64) - 1

FIELDS = st.sampled_from(sorted(VMCS_FIELDS))
BITS = st.integers(0, 63).map(lambda n: 1 << n)
VALUE = st.one_of(
    st.integers(0, U64),
    st.integers(0, 255),
    BITS,
    BITS.map(lambda bit: bit - 1),
    BITS.map(lambda bit: U64 & -bit),
    st.just(U64),
)
WRITES = st.lists(st.tuples(FIELDS, VALUE, st.booleans()), max_size=6)


def write(state: State, writes: list[tuple[int, int, bool]]) -> int:
    """Write or invert fields; returns the dirty mask."""
    for encoding, value, invert in writes:
        mask = VMCS_FIELDS[encoding].width.mask
        old = state.values[encoding] if invert else 0
        state.values[encoding] = (old ^ value) & mask
    return field_mask(encoding for encoding, _, _ in writes)


def verdict(failure: Failure | None) -> str | None:
    """Identifier of the rule that failed."""
    return failure.check.id if failure else None


def plainly(context: CheckContext) -> str | None:
    """The first failing rule by the table alone, with no plan."""
    return next((check.id for check in CHECKS if not check.predicate(context)), None)


@settings(max_examples=1000)
@given(st.sampled_from(STATES), WRITES)
def test_partial_run_agrees_with_full_run(make: type[State], writes: list[tuple[int, int, bool]]) -> None:
    state = make()
    plan = CheckPlan(state.capabilities)
    assert plan.run(state.context()) is None
    dirty = write(state, writes)
    expected = plainly(state.context())
    assert verdict(plan.run(state.context(), dirty)) == expected
    assert verdict(run_checks(state.context())) == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case_is_found_from_its_neighbour(case: Case) -> None:
    sound, broken = case.state(case.sound), case.state(case.broken)
    plan = CheckPlan(broken.capabilities)
    dirty = field_mask(encoding for encoding in sound.values if sound.values[encoding] != broken.values[encoding])
    if sound.processor != broken.processor or sound.capabilities != broken.capabilities:
        dirty |= PROCESSOR_BIT
    assert verdict(plan.run(broken.context(), dirty)) == case.id


VMCS = st.binary(min_size=8 * len(VMCS_FIELDS), max_size=8 * len(VMCS_FIELDS))


@settings(max_examples=400)
@given(VMCS, st.binary(max_size=40), st.booleans(), st.booleans(), VALUE)
def test_any_vmcs_gives_a_verdict(raw: bytes, memory: bytes, long: bool, smm: bool, current: int) -> None:
    values = {
        row.encoding: int.from_bytes(raw[8 * n : 8 * n + 8], "little") & row.width.mask
        for n, row in enumerate(VMCS_FIELDS.values())
    }
    context = CheckContext(values.__getitem__, EVERYTHING, lambda _, n: memory[:n], long, current, smm)
    # All predicates, not only those up to the first failure.
    for check in CHECKS:
        assert check.predicate(context) in (True, False), check.id
    failure = run_checks(context)
    assert verdict(failure) == plainly(context)
    assert failure is None or failure.check.describe(context) == failure.text()


OFFER_WORD = st.integers(0, (1 << 32) - 1)


@settings(max_examples=200)
@given(st.sampled_from(STATES), WRITES, st.lists(OFFER_WORD, min_size=7, max_size=7), VALUE, VALUE)
def test_rules_left_out_of_a_plan_never_decide(
    make: type[State], writes: list[tuple[int, int, bool]], words: list[int], ept_vpid: int, misc: int
) -> None:
    names = ("pin", "proc", "proc2", "proc3", "exit", "exit2", "entry")
    ranges = {
        name: ControlRange(0, getattr(EVERYTHING, name).allowed1 & word)
        for name, word in zip(names, words, strict=True)
    }
    offer = VmxCapabilities(**ranges, ept_vpid=ept_vpid, misc=misc)  # type: ignore[arg-type]
    state = make()
    state.capabilities = offer
    write(state, writes)
    assert verdict(CheckPlan(offer).run(state.context())) == plainly(state.context())


def test_nothing_dirty_leaves_only_rules_on_memory() -> None:
    plan = CheckPlan(EVERYTHING)
    ids = {check.id for check in plan.selected(0)}
    assert ids == {
        "control.tpr_threshold.vtpr",
        "guest.link_pointer.revision",
        "guest.link_pointer.shadow",
        "guest.pdpte.memory",
    }
    assert len(plan.selected(ALL_DIRTY)) == len(plan.checks) == len(CHECKS)
    assert "host.mode.address_space_size" in {check.id for check in plan.selected(PROCESSOR_BIT)}


def test_plan_of_a_poor_offer_is_shorter() -> None:
    poor = CheckPlan(VmxCapabilities())
    assert len(poor.checks) < len(CHECKS)
    assert not any("eptp" in check.id for check in poor.checks)


def test_both_halves_of_a_field_share_a_bit() -> None:
    assert FIELD_BIT[Field.EPT_POINTER] == FIELD_BIT[Field.EPT_POINTER | 1]
    assert Field.GUEST_RIP | 1 not in FIELD_BIT


def test_a_guest_cannot_make_the_plan_grow_without_bound() -> None:
    plan = CheckPlan(EVERYTHING)
    context = long_mode().context()
    for mask in range(3000):
        plan.run(context, mask)
    assert len(plan._selected) <= 1024


def test_groups_can_be_run_alone() -> None:
    state = long_mode()
    state.values[Field.HOST_CR0] = 0
    state.values[Field.GUEST_RFLAGS] = 0
    assert verdict(run_checks(state.context(), [CheckGroup.CONTROLS])) is None
    assert verdict(run_checks(state.context(), [CheckGroup.GUEST_STATE])) == "guest.rflags.reserved"
    assert verdict(run_checks(state.context())) == "host.cr0.fixed"


@pytest.mark.parametrize(
    ("kind", "msr", "reserved", "smm", "broken"),
    [
        (MsrListKind.ENTRY_LOAD, 0xC000_0080, 0, False, None),
        (MsrListKind.ENTRY_LOAD, 0xC000_0100, 0, False, "msr_list.segment_base"),
        (MsrListKind.ENTRY_LOAD, 0xC000_0101, 0, False, "msr_list.segment_base"),
        (MsrListKind.ENTRY_LOAD, 0xC000_0102, 0, False, None),
        (MsrListKind.EXIT_STORE, 0xC000_0101, 0, False, None),
        (MsrListKind.ENTRY_LOAD, 0x7FF, 0, False, None),
        (MsrListKind.ENTRY_LOAD, 0x800, 0, False, "msr_list.x2apic"),
        (MsrListKind.EXIT_STORE, 0x8FF, 0, False, "msr_list.x2apic"),
        (MsrListKind.ENTRY_LOAD, 0x900, 0, False, None),
        (MsrListKind.ENTRY_LOAD, 0x9B, 0, False, "msr_list.smm_monitor_ctl"),
        (MsrListKind.ENTRY_LOAD, 0x9B, 0, True, None),
        (MsrListKind.EXIT_LOAD, 0x79, 0, False, "msr_list.microcode"),
        (MsrListKind.ENTRY_LOAD, 0x8B, 0, False, "msr_list.microcode"),
        (MsrListKind.EXIT_STORE, 0x8B, 0, False, None),
        (MsrListKind.EXIT_STORE, 0x9E, 0, False, "msr_list.smbase"),
        (MsrListKind.EXIT_STORE, 0x9E, 0, True, None),
        (MsrListKind.ENTRY_LOAD, 0x10, 1, False, "msr_list.reserved"),
        (MsrListKind.EXIT_STORE, 0x10, 1 << 31, False, "msr_list.reserved"),
    ],
)
def test_entries_of_msr_areas(kind: MsrListKind, msr: int, reserved: int, smm: bool, broken: str | None) -> None:
    failed = check_msr_entry(kind, msr, reserved, in_smm=smm)
    assert (failed.id if failed else None) == broken


def test_page_is_current(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render()
    page = (DOCS / "vm-entry-checks.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m lzero.cpu.checks.document docs/vm-entry-checks.md"


def test_page_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == render()
    assert main(["a", "b"]) == 64


def test_examples_in_the_page_on_the_tables() -> None:
    results = doctest.testfile(str(DOCS / "sdm.md"), module_relative=False)
    assert results.attempted > 5
    assert results.failed == 0
