"""Running the built programs: fresh processes, layouts in turn, passes interleaved inside each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lzero.dispatch.measure.build import BuiltProgram, candidate_symbol
from lzero.dispatch.measure.stats import Samples
from lzero.dispatch.toolchain import run_tool
from lzero.errors import ToolError, UsageError

__all__ = ["MODES", "Effort", "Measured", "measure_programs"]

MODES: Mapping[str, str] = {
    "plain": "exits back to back: branch history and prediction at their best",
    "serialised": "an lfence before each dispatch: nothing of it overlaps the work before",
    "polluted": "24 random conditional branches before each dispatch: no useful history",
}
"""The modes, by the name the program knows them by."""

MINIMUM_LENGTH = 32768
"""Shorter sequences are learned by heart by branch predictors."""

WARM_UP = 4096
"""Exits at the start of each pass that are not timed."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    layouts, processes:
        Link orders, and fresh processes per link order.
    rounds:
        Passes per process, candidate and mode.
    """

    layouts: int = 4
    processes: int = 3
    rounds: Mapping[str, int] = field(default_factory=lambda: {"plain": 15, "serialised": 7, "polluted": 5})

    def __post_init__(self) -> None:
        if self.layouts < 1 or self.processes < 1 or not self.rounds or min(self.rounds.values()) < 1:
            raise UsageError("layouts, processes and rounds must each be at least 1")
        unknown = set(self.rounds) - set(MODES)
        if unknown:
            raise UsageError(f"no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")

    @property
    def runs(self) -> int:
        """Number of processes started."""
        return self.layouts * self.processes


@dataclass(frozen=True)
class Measured:
    """Ticks per exit by mode and candidate; clusters are (layout, process) in the order of ``clusters``."""

    samples: Mapping[tuple[str, str], Samples]
    clusters: tuple[tuple[int, int], ...]


def chosen_cpu() -> int:
    """The CPU to pin to: the last this process may use, which interrupts usually leave alone."""
    return max(os.sched_getaffinity(0))


def measure_programs(
    programs: Sequence[BuiltProgram],
    order: Path,
    effort: Effort,
    *,
    exits: int,
    nested: bool = True,
    progress: Progress = lambda _text: None,
) -> Measured:
    """Run every program ``effort.processes`` times, programs in turn, and collect what they print.

    Raises
    ------
    UsageError
        When ``exits`` are too few to be measured honestly.
    ToolError
        When a program fails or prints what it should not.
    """
    if exits < MINIMUM_LENGTH:
        raise UsageError(f"{exits} exits are too few: a predictor learns less than {MINIMUM_LENGTH} by heart")
    collected: dict[tuple[str, str], list[list[float]]] = {}
    clusters: list[tuple[int, int]] = []
    for process in range(effort.processes):
        for program in programs:
            progress(f"process {process + 1}, layout {program.layout + 1}")
            seed = 1 + process * 101 + program.layout
            rows = _run_once(program, order, effort, exits, nested, seed)
            clusters.append((program.layout, process))
            for key, values in rows.items():
                collected.setdefault(key, []).append(values)
    samples = {key: np.array(values) for key, values in collected.items()}
    return Measured(samples, tuple(clusters))


def _run_once(
    program: BuiltProgram, order: Path, effort: Effort, exits: int, nested: bool, seed: int
) -> dict[tuple[str, str], list[float]]:
    schedule = [word for mode, rounds in effort.rounds.items() for word in (mode, str(rounds))]
    command = [str(program.path), str(order), str(chosen_cpu()), str(int(nested)), str(WARM_UP), str(seed), *schedule]
    text = run_tool(command, f"benchmark program {program.path.name}")
    names = {candidate_symbol(name): name for name in program.names}
    rows: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in text.splitlines():
        mode, round_text, symbol, ticks = line.split()
        if int(round_text) >= 0:
            entry = (int(round_text), int(ticks) / (exits - WARM_UP))
            rows.setdefault((mode, names[symbol]), []).append(entry)
    for (mode, name), found in rows.items():
        if len(found) != effort.rounds[mode]:
            raise ToolError(f"benchmark program {program.path.name} printed {len(found)} rounds of {name}")
    return {key: [ticks for _, ticks in sorted(found)] for key, found in rows.items()}
