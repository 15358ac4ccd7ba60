"""Every VM-entry check fails and passes, one bit apart where it can."""

from __future__ import annotations

import pytest
from checkcases import CASES, Case
from checkstate import STATES, State

from lzero.cpu.checks import CHECKS, CHECKS_BY_ID, CheckContext, CheckGroup, run_checks
from lzero.errors import ConsistencyError


def test_identifiers_are_unique() -> None:
    assert len(CHECKS_BY_ID) == len(CHECKS)


def test_groups_come_in_the_manuals_order() -> None:
    order = [list(CheckGroup).index(check.group) for check in CHECKS]
    assert order == sorted(order)
    sections = [tuple(int(part) for part in check.section.split(".")) for check in CHECKS]
    assert sections == sorted(sections)


def test_every_check_has_a_failing_and_a_passing_case() -> None:
    # host.size32.ia32e_guest cannot be the first to fail: host.mode.* says the same of the processor's own mode.
    assert {case.id for case in CASES} == set(CHECKS_BY_ID) - {"host.size32.ia32e_guest"}


@pytest.mark.parametrize("make", STATES)
def test_the_states_pass(make: type[State]) -> None:
    failure = run_checks(make().context())
    assert failure is None, failure


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_broken_state_fails_on_its_rule(case: Case) -> None:
    failure = run_checks(case.state(case.broken).context())
    assert failure is not None
    assert failure.check.id == case.id, failure
    assert failure.check.rule in str(failure)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_sound_neighbour_passes(case: Case) -> None:
    failure = run_checks(case.state(case.sound).context())
    assert failure is None, failure


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_declared_fields_cover_what_the_predicate_reads(case: Case) -> None:
    check = CHECKS_BY_ID[case.id]
    for edit in (case.broken, case.sound):
        state = case.state(edit)
        read: set[int] = set()

        def recording(encoding: int, values: dict[int, int] = state.values, seen: set[int] = read) -> int:
            seen.add(encoding)
            return values[encoding]

        context = state.context()
        check.predicate(CheckContext(recording, context.capabilities, context.memory, **state.processor))
        assert read <= {int(field) for field in check.fields}


def test_mode_of_a_32_bit_host_is_checked_by_the_rule_itself() -> None:
    check = CHECKS_BY_ID["host.size32.ia32e_guest"]
    by_id = {case.id: case for case in CASES}
    broken = by_id["host.mode.ia32e_guest"]
    assert not check.predicate(broken.state(broken.broken).context())
    assert check.predicate(broken.state(broken.sound).context())


def test_failures_say_how_the_entry_fails() -> None:
    by_id = {case.id: case for case in CASES}

    def failure_of(id_: str) -> tuple[int | None, int | None, int]:
        failure = run_checks(by_id[id_].state(by_id[id_].broken).context())
        assert failure is not None
        return failure.vm_instruction_error, failure.exit_reason, failure.exit_qualification

    assert failure_of("control.pin.reserved") == (7, None, 0)
    assert failure_of("host.cr0.fixed") == (8, None, 0)
    assert failure_of("guest.rip") == (None, 0x8000_0021, 0)
    assert failure_of("guest.pdpte.fields") == (None, 0x8000_0021, 2)
    assert failure_of("guest.link_pointer.revision") == (None, 0x8000_0021, 4)


def test_failure_as_an_error_names_the_rule_and_the_values() -> None:
    case = next(case for case in CASES if case.id == "guest.rflags.reserved")
    failure = run_checks(case.state(case.broken).context())
    assert failure is not None
    error = failure.error()
    assert isinstance(error, ConsistencyError)
    assert error.check == "guest.rflags.reserved"
    assert "GUEST_RFLAGS=0x0" in str(error)
    assert "27.3.1.4" in str(error)
    assert "GUEST_RFLAGS=0x0" in failure.check.describe(case.state(case.broken).context())
