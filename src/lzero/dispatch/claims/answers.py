"""The claims of the debate that a measurement on this host can answer: C1, C2 and C5.

Each answer is a paired ratio with its confidence interval, set against a whole VM exit, and the machine code that
explains it. C3 and C4 are about which exits occur, so recordings answer them, not this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lzero.dispatch.claims.build import INLINED, build_inlining, emitted_path
from lzero.dispatch.measure.build import build_program, write_order
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.measure.run import Effort, Measured, measure_programs
from lzero.dispatch.measure.stats import NOISE_TICKS, Interval, difference_interval, ratio_interval
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.strategies import STRATEGIES
from lzero.dispatch.toolchain import Compiler
from lzero.errors import UsageError
from lzero.sdm.exit_reasons import ExitReason

__all__ = ["CLAIMS", "EFFORT", "EXIT_CYCLES", "QUICK", "Answer", "Comparison", "answer_claims"]

EXIT_CYCLES = (1300, 2500)
"""Cycles of one whole VM exit and entry on current processors, as the project's facts have it."""

EFFORT = Effort(layouts=6, processes=3, rounds={"plain": 11, "polluted": 5})
QUICK = Effort(layouts=2, processes=1, rounds={"plain": 5, "polluted": 3})
LENGTH = 65536

Progress = Callable[[str], None]

CLAIMS: Mapping[str, str] = {
    "C1": "an extra CALL+RET isn't going to be noticeable: S7 against S6",
    "C2": "the two-parse const table costs a second parse for the most frequent exits: S5 against S1",
    "C5": "whether a handler is inlined into an extern call decides what is measured",
}


@dataclass(frozen=True)
class Comparison:
    """One candidate against another, in one mode, on one profile."""

    candidate: str
    reference: str
    profile: str
    mode: str
    ratio: Interval
    ticks: Interval
    """TSC ticks per exit, handler included, that the candidate takes more than the reference."""

    @property
    def noise(self) -> bool:
        """Within noise: the interval of the difference contains zero, or the difference is under a tick."""
        return self.ticks.low <= 0.0 <= self.ticks.high or abs(self.ticks.value) < NOISE_TICKS

    @property
    def share_of_exit(self) -> float:
        """The difference as a share of the shortest whole exit: the most it could matter."""
        return abs(self.ticks.value) / EXIT_CYCLES[0]


@dataclass(frozen=True)
class Answer:
    """What was found about one claim under one compiler and mitigation."""

    claim: str
    text: str
    compiler: str
    mitigation: str
    verdict: str
    comparisons: tuple[Comparison, ...]
    machine_code: str


def answer_claims(
    names: Sequence[str],
    compiler: Compiler,
    mitigation: Mitigation,
    profiles: Sequence[Profile],
    effort: Effort = EFFORT,
    progress: Progress = lambda _text: None,
) -> tuple[Answer, ...]:
    """Measure and answer claims.

    Parameters
    ----------
    names:
        Keys of :data:`CLAIMS`.
    profiles:
        What is replayed; profiles of nested virtualisation, for the claims are about VMX instructions.

    Raises
    ------
    UsageError
        For a claim that is not in the list.
    ToolError
        When a compiler or a program it made fails.
    """
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise UsageError(f"claim {unknown[0]} cannot be measured here: there are {', '.join(CLAIMS)}")
    answers = []
    for name in names:
        report = _prefixed(progress, f"{name}, {Path(compiler.path).name}")
        answers.append(_ANSWERS[name](compiler, mitigation, profiles, effort, report))
    return tuple(answers)


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda text: progress(f"{prefix}: {text}")


def _measure(
    strategies: Sequence[str],
    compiler: Compiler,
    mitigation: Mitigation,
    profile: Profile,
    effort: Effort,
    progress: Progress,
) -> Measured:
    order = profile.sequence(LENGTH)
    with tempfile.TemporaryDirectory(prefix="lzero-claims-") as scratch:
        directory = Path(scratch)
        chosen = [STRATEGIES[name] for name in strategies]
        build = build_program(compiler, mitigation, chosen, directory, layouts=effort.layouts)
        path = write_order(order, directory / "order.bin")
        return measure_programs(build.programs, path, effort, exits=len(order), progress=progress)


def _compared(measured: Measured, profile: Profile, candidate: str, reference: str) -> list[Comparison]:
    modes = list(dict.fromkeys(mode for mode, _ in measured.samples))
    return [
        Comparison(
            candidate,
            reference,
            profile.name,
            mode,
            ratio_interval(measured.samples[mode, candidate], measured.samples[mode, reference]),
            difference_interval(measured.samples[mode, candidate], measured.samples[mode, reference]),
        )
        for mode in modes
    ]


def _pair(
    candidate: str,
    reference: str,
    compiler: Compiler,
    mitigation: Mitigation,
    profiles: Sequence[Profile],
    effort: Effort,
    progress: Progress,
) -> list[Comparison]:
    found = []
    for profile in profiles:
        # S2 stands beside the pair so that a reader can relate it to upstream.
        measured = _measure([candidate, reference, "chain"], compiler, mitigation, profile, effort, progress)
        found += _compared(measured, profile, candidate, reference)
        found += _compared(measured, profile, candidate, "chain")
    return found


def _c1(
    compiler: Compiler, mitigation: Mitigation, profiles: Sequence[Profile], effort: Effort, progress: Progress
) -> Answer:
    found = _pair("range", "switch_if_nested", compiler, mitigation, profiles, effort, progress)
    code = [
        emitted_path(STRATEGIES[name], compiler, mitigation, ExitReason.VMREAD)
        for name in ("switch_if_nested", "range")
    ]
    direct = [comparison for comparison in found if comparison.reference == "switch_if_nested"]
    return _answer("C1", compiler, mitigation, _noticeable(direct), found, code)


def _c2(
    compiler: Compiler, mitigation: Mitigation, profiles: Sequence[Profile], effort: Effort, progress: Progress
) -> Answer:
    found = _pair("const_table_two_parse", "table", compiler, mitigation, profiles, effort, progress)
    code = [
        emitted_path(STRATEGIES[name], compiler, mitigation, ExitReason.VMREAD)
        for name in ("table", "const_table_two_parse")
    ]
    direct = [comparison for comparison in found if comparison.reference == "table"]
    worst = max(direct, key=lambda comparison: comparison.ticks.value)
    if worst.noise:
        verdict = "refuted here: the second parse disappears in the noise"
    elif worst.ticks.value > 0:
        verdict = f"confirmed: the second parse costs up to {_size(worst)}"
    else:
        verdict = "refuted here: the two-parse table is not the slower one"
    return _answer("C2", compiler, mitigation, verdict, found, code)


def _c5(
    compiler: Compiler, mitigation: Mitigation, profiles: Sequence[Profile], effort: Effort, progress: Progress
) -> Answer:
    found = []
    code: tuple[str, ...] = ()
    for profile in profiles:
        order = profile.sequence(LENGTH)
        with tempfile.TemporaryDirectory(prefix="lzero-claims-") as scratch:
            directory = Path(scratch)
            built = build_inlining(compiler, mitigation, directory, effort.layouts)
            code = built.machine_code
            path = write_order(order, directory / "order.bin")
            measured = measure_programs(built.programs, path, effort, exits=len(order), progress=progress)
        for name in ("switch_if_nested", "range"):
            found += _compared(measured, profile, f"{name}{INLINED}", name)
        found += _compared(measured, profile, "range", "switch_if_nested")
        found += _compared(measured, profile, f"range{INLINED}", "switch_if_nested")
    inlining = [
        comparison
        for comparison in found
        if comparison.candidate == f"range{INLINED}" and comparison.reference == "switch_if_nested"
    ]
    against_extern = [comparison for comparison in found if comparison.candidate == "range"]
    verdict = _inlining_verdict(against_extern, inlining)
    return _answer("C5", compiler, mitigation, verdict, found, code)


def _inlining_verdict(extern: Sequence[Comparison], inlined: Sequence[Comparison]) -> str:
    """C5 holds if S7 against S6 comes out differently once the handlers are inlined into S7's function."""
    pairs = zip(extern, inlined, strict=True)
    before, after = max(pairs, key=lambda pair: abs(pair[0].ticks.value - pair[1].ticks.value))
    apart = before.ticks.high < after.ticks.low or after.ticks.high < before.ticks.low
    text = (
        f"S7 over S6 is {before.ticks.value:+.1f} ticks with extern handlers and {after.ticks.value:+.1f} with inlined "
        f"ones ({before.profile}, {before.mode})"
    )
    return f"confirmed: {text}" if apart else f"not shown here: {text}, and the intervals overlap"


def _noticeable(comparisons: Sequence[Comparison]) -> str:
    loud = [comparison for comparison in comparisons if not comparison.noise and comparison.ticks.value > 0]
    if not loud:
        return "confirmed: S7 is not slower than S6 beyond noise"
    worst = max(loud, key=lambda comparison: comparison.ticks.value)
    return f"confirmed for an exit, refuted for the dispatch alone: S7 costs up to {_size(worst)}"


def _size(comparison: Comparison) -> str:
    return (
        f"{comparison.ticks.value:.1f} ticks ({comparison.profile}, {comparison.mode}), "
        f"which is at most {comparison.share_of_exit:.2%} of an exit of {EXIT_CYCLES[0]:,} cycles or more"
    )


def _answer(
    claim: str,
    compiler: Compiler,
    mitigation: Mitigation,
    verdict: str,
    comparisons: Sequence[Comparison],
    code: Sequence[str],
) -> Answer:
    listing = "\n\n".join(code)
    return Answer(claim, CLAIMS[claim], compiler.version, mitigation.name, verdict, tuple(comparisons), listing)


_ANSWERS = {"C1": _c1, "C2": _c2, "C5": _c5}
