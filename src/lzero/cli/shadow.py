"""``lzero shadow``: plan the set of shadowed VMCS fields from a trace, and check the plan on the machine."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lzero.trace.readers.events import Diagnosis

app = typer.Typer(
    help="Plan and verify the set of shadowed VMCS fields.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


class Emit(StrEnum):
    """Forms of a plan."""

    TABLE = "table"
    KERNEL = "kernel"
    TOML = "toml"


TRACE = typer.Argument(metavar="TRACE", help="A trace of a nested guest, recorded by `lzero run --record`.")
COSTS = typer.Option(None, "--costs", help="TOML with what exits and syncing cost; see docs/shadow-vmcs.md.")
EMIT = typer.Option(Emit.TABLE, "--emit", help="table, kernel (SHADOW_FIELD_RO/RW lines) or toml (--shadow-vmcs).")
OUTPUT = typer.Option(None, "--output", "-o", help="Write there instead of to standard output.")
IMAGE = typer.Argument(metavar="IMAGE", help="The guest that the plan is for.")
WORDS = typer.Argument(None, metavar="[ARGS]...", help="Arguments of the guest.")
FIELDS = typer.Option(..., "--fields", help="The plan: TOML as `lzero shadow plan --emit toml` writes it.")
INITRD = typer.Option(None, "--initrd", help="Initial RAM disk of a Linux guest.")
APPEND = typer.Option("", "--append", help="Kernel command line.")


@app.command()
def plan(trace: str = TRACE, costs: Path | None = COSTS, emit: Emit = EMIT, output: Path | None = OUTPUT) -> None:
    """Choose which VMCS fields L1 should VMREAD and VMWRITE without an exit, and predict the exits removed."""
    from lzero.output import write_atomically
    from lzero.trace.shadow import Costs, kernel_list, plan_shadow, plan_table, plan_toml
    from lzero.trace.totals import totals_of

    diagnoses: list[Diagnosis] = []
    made = plan_shadow(totals_of(trace, diagnoses), Costs.load(costs))
    text = {Emit.TABLE: plan_table, Emit.KERNEL: lambda plan: kernel_list(plan.chosen), Emit.TOML: plan_toml}[emit](
        made
    )
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(output, text)
    for diagnosis in diagnoses:
        for line in diagnosis.summary():
            sys.stderr.write(line + "\n")


@app.command()
def verify(
    image: Path = IMAGE,
    words: list[str] = WORDS,
    fields: Path = FIELDS,
    initrd: Path | None = INITRD,
    append: str = APPEND,
) -> None:
    """Run the guest without a shadow VMCS and with the planned set; print predicted against observed exits."""
    from lzero.cli.shadow_verify import verify_plan

    typer.echo(verify_plan(image, words or [], fields, initrd, append), nl=False)
