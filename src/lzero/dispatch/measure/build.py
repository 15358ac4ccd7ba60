"""Builds the benchmark program: every candidate under one compiler and one mitigation, in several layouts."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lzero.dispatch.emit_c import emit_c
from lzero.dispatch.handlers import HANDLERS
from lzero.dispatch.machine_code import UnknownShape, recover
from lzero.dispatch.measure.mitigations import Mitigation
from lzero.dispatch.object_code import ObjectCode
from lzero.dispatch.profiles.profile import ReasonArray
from lzero.dispatch.strategies import STRATEGIES, Strategy
from lzero.dispatch.toolchain import Compiler, kernel_flags, run_tool
from lzero.dispatch.tree import ALL_CONDITIONS, Leaf, handlers_used, out_of_line_functions
from lzero.dispatch.verify_c import order_problems
from lzero.errors import ToolError, UsageError

__all__ = [
    "DIRECT",
    "GCC_PROFILE_USE",
    "PGO_SWITCH",
    "Build",
    "BuiltProgram",
    "build_program",
    "candidate_symbol",
    "write_order",
]

DIRECT = "direct"
"""Candidate that calls one known handler whatever the reason: the baseline of every figure."""

PGO_SWITCH = "pgo_switch"
"""Candidate name, before the compiler's, of the full switch compiled with that compiler's own profile feedback."""

_HERE = Path(__file__).parent
_DIRECT_STRATEGY = Strategy(DIRECT, "", "one direct call, reason ignored: the baseline", Leaf("kvm_emulate_wrmsr"))
_PAD_STEP = 16


@dataclass(frozen=True)
class BuiltProgram:
    """One linked layout and the candidates in it."""

    path: Path
    layout: int
    names: tuple[str, ...]


@dataclass
class Build:
    """Everything built for one compiler and mitigation.

    Attributes
    ----------
    programs:
        One per layout.
    text_bytes:
        Size of each candidate's code and read-only data (tables included), in bytes.
    order_faults:
        Candidates whose tests the compiler moved, or whose code cannot be read back, with what was found.
    absent:
        Candidates that could not be built, with the reason.
    """

    compiler: Compiler
    mitigation: Mitigation
    programs: list[BuiltProgram] = field(default_factory=list)
    text_bytes: dict[str, int] = field(default_factory=dict)
    order_faults: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def candidate_symbol(name: str) -> str:
    """C name of a candidate's dispatcher."""
    return "lz_" + re.sub(r"\W", "_", name)


class _Builder:
    def __init__(self, compiler: Compiler, mitigation: Mitigation, directory: Path) -> None:
        self.compiler = compiler
        self.mitigation = mitigation
        self.directory = directory
        # A dispatcher that ignores the reason, the baseline, is no mistake here.
        warnings = "-Wno-unused-parameter"
        self.flags = (*kernel_flags(compiler, hosted=True), warnings, *mitigation.flags_for(compiler))
        self.objects: dict[str, Path] = {}

    def run(self, arguments: Sequence[str | Path], what: str) -> None:
        run_tool([self.compiler.path, *map(str, arguments)], what)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return path

    def candidate(self, strategy: Strategy, extra: Sequence[str] = (), name: str | None = None) -> Path:
        """Compile one dispatcher to an object."""
        shown = name or strategy.name
        symbol = candidate_symbol(shown)
        source = self.write(f"{symbol}.c", emit_c(strategy, "standalone", function=symbol))
        target = self.directory / f"{symbol}.o"
        what = f"building {shown} for {self.mitigation.name}"
        if self.mitigation.rewrite is None:
            self.run([*self.flags, *extra, "-c", "-o", target, source], what)
        else:
            assembly = self.directory / f"{symbol}.s"
            self.run([*self.flags, *extra, "-S", "-o", assembly, source], what)
            assembly.write_text(self.mitigation.rewrite(assembly.read_text(encoding="utf-8")), encoding="utf-8")
            self.run(["-c", "-o", target, assembly], what)
        # Several candidates define the same out-of-line function; each keeps its own, and clang's kCFI prefix of it.
        functions = out_of_line_functions(strategy.root)
        names = [f"--localize-symbol={prefix}{function}" for function in functions for prefix in ("", "__cfi_")]
        if names:
            run_tool(["objcopy", *names, str(target)], what)
        return target

    def common(self, handlers: set[str]) -> list[Path]:
        """Handlers and thunks."""
        rows = "".join(f"HANDLER({name}, {number})\n" for number, name in enumerate(sorted(handlers)))
        self.write("handlers.h", rows)
        target = self.directory / "handlers.o"
        flags = self.flags if self.mitigation.all_units else kernel_flags(self.compiler, hosted=True)
        self.run([*flags, f"-I{self.directory}", f"-I{_HERE}", "-c", "-o", target, _HERE / "bench_handlers.c"],
                 "building the handlers")  # fmt: skip
        objects = [target]
        if self.mitigation.thunks:
            source = self.write("thunks.s", self.mitigation.thunks)
            thunks = self.directory / "thunks.o"
            self.run(["-c", "-o", thunks, source], "building the thunks")
            objects.append(thunks)
        return objects

    def main(self, names: Sequence[str], target: Path) -> Path:
        rows = "".join(f"CANDIDATE({candidate_symbol(name)})\n" for name in names)
        # Each program's list has a directory of its own, for the C file includes it by one name.
        place = target.with_suffix(".include")
        place.mkdir(exist_ok=True)
        (place / "candidates.h").write_text(rows, encoding="utf-8")
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-pie", "-fcf-protection=none"]
        self.run([*flags, f"-I{place}", f"-I{_HERE}", "-c", "-o", target, _HERE / "bench_main.c"], "building the loops")
        return target

    def pads(self, sizes: Sequence[int], layout: int) -> list[Path]:
        """Objects of nothing but filler, to shift what is linked after them."""
        made = []
        for number, size in enumerate(sizes):
            source = self.write(f"pad_{layout}_{number}.s", f".text\n.skip {size}, 0xcc\n" + _NO_EXEC_STACK)
            target = source.with_suffix(".o")
            self.run(["-c", "-o", target, source], "building filler")
            made.append(target)
        return made

    def link(self, objects: Sequence[Path], target: Path, extra: Sequence[str] = ()) -> None:
        self.run(["-no-pie", *extra, "-o", target, *objects], f"linking {target.name}")

    def text_size(self, path: Path) -> int:
        """Bytes of code and constants in an object, and of the handler tables it has."""
        from elftools.elf.elffile import ELFFile

        total = 0
        with path.open("rb") as file:
            for section in ELFFile(file).iter_sections():
                if section.name.startswith((".text", ".rodata", ".data")):
                    total += section["sh_size"]
        return total


_NO_EXEC_STACK = '.section .note.GNU-stack,"",@progbits\n'


def build_program(
    compiler: Compiler,
    mitigation: Mitigation,
    strategies: Sequence[Strategy],
    directory: Path,
    *,
    layouts: int = 1,
    training: ReasonArray | None = None,
    pgo: Sequence[Compiler] = (),
    nested: bool = True,
    seed: int = 1,
) -> Build:
    """Compile and link all candidates.

    Parameters
    ----------
    strategies:
        The candidates, beside `DIRECT`.
    layouts:
        Number of link orders, each with its own filler between the objects.
    training, pgo:
        Order of exits that trains the profile-guided switch of each compiler in ``pgo``: these are candidates too,
        compiled by their own compiler under the same mitigation.

    Raises
    ------
    ToolError
        When the compiler fails or lacks the mitigation.  A profile-guided switch that cannot be built is recorded in
        ``absent`` instead: it is a baseline, not the purpose.
    """
    builder = _Builder(compiler, mitigation, directory)
    build = Build(compiler, mitigation)
    every = [_DIRECT_STRATEGY, *strategies]
    handlers = {name for strategy in every for name in handlers_used(strategy.root)}
    handlers |= {name for row in HANDLERS.values() for name in (row.handler, row.nested_handler) if name}
    common = builder.common(handlers)
    objects = {strategy.name: builder.candidate(strategy) for strategy in every}
    for other in pgo:
        name = f"{PGO_SWITCH}-{Path(other.path).name}"
        if training is None:
            raise UsageError(f"{name} needs an order of exits to be trained with")
        try:
            objects[name] = _pgo_switch(_Builder(other, mitigation, directory), name, common, training, nested)
        except ToolError as error:
            build.absent[name] = str(error)
    names = tuple(objects)
    build.text_bytes = {name: builder.text_size(path) for name, path in objects.items()}
    for strategy in every:
        fault = _order_fault(strategy, objects[strategy.name]) if strategy.keeps_order else ""
        if fault:
            build.order_faults[strategy.name] = fault
    main = builder.main(names, directory / "main.o")
    shuffle = random.Random(seed)
    for layout in range(layouts):
        order = [*objects.values(), *common]
        shuffle.shuffle(order)
        pads = builder.pads([_PAD_STEP * shuffle.randrange(1, 64) for _ in order], layout)
        pieces = [piece for pair in zip(pads, order, strict=True) for piece in pair]
        target = directory / f"bench_{layout}"
        builder.link([main, *pieces] if layout % 2 else [*pieces, main], target)
        build.programs.append(BuiltProgram(target, layout, names))
    return build


def _order_fault(strategy: Strategy, path: Path) -> str:
    """What is wrong with the order of tests in the object that will be measured; empty when it is the tree's.

    Compilers undo strategies: what is timed must be what is named.
    """
    symbol = candidate_symbol(strategy.name)
    try:
        code = ObjectCode(path)
        for conditions in ALL_CONDITIONS:
            found = recover(code, symbol, conditions, takes_reason=True)
            for problem in order_problems(strategy.root, found, conditions):
                return problem
    except UnknownShape as error:
        return f"cannot be read back: {error}"
    return ""


def write_order(order: ReasonArray, path: Path) -> Path:
    """Write an order of exits as the benchmark reads it: native 16-bit numbers."""
    path.write_bytes(np.ascontiguousarray(order, dtype=np.uint16).tobytes())
    return path


def _pgo_switch(builder: _Builder, name: str, common: list[Path], training: ReasonArray, nested: bool) -> Path:
    """The full switch, compiled with a profile of the very order it will be measured on: the compiler's best case.

    Raises ToolError when the profile was not used: compilers only warn, or say nothing, when they do not find it.
    """
    switch = STRATEGIES["switch"]
    plain = builder.candidate(switch, name=name)
    without = plain.read_bytes()
    order = write_order(training, builder.directory / "training.bin")
    trainer = builder.directory / "trainer"
    family = _GccProfile if builder.compiler.family == "gcc" else _ClangProfile
    profile = family(builder, name)
    instrumented = builder.candidate(switch, profile.generate, name)
    main = builder.main([name], builder.directory / "trainer_main.o")
    builder.link([main, instrumented, *common], trainer, profile.generate)
    _train(
        [str(trainer), str(order), "-1", str(int(nested)), "0", "0", "once", candidate_symbol(name)],
        profile.environment,
    )
    final = builder.candidate(switch, profile.use(), name)
    if final.read_bytes() == without:
        raise ToolError("the compiler ignored its own profile: the profile-guided switch equals the plain one")
    return final


def _train(command: list[str], environment: dict[str, str]) -> None:
    """Run the instrumented program over the training order; it leaves its profile when it ends."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        raise ToolError(f"the training run of the profile-guided switch ended with status {done.returncode}")


GCC_PROFILE_USE = ("-fprofile-use", "-Werror=missing-profile", "-Werror=coverage-mismatch")
"""Without a path gcc looks beside the output; a path would be taken for a directory."""


class _GccProfile:
    """gcc: instrumented code writes a .gcda; a missing one is made an error."""

    def __init__(self, builder: _Builder, name: str) -> None:
        self.data = builder.directory / f"{candidate_symbol(name)}.gcda"
        self.generate = ["-fprofile-generate", "-fprofile-update=single"]
        self.environment: dict[str, str] = {}

    def use(self) -> list[str]:
        if not self.data.exists():
            raise ToolError(f"gcc's training run left no {self.data.name}")
        return list(GCC_PROFILE_USE)


class _ClangProfile:
    """clang: raw profiles are merged by the llvm-profdata of the same version."""

    def __init__(self, builder: _Builder, name: str) -> None:
        self.builder = builder
        self.raw = builder.directory / f"{candidate_symbol(name)}.profraw"
        self.generate = ["-fprofile-instr-generate"]
        self.environment = {"LLVM_PROFILE_FILE": str(self.raw)}

    def use(self) -> list[str]:
        tool = run_tool([self.builder.compiler.path, "-print-prog-name=llvm-profdata"], "looking for llvm-profdata")
        merged = self.raw.with_suffix(".profdata")
        run_tool([tool.strip(), "merge", "-o", str(merged), str(self.raw)], "merging clang's profile")
        return [f"-fprofile-instr-use={merged}", "-Werror=profile-instr-missing", "-Werror=profile-instr-out-of-date"]
