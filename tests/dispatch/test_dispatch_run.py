"""The machine under every dispatcher: the same guest gives the same exits and the same result."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest

from lzero import guests
from lzero.dispatch.plan_file import write_plan
from lzero.dispatch.strategies import STRATEGIES, Strategy, handler_table
from lzero.dispatch.tree import Eq, Leaf, Less, Range
from lzero.machine import Machine
from lzero.result import Ended
from lzero.sdm.exit_reasons import ExitReason

HOST_TIMES = ("host_ns", "duration_ns", "cpu")
"""Columns that describe the host's run, not the guest's."""

TREE = Less(
    ExitReason.IO_INSTRUCTION,
    Eq(ExitReason.CPUID, Leaf("kvm_emulate_cpuid"), handler_table()),
    Range(ExitReason.IO_INSTRUCTION, ExitReason.IO_INSTRUCTION, Leaf("handle_io"), handler_table()),
)


GUESTS = ("hello", "vmx_rules")
"""A guest without virtualisation, and one that executes every VMX instruction but VMFUNC."""


def outcome(guest: str, dispatch: str, directory: Path) -> tuple[object, ...]:
    """Everything a run under ``dispatch`` has that a guest could tell: ending, console, every exit."""
    console = io.BytesIO()
    record = directory / "exits.parquet"
    result = Machine(guests.path(guest), memory="64M", console=console, record=record, dispatch=dispatch).run()
    exits = pl.read_parquet(record)
    kept = [column for column in exits.columns if column not in HOST_TIMES]
    return result.ended, result.debug_exit, result.guest_seconds, console.getvalue(), exits.select(kept)


@pytest.fixture(scope="module", params=GUESTS)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, tuple[object, ...]]:
    """A guest's name, and what it does under the table."""
    return request.param, outcome(request.param, "table", tmp_path_factory.mktemp(request.param))


def same(found: tuple[object, ...], expected: tuple[object, ...]) -> None:
    assert found[:-1] == expected[:-1]
    exits, wanted = found[-1], expected[-1]
    assert isinstance(exits, pl.DataFrame) and isinstance(wanted, pl.DataFrame)
    assert exits.height > 800 and exits.equals(wanted)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("table", "range_as_written")])
def test_strategy(name: str, reference: tuple[str, tuple[object, ...]], tmp_path: Path) -> None:
    guest, expected = reference
    same(outcome(guest, name, tmp_path), expected)


def test_plan_file(reference: tuple[str, tuple[object, ...]], tmp_path: Path) -> None:
    guest, expected = reference
    plan = tmp_path / "PLAN.json"
    write_plan(plan, Strategy("plan", "", "", TREE))
    same(outcome(guest, str(plan), tmp_path), expected)


def test_a_guest_notices_the_range_as_written() -> None:
    """INVEPT lies outside of the range and has no case of its own left."""
    machine = Machine(guests.path("vmx_rules"), memory="64M", console=io.BytesIO(), dispatch="range_as_written")
    result = machine.run()
    assert result.ended is Ended.FAULT
    assert "no handler for VM exit INVEPT" in result.message
