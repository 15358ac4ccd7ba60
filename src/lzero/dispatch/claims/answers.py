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
from lzero.dispatch.handlers import HANDLERS, HandlerRow
from lzero.dispatch.measure.build import build_program, write_order
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.measure.run import Effort, Measured, measure_programs
from lzero.dispatch.measure.stats import NOISE_TICKS, Interval, difference_interval, ratio_interval
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.strategies import STRATEGIES, Strategy
from lzero.dispatch.toolchain import Compiler
from lzero.dispatch.tree import Case, Condition, ConditionName, Leaf, Node, OutOfLine, Switch, Unexpected
from lzero.errors import UsageError
from lzero.sdm.exit_reasons import ExitReason

__all__ = [
    "CLAIMS",
    "EFFORT",
    "EXIT_CYCLES",
    "QUICK",
    "Answer",
    "Comparison",
    "across_compilers",
    "answer_claims",
    "ticks_text",
]

EXIT_CYCLES = (1300, 2500)
"""Cycles of one whole VM exit and entry on current processors, as the project's facts have it."""

EFFORT = Effort(layouts=6, processes=3, rounds={"plain": 11, "polluted": 5})
QUICK = Effort(layouts=2, processes=1, rounds={"plain": 5, "polluted": 3})
LENGTH = 65536

EXTRA_CALL = "switch_extra_call"

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


@dataclass(frozen=True)
class _Setting:
    compiler: Compiler
    mitigation: Mitigation
    profiles: Sequence[Profile]
    effort: Effort
    progress: Progress


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
        answers.append(_ANSWERS[name](_Setting(compiler, mitigation, profiles, effort, report)))
    return tuple(answers)


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda text: progress(f"{prefix}: {text}")


def _extra_call() -> Strategy:
    """S6 with one more call: each VMX case goes to a function of the nested module that looks at ``nested`` itself.

    Against S6 it shows what the call alone costs; S7 adds the second parse to it.
    """
    cases = tuple(Case(int(row.reason), int(row.reason), _case(row)) for row in HANDLERS.values())
    return Strategy(EXTRA_CALL, "", "S6 with an extra call per VMX instruction", Switch(cases, Unexpected()), False)


def _case(row: HandlerRow) -> Node:
    if row.nested_handler is None:
        return Leaf(row.handler)
    inner = Condition(ConditionName.NESTED, Leaf(row.nested_handler), Leaf(row.handler))
    return OutOfLine(f"nested_vmx_{row.nested_handler}", inner)


def _measure(
    strategies: Sequence[Strategy],
    compiler: Compiler,
    mitigation: Mitigation,
    profile: Profile,
    effort: Effort,
    progress: Progress,
) -> Measured:
    order = profile.sequence(LENGTH)
    with tempfile.TemporaryDirectory(prefix="lzero-claims-") as scratch:
        directory = Path(scratch)
        build = build_program(compiler, mitigation, strategies, directory, layouts=effort.layouts)
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


def _against(
    reference: Strategy,
    candidates: Sequence[Strategy],
    setting: _Setting,
) -> list[Comparison]:
    """The candidates against the reference, and the last of them against S2 so that it can be related to upstream."""
    found = []
    upstream = STRATEGIES["chain"]
    for profile in setting.profiles:
        every = [reference, *candidates, upstream]
        measured = _measure(every, setting.compiler, setting.mitigation, profile, setting.effort, setting.progress)
        for candidate in candidates:
            found += _compared(measured, profile, candidate.name, reference.name)
        found += _compared(measured, profile, candidates[-1].name, upstream.name)
    return found


def _paths(strategies: Sequence[Strategy], setting: _Setting) -> list[str]:
    return [emitted_path(strategy, setting.compiler, setting.mitigation, ExitReason.VMREAD) for strategy in strategies]


def _c1(setting: _Setting) -> Answer:
    six, seven, extra = STRATEGIES["switch_if_nested"], STRATEGIES["range"], _extra_call()
    found = _against(six, [extra, seven], setting)
    call = _worst(found, EXTRA_CALL, six.name)
    whole = _worst(found, seven.name, six.name)
    if call.noise and whole.noise:
        verdict = "confirmed: neither the call alone nor S7 is slower than S6 beyond noise"
    elif call.noise:
        verdict = f"confirmed: the call alone is within noise; S7, with its second parse, costs up to {_size(whole)}"
    else:
        verdict = f"confirmed for an exit, not for the dispatch alone: the call costs up to {_size(call)}"
    return _answer("C1", setting, verdict, found, _paths([six, extra, seven], setting))


def _c2(setting: _Setting) -> Answer:
    one, five = STRATEGIES["table"], STRATEGIES["const_table_two_parse"]
    found = _against(one, [five], setting)
    worst = _worst(found, five.name, one.name)
    if worst.noise:
        verdict = "not shown here: the second parse disappears in the noise"
    elif worst.ticks.value > 0:
        verdict = f"confirmed: the second parse costs up to {_size(worst)}"
    else:
        verdict = "refuted here: the two-parse table is not the slower one"
    return _answer("C2", setting, verdict, found, _paths([one, five], setting))


def _worst(found: Sequence[Comparison], candidate: str, reference: str) -> Comparison:
    """The comparison in which the candidate loses most beyond noise, or the least certain one if it loses nowhere."""
    rows = [row for row in found if (row.candidate, row.reference) == (candidate, reference)]
    return max(rows, key=lambda row: (not row.noise, row.ticks.value))


def _c5(setting: _Setting) -> Answer:
    found = []
    code: tuple[str, ...] = ()
    for profile in setting.profiles:
        order = profile.sequence(LENGTH)
        with tempfile.TemporaryDirectory(prefix="lzero-claims-") as scratch:
            directory = Path(scratch)
            built = build_inlining(setting.compiler, setting.mitigation, directory, setting.effort.layouts)
            code = built.machine_code
            path = write_order(order, directory / "order.bin")
            measured = measure_programs(
                built.programs, path, setting.effort, exits=len(order), progress=setting.progress
            )
        for name in ("switch_if_nested", "range"):
            found += _compared(measured, profile, f"{name}{INLINED}", name)
        found += _compared(measured, profile, "range", "switch_if_nested")
        found += _compared(measured, profile, f"range{INLINED}", "switch_if_nested")
    return _answer("C5", setting, _inlining_verdict(found), found, code)


def _inlining_verdict(found: Sequence[Comparison]) -> str:
    """C5 holds if S7 against S6 comes out differently once the handlers are inlined into S7's function."""
    extern, inlined = (
        [row for row in found if (row.candidate, row.reference) == (name, "switch_if_nested")]
        for name in ("range", f"range{INLINED}")
    )
    pairs = list(zip(extern, inlined, strict=True))
    apart = [(a, b) for a, b in pairs if a.ticks.high < b.ticks.low or b.ticks.high < a.ticks.low]
    if apart:
        before, after = max(apart, key=lambda pair: abs(pair[0].ticks.value - pair[1].ticks.value))
        word = "confirmed" if abs(before.ticks.value - after.ticks.value) >= NOISE_TICKS else "not beyond a tick"
    else:
        # Nothing is told apart: quote where the measurement is sharpest.
        before, after = min(pairs, key=lambda pair: pair[0].ticks.high - pair[0].ticks.low)
        word = "not shown here"
    return (
        f"{word}: S7 over S6 is {ticks_text(before.ticks)} ticks with extern handlers and {ticks_text(after.ticks)} "
        f"with inlined ones ({before.profile}, {before.mode})"
    )


def across_compilers(answers: Sequence[Answer]) -> list[str]:
    """What the same comparison of C1 gives under each compiler: the other half of the compiler dependency."""
    lines = []
    for answer in answers:
        for row in answer.comparisons:
            if answer.claim == "C1" and (row.candidate, row.reference) == ("range", "switch_if_nested"):
                where = f"{row.profile}, {row.mode}"
                lines.append(f"S7 over S6, {where}, {answer.compiler}: {ticks_text(row.ticks)} ticks")
    return sorted(lines) if len({answer.compiler for answer in answers}) > 1 else []


def ticks_text(ticks: Interval) -> str:
    """A difference in ticks with its interval."""
    return f"{ticks.value:+.1f} [{ticks.low:+.1f}, {ticks.high:+.1f}]"


def _size(comparison: Comparison) -> str:
    return (
        f"{comparison.ticks.value:.1f} ticks ({comparison.profile}, {comparison.mode}), "
        f"which is at most {comparison.share_of_exit:.2%} of an exit of {EXIT_CYCLES[0]:,} cycles or more"
    )


def _answer(
    claim: str, setting: _Setting, verdict: str, comparisons: Sequence[Comparison], code: Sequence[str]
) -> Answer:
    listing = "\n\n".join(code)
    names = (setting.compiler.version, setting.mitigation.name)
    return Answer(claim, CLAIMS[claim], *names, verdict, tuple(comparisons), listing)


_ANSWERS = {"C1": _c1, "C2": _c2, "C5": _c5}
