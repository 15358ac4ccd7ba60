"""Programs and listings for the claims: VMX handlers inlined or not, and the code that one exit runs through."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lzero.dispatch.emit_c import ENTRY_POINT, emit_c, emit_functions, standalone_prelude
from lzero.dispatch.handlers import HANDLERS, NESTED_INSTRUCTIONS
from lzero.dispatch.machine_code import TABLE, trace
from lzero.dispatch.measure import build as bench
from lzero.dispatch.measure.build import BuiltProgram, candidate_symbol
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.object_code import Function, Line, ObjectCode
from lzero.dispatch.strategies import STRATEGIES, Strategy
from lzero.dispatch.toolchain import Compiler, kernel_flags, run_tool
from lzero.dispatch.tree import ConditionName, OutOfLine, out_of_line_functions, tests_on_path
from lzero.sdm.exit_reasons import ExitReason, exit_reason_name

__all__ = ["INLINED", "InliningBuild", "build_inlining", "emitted_path"]

INLINED = "_inlined"
"""Suffix of a candidate whose VMX handlers are in its own translation unit and forced into their callers."""

_HERE = Path(__file__).parent
_BENCH = Path(bench.__file__).parent
_CANDIDATES = ("switch_if_nested", "range")
_LINES_OF_BODY = 4
"""How much of an inlined handler a listing shows: enough to see that it is the handler."""


@dataclass(frozen=True)
class InliningBuild:
    """The programs of claim C5, and what one VMCLEAR runs through in each candidate."""

    programs: tuple[BuiltProgram, ...]
    machine_code: tuple[str, ...]


def build_inlining(compiler: Compiler, mitigation: Mitigation, directory: Path, layouts: int) -> InliningBuild:
    """Build S6 and S7 with extern and with inlined VMX handlers, in several link orders."""
    builder = _Builder(compiler, mitigation, directory)
    objects = {}
    for name in _CANDIDATES:
        objects[name] = builder.candidate(STRATEGIES[name], name, inlined=False)
        objects[name + INLINED] = builder.candidate(STRATEGIES[name], name + INLINED, inlined=True)
    shared = [builder.handlers(), *builder.thunks()]
    main = builder.main(list(objects))
    programs = []
    every = [*objects.values(), *shared]
    for layout in range(layouts):
        # Rotations of one list: each object meets different neighbours and alignment, and no order comes twice.
        turn = layout % len(every)
        order = [*every[turn:], *every[:turn]]
        target = directory / f"inlining_{layout}"
        builder.run(["-no-pie", "-o", target, *([main, *order] if layout % 2 else [*order, main])], "linking")
        programs.append(BuiltProgram(target, layout, tuple(objects)))
    listings = tuple(
        "\n".join(
            _path(ObjectCode(path), f"{name}: VMCLEAR", STRATEGIES["range"], candidate_symbol(name), ExitReason.VMCLEAR)
        )
        for name, path in objects.items()
    )
    return InliningBuild(tuple(programs), listings)


class _Builder:
    """Compiles the pieces of the benchmark program around handlers of this module's own."""

    def __init__(self, compiler: Compiler, mitigation: Mitigation, directory: Path) -> None:
        self.compiler = compiler
        self.mitigation = mitigation
        self.directory = directory
        self.flags = [*kernel_flags(compiler, hosted=True), *mitigation.flags_for(compiler)]

    def run(self, arguments: list[str | Path], what: str) -> None:
        run_tool([self.compiler.path, *map(str, arguments)], f"claim C5: {what}")

    def compile(self, source: Path, target: Path, includes: list[Path], flags: list[str]) -> Path:
        paths = [f"-I{path}" for path in (*includes, _HERE, _BENCH)]
        self.run([*flags, *paths, "-c", "-o", target, source], f"compiling {source.name}")
        return target

    def listed(self, name: str, header: str, lines: list[str]) -> Path:
        """A directory that holds one generated header."""
        place = self.directory / name
        place.mkdir(exist_ok=True)
        (place / header).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return place

    def candidate(self, strategy: Strategy, name: str, *, inlined: bool) -> Path:
        symbol = candidate_symbol(name)
        own = [row.nested_handler for row in NESTED_INSTRUCTIONS if row.nested_handler] if inlined else []
        prelude = standalone_prelude(strategy, symbol, types=_TYPES, defined=own)
        bodies = '#include "claim_handlers.c"\n' if inlined else ""
        text = f"{prelude}\n{bodies}\n{emit_functions(strategy, 'standalone', function=symbol)}"
        for function in out_of_line_functions(strategy.root):
            # Each candidate has a function of that name, and all are linked into one program.
            text = text.replace(function, f"{symbol}_nested")
        source = self.directory / f"{symbol}.c"
        source.write_text(text, encoding="utf-8")
        numbers = _numbers()
        includes = [self.listed(f"{symbol}.include", "handlers.h", [f"HANDLER({h}, {numbers[h]})" for h in own])]
        target = self.directory / f"{symbol}.o"
        if self.mitigation.rewrite is None:
            return self.compile(source, target, includes, self.flags)
        assembly = self.directory / f"{symbol}.s"
        paths = [f"-I{path}" for path in (*includes, _HERE, _BENCH)]
        self.run([*self.flags, *paths, "-S", "-o", assembly, source], f"compiling {source.name}")
        assembly.write_text(self.mitigation.rewrite(assembly.read_text(encoding="utf-8")), encoding="utf-8")
        self.run(["-c", "-o", target, assembly], f"assembling {assembly.name}")
        return target

    def handlers(self) -> Path:
        rows = [f"HANDLER({name}, {number})" for name, number in _numbers().items()]
        includes = [self.listed("handlers.include", "handlers.h", rows)]
        return self.compile(_HERE / "claim_handlers.c", self.directory / "handlers.o", includes, self.flags)

    def thunks(self) -> list[Path]:
        if not self.mitigation.thunks:
            return []
        source = self.directory / "thunks.s"
        source.write_text(self.mitigation.thunks, encoding="utf-8")
        target = self.directory / "thunks.o"
        self.run(["-c", "-o", target, source], "building the thunks")
        return [target]

    def main(self, names: list[str]) -> Path:
        rows = [f"CANDIDATE({candidate_symbol(name)})" for name in names]
        includes = [self.listed("main.include", "candidates.h", rows)]
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-pie", "-fcf-protection=none"]
        return self.compile(_BENCH / "bench_main.c", self.directory / "main.o", includes, flags)


_TYPES = """\
#include <stdbool.h>
#include "bench.h"

#define noinline __attribute__((noinline))
#define LINKAGE static inline __attribute__((always_inline))
"""


def _numbers() -> dict[str, int]:
    """Every handler with a number of its own, the same in each translation unit."""
    names = {name for row in HANDLERS.values() for name in (row.handler, row.nested_handler) if name}
    return {name: number for number, name in enumerate(sorted(names))}


def emitted_path(strategy: Strategy, compiler: Compiler, mitigation: Mitigation, reason: ExitReason) -> str:
    """The instructions one exit runs through in a strategy's compiled code, up to its handler."""
    with tempfile.TemporaryDirectory(prefix="lzero-claims-") as scratch:
        source, target = Path(scratch) / "dispatch.c", Path(scratch) / "dispatch.o"
        source.write_text(emit_c(strategy, "standalone"), encoding="utf-8")
        flags = [*kernel_flags(compiler, hosted=True), *mitigation.flags_for(compiler)]
        run_tool([compiler.path, *flags, "-c", "-o", str(target), str(source)], f"compiling {strategy.name}")
        title = f"{strategy.name}: {exit_reason_name(reason)}"
        return "\n".join(_path(ObjectCode(target), title, strategy, ENTRY_POINT, reason))


def _path(code: ObjectCode, title: str, strategy: Strategy, entry: str, reason: ExitReason) -> Iterator[str]:
    """The executed instructions in order, functions named; an inlined handler is shown by its first lines."""
    held = frozenset({ConditionName.NESTED})
    function: str | None = entry
    rows: list[str] = []
    total = 0
    while function is not None:
        place = code.function(function)
        lines, reached = trace(code, function, int(reason), held, takes_reason=function == entry)
        if reached == TABLE:
            lines += _to_the_branch(code, place, lines[-1].offset)
        total += len(lines)
        rows += [f"{function}:", *(f"  {code.rendered(place, line)}" for line in lines)]
        if reached is None:
            rest = [line for line in code.lines(place) if line.offset > lines[-1].offset]
            rows += [f"  {code.rendered(place, line)}" for line in rest[:_LINES_OF_BODY]]
            rows.append("  ...      the inlined handler goes on")
        function = _next_function(code, strategy, reached, reason)
    yield f"{title}: {total} instructions until the handler"
    yield from rows


def _to_the_branch(code: ObjectCode, place: Function, offset: int) -> list[Line]:
    """What follows the load from the table, up to the jump through it; the empty-slot check falls through."""
    found = []
    for line in code.lines(place):
        if line.offset > offset:
            found.append(line)
            if line.is_indirect:
                break
    return found


def _next_function(code: ObjectCode, strategy: Strategy, reached: str | None, reason: ExitReason) -> str | None:
    """The function that decides further, if there is one."""
    if reached != TABLE:
        return reached if reached in code.functions else None
    path = tests_on_path(strategy.root, int(reason), frozenset({ConditionName.NESTED}))
    return next((node.function for node in path if isinstance(node, OutOfLine)), None)
