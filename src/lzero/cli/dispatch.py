"""``lzero dispatch``: strategies, proofs and C; ``bench``, ``plan`` and ``audit`` are modules loaded when called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lzero.cli.lazy import SubCommand, lazy_group
from lzero.errors import ToolError, UsageError

if TYPE_CHECKING:
    from lzero.dispatch.emit_c import Style
    from lzero.dispatch.strategies import Strategy
    from lzero.dispatch.toolchain import Compiler

DIFFERENT = 1
"""Exit status of ``prove`` when the two dispatchers differ: an answer, not an error."""

ELSEWHERE = (
    SubCommand("bench", "Measure strategies on this machine, from a profile.", "lzero.cli.dispatch_bench"),
    SubCommand("plan", "Make the cheapest dispatcher for recorded exits.", "lzero.cli.dispatch_plan"),
    SubCommand(
        "audit", "Show the indirect branches and the dispatcher of a built kernel module.", "lzero.cli.dispatch_audit"
    ),
)

app = typer.Typer(
    cls=lazy_group(ELSEWHERE),
    help="Compare, prove, measure, plan and emit exit dispatchers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

STRATEGY = typer.Argument(metavar="NAME|PLAN.json", help="A strategy (see `lzero dispatch list`) or a plan file.")
COMPILERS = typer.Option(
    None, "--cc", help="Compiler to check with; may be repeated. Default: gcc and clang if installed."
)
JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


class StyleName(StrEnum):
    """Styles of emitted C."""

    KERNEL = "kernel"
    STANDALONE = "standalone"
    KERNEL_CHECK = "kernel-check"


class Form(StrEnum):
    """Forms in which ``show`` prints a strategy."""

    TREE = "tree"
    C = "c"
    PYTHON = "python"
    JSON = "json"
    ASM = "asm"


FORM = typer.Option(Form.TREE, "--as", help="Print the tree, the C, the Python function, the JSON, or machine code.")
STYLE = typer.Option(
    StyleName.KERNEL,
    help="A function for vmx.c; a file that compiles alone; or the first with stand-ins for what vmx.c declares, to "
    "compile it outside of a kernel.",
)
REASON = typer.Option(None, metavar="NAME|NUMBER", help="Print only the path of this exit reason, and where it ends.")
OUTPUT = typer.Option(None, "--output", "-o", help="Write to this file instead of standard output.")


@app.command("list")
def list_strategies(as_json: bool = JSON) -> None:
    """List the strategies of the debate and of today's kernels."""
    from lzero.dispatch.strategies import STRATEGIES

    rows = [
        {
            "name": strategy.name,
            "label": strategy.label,
            "keeps_order": strategy.keeps_order,
            "indirect_call": not strategy.promises_no_indirect_branch,
            "summary": strategy.summary,
        }
        for strategy in STRATEGIES.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max(len(name) for name in STRATEGIES)
    for strategy in STRATEGIES.values():
        typer.echo(f"{strategy.label}  {strategy.name:<{width}}  {strategy.summary}")


@app.command()
def show(
    strategy: str = STRATEGY,
    form: Form = FORM,
    reason: str = REASON,
    compiler: str = typer.Option("gcc", "--cc", help="Compiler for --as=asm."),
) -> None:
    """Print one strategy, or the path of one exit reason through it."""
    from lzero.dispatch.plan_file import load_strategy

    chosen = load_strategy(strategy)
    typer.echo(_shown(chosen, form, compiler) if reason is None else "\n".join(_path(chosen, reason)))


def _path(strategy: Strategy, name: str) -> Iterator[str]:
    """What is asked about one exit reason, in order, with VMX offered to guests and without."""
    from lzero.dispatch.describe import path_lines
    from lzero.dispatch.tree import REASON_COUNT
    from lzero.sdm.exit_reasons import exit_reason_from_name

    try:
        reason = exit_reason_from_name(name)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    if reason >= REASON_COUNT:
        raise UsageError(f"exit reason {reason} does not fit the 16 bits of a basic exit reason")
    yield from path_lines(strategy.root, reason)


def _shown(strategy: Strategy, form: Form, compiler: str) -> str:
    from lzero.dispatch.compile_python import python_source
    from lzero.dispatch.describe import tree_lines
    from lzero.dispatch.emit_c import emit_c
    from lzero.dispatch.plan_file import strategy_to_json
    from lzero.dispatch.toolchain import find_compiler
    from lzero.dispatch.verify_c import verify_c

    match form:
        case Form.TREE:
            return "\n".join([f"{strategy.name}: {strategy.summary}", "", *tree_lines(strategy.root)])
        case Form.C:
            return emit_c(strategy, "kernel").rstrip()
        case Form.PYTHON:
            return python_source(strategy).rstrip()
        case Form.JSON:
            return json.dumps(strategy_to_json(strategy), indent=1)
        case Form.ASM:
            return verify_c(strategy, find_compiler(compiler), "standalone").disassembly


@app.command()
def prove(
    left: str = STRATEGY,
    right: str = STRATEGY,
    compilers: list[str] = COMPILERS,
    trees_only: bool = typer.Option(False, "--trees-only", help="Compare the trees, without running C and Python."),
    as_json: bool = JSON,
) -> None:
    """Prove that two dispatchers agree on every exit reason, or show where they differ.

    All 65,536 reasons are tried under every combination of conditions.

    Exit status 0: they agree. 1: they differ, and the differences are printed.
    """
    from lzero.dispatch.describe import difference_lines, differences_to_json
    from lzero.dispatch.plan_file import load_strategy
    from lzero.dispatch.prove import check_by_running, differences

    strategies = (load_strategy(left), load_strategy(right))
    found = differences(*strategies)
    runs: list[str] = []
    if not trees_only:
        chosen = _compilers(compilers)
        for strategy in strategies[:1] if strategies[0] == strategies[1] else strategies:
            runs += check_by_running(strategy, chosen)
    names = [strategy.name for strategy in strategies]
    if names[0] == names[1]:
        # Two plans may have one name; then only what the user called them tells them apart.
        names = [left, right]
    if as_json:
        document = {"left": names[0], "right": names[1], "equal": not found, "differences": differences_to_json(found)}
        typer.echo(json.dumps({**document, "checked_by_running": runs}, indent=1))
    else:
        verdict = "differ" if found else "agree on all 65,536 exit reasons under all 4 combinations of conditions"
        typer.echo(f"{names[0]} and {names[1]} {verdict}")
        for line in difference_lines(found, *names) if found else ():
            typer.echo(line)
        for line in runs:
            typer.echo(f"  {line}")
    if found:
        raise typer.Exit(DIFFERENT)


def _compilers(names: list[str] | None) -> list[Compiler]:
    from lzero.dispatch.toolchain import find_compiler, installed_compilers

    if names:
        return [find_compiler(name) for name in names]
    found = list(installed_compilers())
    if not found:
        raise ToolError("neither gcc nor clang is installed: install one, or give a compiler with --cc")
    return found


@app.command()
def emit(
    strategy: str = STRATEGY,
    style: StyleName = STYLE,
    output: Path = OUTPUT,
    compilers: list[str] = COMPILERS,
    check: bool = typer.Option(True, help="Compile it and check order of tests and indirect branches before writing."),
) -> None:
    """Write a dispatcher as C, once the compiled code is checked."""
    from lzero.dispatch.emit_c import checkable, emit_c
    from lzero.dispatch.plan_file import load_strategy
    from lzero.dispatch.verify_c import require_kept, verify_c
    from lzero.output import write_atomically

    chosen = load_strategy(strategy)
    kind: Style = "standalone" if style is StyleName.STANDALONE else "kernel"
    text = emit_c(chosen, kind)
    if check:
        results = [verify_c(chosen, compiler, kind) for compiler in _compilers(compilers)]
        require_kept(chosen, results)
        for result in results:
            typer.echo(f"checked: {result.summary(chosen)}", err=True)
    if style is StyleName.KERNEL_CHECK:
        text = checkable(chosen, kind, text)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(output, text)
