"""One measurement: calibrate, plan, build, run, and reduce to ratios."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lzero.dispatch.measure.build import DIRECT, PGO_SWITCH, Build, build_program, write_order
from lzero.dispatch.measure.cachegrind import BranchCounts, count_branches, valgrind_available
from lzero.dispatch.measure.calibrate import load_calibration
from lzero.dispatch.measure.host import HostDescription, describe_host
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.measure.run import Effort, Measured, measure_programs
from lzero.dispatch.measure.stats import NOISE_TICKS, Interval, difference_interval, ratio_interval
from lzero.dispatch.plan.evaluate import Expected, expected_cost, replayed_cost
from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.plan.planner import Plan, PlanClass, make_plan
from lzero.dispatch.plan.predictor import default_predictor
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.strategies import Strategy
from lzero.dispatch.toolchain import Compiler
from lzero.errors import ToolError, UsageError

__all__ = ["REFERENCE", "BenchOptions", "BenchResult", "Cell", "Row", "run_bench"]

REFERENCE = "chain"
"""S2: what upstream has, and what every other strategy is compared with."""

DEFAULT_LENGTH = 65536

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how.

    Attributes
    ----------
    length:
        Exits per pass; at least 32,768.
    plans:
        Classes of dispatchers planned for the profile and measured beside the strategies.
    pgo:
        Compilers whose profile-guided switch is a baseline.
    nested:
        Run with VMX offered to guests.
    calibrate_again:
        Ignore cached prices.
    cachegrind:
        Count branches under valgrind as well.
    keep:
        Directory that receives the generated C, objects and programs; a scratch one, removed, when None.
    """

    length: int = DEFAULT_LENGTH
    effort: Effort = field(default_factory=Effort)
    plans: tuple[PlanClass, ...] = (PlanClass.TREE, PlanClass.TREE_TABLE, PlanClass.CHAIN)
    pgo: tuple[Compiler, ...] = ()
    nested: bool = True
    calibrate_again: bool = False
    cachegrind: bool = False
    keep: Path | None = None


@dataclass(frozen=True)
class Row:
    """One candidate in one mode.

    Attributes
    ----------
    ticks:
        Median TSC ticks per exit, handler included.
    extra:
        Ticks over the direct call.
    over_direct, over_reference:
        Time as a multiple of the direct call's and of S2's.
    ratios:
        Time as a multiple of other candidates', by name: the profile-guided switches and the plans.
    noise:
        The difference to S2 is within noise: under one tick, or the interval contains 1.
    modelled:
        Ticks over the direct call that the cost model expects; plain mode of known trees only.
    """

    candidate: str
    mode: str
    ticks: float
    extra: Interval
    over_direct: Interval
    over_reference: Interval
    ratios: Mapping[str, Interval]
    noise: bool
    modelled: float | None


@dataclass(frozen=True)
class Cell:
    """Everything measured under one compiler and one mitigation; ``absent`` says why when nothing could be."""

    compiler: Compiler
    mitigation: Mitigation
    absent: str = ""
    model: CostModel | None = None
    plans: tuple[Plan, ...] = ()
    rows: tuple[Row, ...] = ()
    text_bytes: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    order_faults: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, BranchCounts] = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True)
class BenchResult:
    """A whole run: host, profile, cells."""

    host: HostDescription
    profile: Profile
    options: BenchOptions
    cells: tuple[Cell, ...]


def planned_name(plan_class: PlanClass) -> str:
    """Candidate name of the plan of a class."""
    return f"planned-{plan_class}"


def run_bench(
    profile: Profile,
    strategies: Sequence[Strategy],
    compilers: Sequence[Compiler],
    mitigations: Sequence[Mitigation],
    options: BenchOptions,
    progress: Progress = lambda _text: None,
) -> BenchResult:
    """Measure.

    A compiler that lacks a mitigation gives a cell that says so; any other failure is raised.

    Raises
    ------
    UsageError
        For two candidates of one name, or too short a sequence.
    PlanError
        When the profile cannot be planned for.
    ToolError
        When a compiler or a program it made fails.
    """
    names = [strategy.name for strategy in strategies] + [planned_name(c) for c in options.plans] + [DIRECT]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"two candidates are named {', '.join(sorted(twice))}; rename one")
    cells = []
    for compiler in compilers:
        for mitigation in mitigations:
            shown = f"{Path(compiler.path).name}, {mitigation.name}"
            try:
                mitigation.flags_for(compiler)
            except ToolError as error:
                cells.append(Cell(compiler, mitigation, absent=str(error)))
                continue
            report = partial(_report, progress, shown)
            cells.append(_cell(profile, strategies, compiler, mitigation, options, report))
    return BenchResult(describe_host(), profile, options, tuple(cells))


def _report(progress: Progress, cell: str, text: str) -> None:
    progress(f"{cell}: {text}")


@contextmanager
def _directory(options: BenchOptions, compiler: Compiler, mitigation: Mitigation) -> Iterator[Path]:
    if options.keep is not None:
        path = options.keep / f"{Path(compiler.path).name}-{mitigation.name}"
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lzero-bench-") as scratch:
        yield Path(scratch)


def _cell(
    profile: Profile,
    strategies: Sequence[Strategy],
    compiler: Compiler,
    mitigation: Mitigation,
    options: BenchOptions,
    progress: Progress,
) -> Cell:
    model = load_calibration(compiler, mitigation, again=options.calibrate_again, progress=progress)
    progress("planning")
    plans = tuple(make_plan(profile, model, c, name=planned_name(c)) for c in options.plans)
    every = [*strategies, *(plan.strategy for plan in plans)]
    order = profile.sequence(options.length)
    with _directory(options, compiler, mitigation) as directory:
        progress("building")
        # The compiler under test has its own profile-guided switch even when it is not one of the default two.
        pgo = options.pgo if compiler in options.pgo or not options.pgo else (*options.pgo, compiler)
        build = build_program(
            compiler,
            mitigation,
            every,
            directory,
            layouts=options.effort.layouts,
            training=order,
            pgo=pgo,
            nested=options.nested,
        )
        path = write_order(order, directory / "order.bin")
        measured = measure_programs(
            build.programs, path, options.effort, exits=len(order), nested=options.nested, progress=progress
        )
        counts: Mapping[str, BranchCounts] = {}
        if options.cachegrind and valgrind_available():
            progress("cachegrind")
            counts = count_branches(build.programs[0], path, len(order), directory, nested=options.nested)
    expected = {strategy.name: _expected(strategy, profile, model) for strategy in every}
    rows = _rows(build, measured, expected)
    return Cell(
        compiler,
        mitigation,
        model=model,
        plans=plans,
        rows=rows,
        text_bytes=build.text_bytes,
        missing=build.absent,
        order_faults=build.order_faults,
        counts=counts,
        measured=measured,
    )


def _expected(strategy: Strategy, profile: Profile, model: CostModel) -> Expected:
    if profile.independent:
        return expected_cost(strategy.root, profile.frequencies(), model)
    return replayed_cost(strategy.root, profile, model, default_predictor())


def _rows(build: Build, measured: Measured, expected: Mapping[str, Expected]) -> tuple[Row, ...]:
    rows = []
    modes = list(dict.fromkeys(mode for mode, _ in measured.samples))
    for mode in modes:
        direct = measured.samples[mode, DIRECT]
        reference = measured.samples.get((mode, REFERENCE), direct)
        for name in build.programs[0].names:
            samples = measured.samples[mode, name]
            over = ratio_interval(samples, reference)
            difference = difference_interval(samples, reference)
            others = [n for n in build.programs[0].names if n.startswith((PGO_SWITCH, "planned-")) and n != name]
            rows.append(
                Row(
                    candidate=name,
                    mode=mode,
                    ticks=float(np.median(samples)),
                    extra=difference_interval(samples, direct),
                    over_direct=ratio_interval(samples, direct),
                    over_reference=over,
                    ratios={other: ratio_interval(samples, measured.samples[mode, other]) for other in others},
                    noise=over.low <= 1.0 <= over.high or abs(difference.value) < NOISE_TICKS,
                    modelled=expected[name].ticks if mode == "plain" and name in expected else None,
                )
            )
    return tuple(rows)
