"""The ``lzero`` command.

Each sub-command lives in a module of this package of its own, with a ``typer.Typer`` named ``app``, and is loaded only
when it is invoked: ``lzero --help`` costs what Typer costs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.exceptions import TyperException

import lzero
from lzero.cli.lazy import SubCommand, lazy_group
from lzero.errors import LzeroError

__all__ = ["main"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit status when the reader of our output has gone, as shells have it: 128 + SIGPIPE."""
USAGE = 64
"""Exit status for a command line that cannot be understood: the same as for :class:`lzero.errors.UsageError`."""

SUB_COMMANDS = (
    SubCommand("run", "Run a guest image and show its VM exits.", "lzero.cli.run"),
    SubCommand("demo", "Run the bundled hypervisor and its guests, and show their VM exits.", "lzero.cli.demo"),
    SubCommand("trace", "Read, show, compare and export recorded exits.", "lzero.cli.trace", group=True),
    SubCommand("report", "Write an HTML page about one or two traces.", "lzero.cli.report"),
    SubCommand("top", "Watch the exits of a running machine.", "lzero.cli.top"),
    SubCommand("shadow", "Plan and verify the set of shadowed VMCS fields.", "lzero.cli.shadow", group=True),
    SubCommand("dispatch", "Compare, prove, measure, plan, emit exit dispatchers.", "lzero.cli.dispatch", group=True),
    SubCommand("budget", "Check a trace against budgets of exits.", "lzero.cli.budget", group=True),
    SubCommand("claims", "Measure the claims of docs/claims.md again.", "lzero.cli.claims"),
)

app = typer.Typer(cls=lazy_group(SUB_COMMANDS), add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lzero {lzero.__version__}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def _lzero(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Run x86-64 hypervisors and their guests without VT-x, and see every VM exit."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``lzero`` command.

    Parameters
    ----------
    arguments:
        Words after ``lzero``; by default those of the process.

    Returns
    -------
    int
        Exit status, as in docs/exit-status.md. An error becomes one message on standard error. Any exception that is
        not a :class:`LzeroError` is a defect of lzero and said to be one; with ``LZERO_TRACEBACK`` set in the
        environment it propagates.
    """
    command = typer.main.get_command(app)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with command.make_context("lzero", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except LzeroError as error:
        _say(f"lzero: error: {error}")
        return error.exit_status
    except TyperException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return BROKEN_PIPE
    except Exception as defect:  # noqa: BLE001  # the last resort: a user gets a message, not a traceback
        return _internal_error(defect)
    return 0


def _usage_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which needs no comment
        _say(message)
    elif context is None:
        _say(f"lzero: error: {message}  (try 'lzero --help')")
    else:
        _say(f"{context.get_usage()}\nlzero: error: {message}  (try '{context.command_path} --help')")
    return USAGE


def _internal_error(defect: Exception) -> int:
    if os.environ.get("LZERO_TRACEBACK"):
        raise defect
    last = traceback.extract_tb(defect.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
    _say(
        f"lzero: internal error: {type(defect).__name__}: {defect} ({where})\n"
        "This is a defect of lzero: please report it, with the traceback that LZERO_TRACEBACK=1 shows."
    )
    return LzeroError.exit_status


def _say(message: str) -> None:
    sys.stdout.flush()
    typer.echo(message, err=True)


def _discard(stream: TextIO) -> None:
    """Forget what the stream still holds, so that the interpreter does not complain about it at its end."""
    try:
        stream.close()
    except BrokenPipeError:
        pass
