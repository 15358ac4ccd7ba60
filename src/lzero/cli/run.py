"""``lzero run``: a guest image in, its console, its exits and its exit status out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lzero.options import DEFAULT_CPU_CLOCK, DEFAULT_MEMORY, MachineOptions
from lzero.output import write_atomically

if TYPE_CHECKING:
    from lzero.result import RunResult

__all__ = ["app", "report", "run_machine"]

app = typer.Typer(rich_markup_mode=None)


@app.command(no_args_is_help=True)
def run(
    image: Annotated[
        str,
        typer.Argument(
            help="Guest image: a multiboot kernel, a Linux bzImage, or with --load-address a flat binary. "
            "guest:NAME is one that comes with lzero."
        ),
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(help="The guest's arguments: its command line. Put -- before those that begin with a dash."),
    ] = None,
    initrd: Annotated[str | None, typer.Option(metavar="FILE", help="Initial RAM disk of a Linux kernel.")] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="'FILE [ARGS]'", help="Module of a multiboot kernel; may be given again."),
    ] = None,
    append: Annotated[str, typer.Option(metavar="TEXT", help="Command line of a Linux kernel.")] = "",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Guest RAM, such as 512M or 4GiB.")] = DEFAULT_MEMORY,
    cpu_clock: Annotated[str, typer.Option(metavar="HZ", help="TSC frequency, such as 2.4GHz.")] = DEFAULT_CPU_CLOCK,
    clock: Annotated[
        str, typer.Option(metavar="virtual|host", help="Deterministic time that skips idling, or the host's time.")
    ] = "virtual",
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="[guest:|host:]SECONDS",
            help="End the run after so many seconds of the guest's clock (the default) or the host's.",
        ),
    ] = None,
    record: Annotated[str | None, typer.Option(metavar="FILE", help="Write every exit to this Parquet file.")] = None,
    dispatch: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Strategy that leads from exit reason to handler.")
    ] = "table",
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write a summary of the run as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the guest's console and errors only.")] = False,
    ignore_msrs: Annotated[
        bool, typer.Option("--ignore-msrs", help="Unknown MSRs read as 0, with one warning, instead of #GP.")
    ] = False,
    nested: Annotated[str, typer.Option(metavar="on|off", help="Offer VMX to the guest.")] = "on",
    shadow_vmcs: Annotated[
        str,
        typer.Option(metavar="off|default|FIELDS.toml", help="VMCS fields that the guest accesses without an exit."),
    ] = "off",
    kernel_entry: Annotated[
        str,
        typer.Option(
            metavar="elf|decompressor", help="Enter a bzImage's kernel directly (faster) or by its own decompressor."
        ),
    ] = "elf",
    load_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Load and enter a flat binary at this guest-physical address.")
    ] = None,
    entry_mode: Annotated[
        str, typer.Option(metavar="real16|protected32|long64", help="Processor mode in which a flat binary is entered.")
    ] = "protected32",
) -> None:
    """Run a guest image under L0.

    The guest's serial console is standard input and output. At the end, and on Ctrl-C, the table of its VM exits goes
    to standard error. The exit status is (value << 1) | 1 for a debug exit, 0 for a power-off, and otherwise one of
    docs/exit-status.md.
    """
    options = MachineOptions.of(
        image,
        args or (),
        modules=module or (),
        initrd=initrd,
        append=append,
        memory=memory,
        cpu_clock=cpu_clock,
        clock=clock,
        timeout=timeout,
        record=record,
        dispatch=dispatch,
        json=json,
        quiet=quiet,
        ignore_msrs=ignore_msrs,
        nested=nested,
        shadow_vmcs=shadow_vmcs,
        kernel_entry=kernel_entry,
        load_address=load_address,
        entry_mode=entry_mode,
    )
    raise typer.Exit(report(options, run_machine(options)))


def run_machine(options: MachineOptions) -> RunResult:
    """Run the machine of these options to its end. Loads the engine: nothing before this does."""
    from lzero.machine import Machine

    return Machine(options=options).run()


def report(options: MachineOptions, result: RunResult) -> int:
    """Print and write what the options ask to be told about a run; returns the exit status for the command."""
    if options.json is not None:
        write_atomically(options.json, result.to_json())
    if not options.quiet:
        typer.echo(f"\n{result.exit_table.rstrip()}", err=True)
    if not options.quiet and options.record is not None:
        typer.echo(f"recorded {result.exits} exits in {options.record}", err=True)
    if result.message:
        typer.echo(f"lzero: {result.ended}: {result.message}", err=True)
    return result.exit_status
