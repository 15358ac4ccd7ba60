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
from lzero.sdm.exit_reasons import ExitReason

HOST_TIMES = ("host_ns", "duration_ns", "cpu")
"""Columns that describe the host's run, not the guest's."""

TREE = Less(
    ExitReason.IO_INSTRUCTION,
    Eq(ExitReason.CPUID, Leaf("kvm_emulate_cpuid"), handler_table()),
    Range(ExitReason.IO_INSTRUCTION, ExitReason.IO_INSTRUCTION, Leaf("handle_io"), handler_table()),
)


def outcome(dispatch: str, directory: Path) -> tuple[object, ...]:
    """Everything a run under ``dispatch`` has that a guest could tell: ending, console, every exit."""
    console = io.BytesIO()
    record = directory / "exits.parquet"
    result = Machine(guests.path("hello"), memory="64M", console=console, record=record, dispatch=dispatch).run()
    exits = pl.read_parquet(record)
    kept = [column for column in exits.columns if column not in HOST_TIMES]
    return result.ended, result.debug_exit, result.guest_seconds, console.getvalue(), exits.select(kept)


@pytest.fixture(scope="module")
def under_the_table(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    return outcome("table", tmp_path_factory.mktemp("table"))


def same(found: tuple[object, ...], expected: tuple[object, ...]) -> None:
    assert found[:-1] == expected[:-1]
    exits, wanted = found[-1], expected[-1]
    assert isinstance(exits, pl.DataFrame) and isinstance(wanted, pl.DataFrame)
    assert exits.height > 800 and exits.equals(wanted)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "range_as_written"])
def test_strategy(name: str, under_the_table: tuple[object, ...], tmp_path: Path) -> None:
    same(outcome(name, tmp_path), under_the_table)


def test_plan_file(under_the_table: tuple[object, ...], tmp_path: Path) -> None:
    plan = tmp_path / "PLAN.json"
    write_plan(plan, Strategy("plan", "", "", TREE))
    same(outcome(str(plan), tmp_path), under_the_table)
