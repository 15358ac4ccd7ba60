"""Guards the exits of the bundled hypervisor. Run: pytest --lzero examples/guard_l1

Copy this folder beside your own hypervisor and name its image instead of guest:l1.
"""

from pathlib import Path

import pytest

from lzero.testing import Exits, GuestMachine, check, load_budgets

BUDGETS = Path(__file__).with_name("budgets.toml")


@pytest.mark.lzero(image="guest:l1", args="run=cpuid count=500")
def test_a_cpuid_exit_stays_cheap(exits: Exits) -> None:
    cost = exits.per("CPUID", level=2)
    assert cost.count == 500
    assert cost.vmreads <= 10
    assert cost.vmwrites <= 2
    assert cost.vmresumes == 1


@pytest.mark.lzero(image="guest:l1", args="run=cpuid count=500")
def test_shadowed_fields_cost_no_exits(machine: GuestMachine) -> None:
    plain = machine.run().exits.per("CPUID", level=2)
    shadowed = machine.run(shadow_vmcs="default").exits.per("CPUID", level=2)
    assert shadowed.vmreads < plain.vmreads
    assert shadowed.without_exit > 0


@pytest.mark.lzero(image="guest:l1", args="run=cpuid,io,msr count=200")
def test_budgets_are_kept(exits: Exits) -> None:
    assert not [str(verdict) for verdict in check(exits, load_budgets(BUDGETS)) if not verdict.kept]
