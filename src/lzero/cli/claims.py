"""``lzero claims``: the claims of the retpoline debate, answered by measuring on this host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lzero.errors import ToolError, UsageError

if TYPE_CHECKING:
    from lzero.dispatch.claims import Answer, Comparison
    from lzero.dispatch.claims.answers import Progress

app = typer.Typer(rich_markup_mode=None)

NESTED_PROFILES = ["nested", "nested-bursty"]

CLAIMS = typer.Argument(None, metavar="[C1|…|C5]...", help="Claims to answer; by default all that can be.")
OFF = typer.Option(None, "--off", metavar="TRACE", help="For C3 and C4: recording with --shadow-vmcs=off.")
SHADOWED = typer.Option(None, "--shadowed", metavar="TRACE", help="For C3 and C4: the same guest with a shadow VMCS.")
COMPILERS = typer.Option(None, "--cc", help="Compiler; may be repeated. Default: gcc and clang if installed.")
MITIGATION = typer.Option("retpoline", help="How indirect branches are built.")
PROFILES = typer.Option(None, "--profile", help="Profile to replay; may be repeated. Default: nested, nested-bursty.")
QUICK = typer.Option(False, "--quick", help="A few seconds, wide intervals.")
CODE = typer.Option(True, help="Print the machine code that explains the numbers.")
OUTPUT = typer.Option(None, "--json", metavar="FILE", help="Write everything measured to a file.")


@app.command()
def claims(
    names: list[str] = CLAIMS,
    compilers: list[str] = COMPILERS,
    mitigation: str = MITIGATION,
    profiles: list[str] = PROFILES,
    quick: bool = QUICK,
    code: bool = CODE,
    output: Path = OUTPUT,
    off: Path = OFF,
    shadowed: Path = SHADOWED,
) -> None:
    """Answer the claims of docs/claims.md with numbers from this machine.

    C1, C2 and C5 are measured on the host. C3 and C4 are about which exits occur while a guest hypervisor runs a guest:
    two recordings of one guest answer them (lzero run --record, with --shadow-vmcs off and default).
    """
    if off is not None or shadowed is not None or {name.upper() for name in names or ()} & {"C3", "C4"}:
        if off is None or shadowed is None:
            raise UsageError("claims C3 and C4 need two recordings: --off TRACE and --shadowed TRACE")
        from lzero.trace.nested_claims import claim_lines

        for line in claim_lines(off, shadowed):
            typer.echo(line)
        names = [name for name in names or () if name.upper() not in ("C3", "C4")]
        if not names:
            return
    from lzero.dispatch.claims import EFFORT
    from lzero.dispatch.claims import QUICK as QUICK_EFFORT
    from lzero.dispatch.claims.answers import CLAIMS as KNOWN
    from lzero.dispatch.claims.answers import across_compilers, answer_claims
    from lzero.dispatch.measure.host import describe_host
    from lzero.dispatch.measure.mitigations import mitigation_named
    from lzero.dispatch.profiles import load_profile
    from lzero.dispatch.toolchain import find_compiler, installed_compilers
    from lzero.output import write_atomically

    wanted = [name.upper() for name in names or KNOWN]
    chosen = [find_compiler(name) for name in compilers] if compilers else list(installed_compilers())
    if not chosen:
        raise ToolError("neither gcc nor clang is installed: install one, or give a compiler with --cc")
    kind = mitigation_named(mitigation)
    replayed = [load_profile(name) for name in profiles or NESTED_PROFILES]
    answers: list[Answer] = []
    with _progress() as progress:
        for compiler in chosen:
            effort = QUICK_EFFORT if quick else EFFORT
            answers += answer_claims(wanted, compiler, kind, replayed, effort, progress)
    host = describe_host()
    if output is not None:
        write_atomically(output, json.dumps({"host": host.as_dict(), "answers": _to_json(answers)}, indent=1) + "\n")
    for line in host.lines():
        typer.echo(line)
    for profile in replayed:
        typer.echo(f"profile {profile.name}: {profile.origin}")
    for answer in answers:
        typer.echo("")
        for line in _lines(answer, code):
            typer.echo(line)
    compared = across_compilers(answers)
    for line in ["", "C1 by compiler:", *compared] if compared else []:
        typer.echo(line)


@contextmanager
def _progress() -> Iterator[Progress]:
    """One line on standard error that says what is being measured; silent where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("building") as status:
        yield lambda text: status.update(text)


def _lines(answer: Answer, code: bool) -> Iterator[str]:
    yield f"{answer.claim} ({answer.compiler}, {answer.mitigation}): {answer.text}"
    yield f"  {answer.verdict}"
    heads = ("candidate", "against", "profile", "mode", "time as a multiple", "ticks more per exit", "")
    rows = [heads, *(_row(comparison) for comparison in answer.comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if code:
        yield ""
        for line in answer.machine_code.splitlines():
            yield f"  {line}".rstrip()


def _row(comparison: Comparison) -> tuple[str, ...]:
    from lzero.dispatch.claims.answers import ticks_text

    return (
        comparison.candidate,
        comparison.reference,
        comparison.profile,
        comparison.mode,
        str(comparison.ratio),
        ticks_text(comparison.ticks),
        "noise" if comparison.noise else "",
    )


def _to_json(answers: list[Answer]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [
        {**asdict(answer), "comparisons": [{**asdict(c), "noise": c.noise} for c in answer.comparisons]}
        for answer in answers
    ]
