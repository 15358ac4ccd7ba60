"""The ``lzero`` command.

Each sub-command lives in a module of this package of its own, with a ``typer.Typer`` named ``app``, and is loaded only
when it is invoked: ``lzero --help`` costs what Typer costs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

import lzero
from lzero.errors import LzeroError

__all__ = ["main"]

HELP_OPTIONS = ["-h", "--help"]
COMPLETION = ("install_completion", "show_completion")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit status when the reader of our output has gone, as shells have it: 128 + SIGPIPE."""
USAGE = 64
"""Exit status for a command line that cannot be understood: the same as for :class:`lzero.errors.UsageError`."""


@dataclass(frozen=True, slots=True)
class SubCommand:
    """A command of ``lzero``: its module is ``lzero.cli.<name>``."""

    name: str
    help: str
    group: bool = False
    """Whether it has commands below it."""

    @property
    def module(self) -> str:
        """Dotted name of the module that implements it."""
        return f"{__name__}.{self.name}"


SUB_COMMANDS = (
    SubCommand("run", "Run a guest image and show its VM exits."),
    SubCommand("demo", "Run the bundled guest and show its VM exits."),
    SubCommand("trace", "Read, show, compare and export recorded exits.", group=True),
    SubCommand("report", "Write an HTML page about one or two traces."),
    SubCommand("top", "Watch the exits of a running machine."),
    SubCommand("shadow", "Plan and verify the set of shadowed VMCS fields.", group=True),
    SubCommand("dispatch", "Compare, prove, measure, plan and emit exit dispatchers.", group=True),
    SubCommand("budget", "Check a trace against budgets of exits.", group=True),
    SubCommand("claims", "Measure the claims of docs/claims.md again."),
)


class LazyGroup(TyperGroup):
    """The top command: knows its sub-commands' names and helps, and loads one only to run it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._rows = {row.name: row for row in SUB_COMMANDS if find_spec(row.module) is not None}
        # Stand-ins: enough for the list of commands and for suggestions after a typing error.
        self.commands = {row.name: TyperCommand(row.name, help=row.help) for row in self._rows.values()}

    # Typer's context class has no public name that its group's own signature accepts, hence Any.
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load the module of a sub-command; ``None`` if there is no such command."""
        row = self._rows.get(cmd_name)
        if row is None:
            return None
        app: typer.Typer = import_module(row.module).app
        command = typer.main.get_group(app) if row.group else typer.main.get_command(app)
        command.name = row.name
        # Completion is installed for the whole command, not for one below it.
        command.params = [param for param in command.params if param.name not in COMPLETION]
        command.context_settings.setdefault("help_option_names", HELP_OPTIONS)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the sub-commands without loading them."""
        if self._rows:
            with formatter.section("Commands"):
                formatter.write_dl([(row.name, row.help) for row in self._rows.values()])


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lzero {lzero.__version__}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": HELP_OPTIONS})
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
