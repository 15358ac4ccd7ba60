"""Whether two dispatchers agree, for every one of the 65,536 reasons under every condition.

Four things can be compared, each against the tree it was made from, and trees against each other:

* the tree itself (:func:`lzero.dispatch.tree.regions`),
* the Python function, called with every reason,
* the emitted C, compiled by a real compiler into a program that calls it with every reason,
* the machine code, walked without running it (:mod:`lzero.dispatch.machine_code`).
"""

from __future__ import annotations

import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lzero.dispatch.compile_python import compile_python
from lzero.dispatch.emit_c import ENTRY_POINT, KERNEL_TABLE_INIT, STYLES, Style, checkable, checked_symbol, emit_c
from lzero.dispatch.strategies import Strategy, handler_table
from lzero.dispatch.toolchain import (
    RETPOLINE_THUNKS,
    TIMEOUT_S,
    Compiler,
    compile_object,
    kernel_flags,
    link_program,
    retpoline_flags,
)
from lzero.dispatch.tree import (
    ALL_CONDITIONS,
    REASON_COUNT,
    ConditionName,
    Conditions,
    Outcome,
    handlers_used,
    regions,
)
from lzero.errors import ToolError

__all__ = [
    "Difference",
    "check_by_running",
    "compare",
    "differences",
    "outcomes_of_c",
    "outcomes_of_python",
    "outcomes_of_tree",
]

Outcomes = Sequence[Outcome]
"""The outcome of every reason, in order; 65,536 of them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Adjacent reasons ``first``..``last`` for which two dispatchers differ in the same way under ``conditions``."""

    conditions: Conditions
    first: int
    last: int
    left: Outcome
    right: Outcome


def differences(left: Strategy, right: Strategy) -> tuple[Difference, ...]:
    """Where two strategies' trees differ, exactly; empty when they mean the same."""
    found: list[Difference] = []
    for conditions in ALL_CONDITIONS:
        found += compare(outcomes_of_tree(left, conditions), outcomes_of_tree(right, conditions), conditions)
    return tuple(found)


def compare(left: Outcomes, right: Outcomes, conditions: Conditions) -> Iterator[Difference]:
    """The maximal runs of reasons in which two lists of outcomes differ."""
    first = 0
    for pair, run in groupby(zip(left, right, strict=True)):
        length = sum(1 for _ in run)
        if pair[0] != pair[1]:
            yield Difference(conditions, first, first + length - 1, *pair)
        first += length


def outcomes_of_tree(strategy: Strategy, conditions: Conditions) -> list[Outcome]:
    """What the tree says, for every reason."""
    found: list[Outcome] = []
    for region in regions(strategy.root, conditions):
        found += [region.outcome] * (region.last - region.first + 1)
    return found


def outcomes_of_python(strategy: Strategy, conditions: Conditions) -> list[Outcome]:
    """What the compiled Python function calls, for every reason."""

    def handler(name: str) -> Callable[[None], Outcome]:
        return lambda vcpu: name

    handlers = {name: handler(name) for name in handlers_used(strategy.root)}
    dispatch = compile_python(
        strategy,
        handlers,
        unexpected=lambda vcpu, reason: None,
        nested=ConditionName.NESTED in conditions,
        failed_entry=ConditionName.FAILED_ENTRY in conditions,
    )
    return [dispatch(None, reason) for reason in range(REASON_COUNT)]


def outcomes_of_c(
    strategy: Strategy, compiler: Compiler, style: Style, *, retpoline: bool = True
) -> dict[Conditions, list[Outcome]]:
    """What the emitted C calls, for every reason under every condition, by running it.

    The text that is compiled is the text that ``emit`` writes, with the kernel's flags and warnings as errors.

    Raises
    ------
    ToolError
        The compiler refused the text, or the program failed.
    """
    names = [None, *sorted({*handlers_used(strategy.root), *handlers_used(handler_table())})]
    flags = (*kernel_flags(compiler, hosted=True), *(retpoline_flags(compiler) if retpoline else ()))
    with tempfile.TemporaryDirectory(prefix="lzero-prove-") as directory:
        dispatcher, harness, program = (Path(directory) / name for name in ("dispatch.o", "harness.o", "prove"))
        compile_object(compiler, checkable(strategy, style, emit_c(strategy, style)), flags, dispatcher)
        compile_object(compiler, _harness(names[1:], checked_symbol(style)), ("-O1", "-Wall", "-Werror"), harness)
        link_program(compiler, [dispatcher, harness], program)
        return {conditions: _run(program, strategy, conditions, names) for conditions in ALL_CONDITIONS}


def check_by_running(strategy: Strategy, compilers: Sequence[Compiler]) -> list[str]:
    """Run the Python function and the compiled C for every reason; one line per thing that did as the tree says.

    Raises
    ------
    ToolError
        One of them did not: a defect of lzero or of the compiler. The first difference is in the message.
    """
    lines: list[str] = []
    expected = {conditions: outcomes_of_tree(strategy, conditions) for conditions in ALL_CONDITIONS}

    def require(what: str, found: dict[Conditions, list[Outcome]]) -> None:
        for conditions in ALL_CONDITIONS:
            wrong = next(compare(expected[conditions], found[conditions], conditions), None)
            if wrong is not None:
                raise ToolError(
                    f"{strategy.name}: {what} calls {wrong.right or 'unexpected'} for exit reason {wrong.first}, "
                    f"its tree says {wrong.left or 'unexpected'}"
                )
        lines.append(f"{strategy.name}: {what} does what its tree says")

    require(
        "the Python function", {conditions: outcomes_of_python(strategy, conditions) for conditions in ALL_CONDITIONS}
    )
    for compiler in compilers:
        for style in STYLES:
            require(f"{style} C by {compiler.version}", outcomes_of_c(strategy, compiler, style))
    return lines


def _run(program: Path, strategy: Strategy, conditions: Conditions, names: Sequence[Outcome]) -> list[Outcome]:
    """Run the harness under one set of conditions: a process each, for patching a table cannot be undone."""
    command = [str(program), *("1" if name in conditions else "0" for name in ConditionName)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ToolError(f"the compiled dispatcher {strategy.name} did not return from some exit reason") from None
    numbers = array("H")
    if done.returncode == 0 and len(done.stdout) == numbers.itemsize * REASON_COUNT:
        numbers.frombytes(done.stdout)
        return [names[number] for number in numbers]
    raise ToolError(f"the compiled dispatcher {strategy.name} crashed (status {done.returncode})")


def _harness(handlers: Sequence[Outcome], dispatcher: str) -> str:
    """C program that calls the dispatcher with every reason and writes the number of the handler it reached.

    Handlers live here, in a translation unit of their own, so the compiler of the dispatcher knows nothing about them.
    """
    bodies = "\n".join(
        f"int {name}(struct kvm_vcpu *vcpu) {{ (void)vcpu; return {number}; }}"
        for number, name in enumerate(handlers, 1)
    )
    inits = (f"{ENTRY_POINT}_init", KERNEL_TABLE_INIT)
    weak = "\n".join(f"__attribute__((weak)) void {name}(void);" for name in inits)
    calls = "\n\t".join(f"if ({name}) {name}();" for name in inits)
    return f"""\
#include <stdbool.h>
#include <stdio.h>

struct kvm_vcpu {{ unsigned int exit_reason; }};
bool nested;
int {dispatcher}(struct kvm_vcpu *vcpu, unsigned int reason);
{weak}

{bodies}
int handle_unexpected_exit(struct kvm_vcpu *vcpu) {{ (void)vcpu; return 0; }}
void dump_vmcs(struct kvm_vcpu *vcpu) {{ (void)vcpu; }}
void kvm_prepare_unexpected_reason_exit(struct kvm_vcpu *vcpu, unsigned long long reason)
{{
	(void)vcpu;
	(void)reason;
}}
{RETPOLINE_THUNKS}
static unsigned short found[{REASON_COUNT}];

int main(int argc, char **argv)
{{
	if (argc != 3)
		return 1;
	nested = argv[1][0] == '1';
	{calls}
	for (unsigned int reason = 0; reason < {REASON_COUNT}; reason++) {{
		struct kvm_vcpu vcpu = {{ reason | (argv[2][0] == '1' ? 1u << 31 : 0) }};

		found[reason] = (unsigned short){dispatcher}(&vcpu, reason);
	}}
	return fwrite(found, sizeof(found), 1, stdout) == 1 ? 0 : 1;
}}
"""
