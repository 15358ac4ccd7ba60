"""Asking a run what its exits cost."""

from __future__ import annotations

import pytest

from exitsmaker import nested
from lzero.errors import UsageError
from lzero.testing import Exits
from lzero.trace.aggregates import Aggregates


def test_cost_of_a_reflected_exit() -> None:
    cost = Exits(nested(served=3)).per("CPUID", level=2)
    assert (cost.count, cost.reflected) == (100, 100)
    assert (cost.vmreads, cost.vmwrites, cost.vmresumes, cost.others, cost.exits) == (9, 4, 1, 1, 15)
    assert cost.without_exit == 3
    assert cost.caused == {"VMREAD": 9, "VMWRITE": 4, "VMRESUME": 1, "MSR_WRITE": 1}
    assert cost.share == 100 / 101
    assert (cost.mean_us, cost.max_us) == (2.0, 2.0)


def test_an_exit_of_l1_causes_none_below_it() -> None:
    cost = Exits(nested()).per("VMREAD")
    assert (cost.level, cost.count, cost.exits) == (1, 900, 0)


def test_an_exit_that_l0_keeps_causes_none() -> None:
    assert Exits(nested()).per("HLT", level=2).exits == 0


@pytest.mark.parametrize("name", ["MSR_WRITE", "WRMSR", "EXIT_REASON_MSR_WRITE"])
def test_a_reason_has_many_names(name: str) -> None:
    assert Exits(nested()).per(name).reason == "MSR_WRITE"


def test_an_exit_that_never_happened_is_said_with_those_that_did() -> None:
    with pytest.raises(UsageError, match="no exit EPT_VIOLATION of L2 was recorded; recorded are: CPUID, HLT"):
        Exits(nested()).per("EPT_VIOLATION", level=2)


def test_a_name_of_no_reason() -> None:
    with pytest.raises(UsageError, match="did you mean CPUID"):
        Exits(nested()).per("CPUIT")


def test_counts_and_multiplication() -> None:
    exits = Exits(nested())
    assert exits.count("CPUID", level=2) == 100
    assert exits.count("EPT_VIOLATION", level=2) == 0
    assert exits.count(level=2) == 101
    assert exits.multiplication == 1500 / 101
    assert exits.reasons() == ["VMREAD", "VMWRITE", "VMRESUME", "MSR_WRITE"]
    assert repr(exits) == "<Exits L1: 1500, L2: 101>"


def test_a_run_without_exits() -> None:
    exits = Exits(Aggregates())
    assert exits.multiplication == 0
    assert repr(exits) == "<Exits none>"
    with pytest.raises(UsageError, match="recorded are: none"):
        exits.per("CPUID")
