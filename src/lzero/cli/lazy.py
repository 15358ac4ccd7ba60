"""Groups of commands whose members live in modules of their own, loaded when they are invoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["SubCommand", "lazy_group"]

_COMPLETION = ("install_completion", "show_completion")


@dataclass(frozen=True, slots=True)
class SubCommand:
    """A command in a module of its own.

    Parameters
    ----------
    name, help:
        As the list of commands shows them.
    module:
        Dotted name of the module; it has a ``typer.Typer`` called ``app``. Without such a module there is no such
        command.
    group:
        Whether it has commands below it.
    """

    name: str
    help: str
    module: str
    group: bool = False

    def load(self) -> Any:
        """Import the module and make the command."""
        app: typer.Typer = import_module(self.module).app
        command = typer.main.get_group(app) if self.group else typer.main.get_command(app)
        command.name = self.name
        # Completion is installed for the whole program, not for one command of it.
        command.params = [param for param in command.params if param.name not in _COMPLETION]
        return command


def lazy_group(rows: Sequence[SubCommand]) -> type[TyperGroup]:
    """Class of a command group, for ``typer.Typer(cls=…)``, with these commands beside those registered with it."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self._elsewhere = {row.name: row for row in rows if find_spec(row.module) is not None}
            # Stand-ins: enough for the list of commands and for suggestions after a typing error.
            self.commands.update({name: TyperCommand(name, help=row.help) for name, row in self._elsewhere.items()})

        # Typer's context class has no public name that its group's own signature accepts, hence Any.
        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            row = self._elsewhere.get(cmd_name)
            return row.load() if row is not None else super().get_command(ctx, cmd_name)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            if self.commands:
                with formatter.section("Commands"):
                    formatter.write_dl([(name, entry.get_short_help_str(99)) for name, entry in self.commands.items()])

    return LazyGroup
