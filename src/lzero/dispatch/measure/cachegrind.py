"""A second metric that repeats exactly: instructions and branches counted by valgrind's cachegrind.

Its branch predictor is a simple one without patterns or history worth the name, so its mispredictions stand for the
share of the rarer outcome at each test, not for a modern CPU; what it adds is that two runs agree to the last branch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lzero.dispatch.measure.build import DIRECT, BuiltProgram, candidate_symbol
from lzero.dispatch.toolchain import run_tool
from lzero.errors import ToolError

__all__ = ["BranchCounts", "count_branches", "valgrind_available"]


@dataclass(frozen=True)
class BranchCounts:
    """Per exit, over the direct call: instructions, conditional and indirect branches, and mispredicted ones."""

    instructions: float
    conditional: float
    conditional_missed: float
    indirect: float
    indirect_missed: float


def valgrind_available() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def _raw(program: BuiltProgram, name: str, order: Path, nested: bool, scratch: Path) -> dict[str, int]:
    out = scratch / f"cachegrind.{name}"
    command = [
        "valgrind",
        "-q",
        "--tool=cachegrind",
        "--branch-sim=yes",
        "--cache-sim=no",
        f"--cachegrind-out-file={out}",
    ]
    command += [str(program.path), str(order), "-1", str(int(nested)), "0", "0", "once", candidate_symbol(name)]
    run_tool(command, f"cachegrind of {name}")
    events: list[str] = []
    for line in out.read_text(encoding="utf-8").splitlines():
        if line.startswith("events:"):
            events = line.split()[1:]
        elif line.startswith("summary:"):
            return dict(zip(events, map(int, line.split()[1:]), strict=True))
    raise ToolError(f"cachegrind of {name}: {out.name} has no summary; is this valgrind 3.19 or newer?")


def count_branches(
    program: BuiltProgram, order: Path, exits: int, scratch: Path, *, nested: bool = True
) -> dict[str, BranchCounts]:
    """Counts per exit of every candidate, the direct call's subtracted."""
    base = _raw(program, DIRECT, order, nested, scratch)
    counts = {}
    for name in program.names:
        if name == DIRECT:
            continue
        found = _raw(program, name, order, nested, scratch)
        over = {event: (found.get(event, 0) - base.get(event, 0)) / exits for event in ("Ir", "Bc", "Bcm", "Bi", "Bim")}
        counts[name] = BranchCounts(over["Ir"], over["Bc"], over["Bcm"], over["Bi"], over["Bim"])
    return counts
