"""``lzero dispatch audit``: what a built kernel module does with an exit reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "audit"]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def audit(
    module: Annotated[str, typer.Argument(metavar="MODULE.ko", help="Kernel module: .ko, .ko.xz, .ko.zst or .ko.gz.")],
    against: Annotated[str | None, typer.Option(metavar="OTHER.ko", help="Show what differs from this module.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="P", help="Count the indirect branches this profile executes: a name, CSV or recording."),
    ] = None,
    exits_per_second: Annotated[
        float | None, typer.Option(metavar="N", help="Rate of exits, for a profile without times.")
    ] = None,
    all_sites: Annotated[bool, typer.Option("--all", help="List every pv_ops and static-call site.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show a module's indirect branches, its tests before the handler table, and the table."""
    from lzero.dispatch.audit import audit_module, compare, dispatch_rate
    from lzero.dispatch.audit.render import render_audit, render_difference, render_rate
    from lzero.errors import UsageError

    if exits_per_second is not None and profile is None:
        raise UsageError("--exits-per-second scales a profile; give --profile too")
    found = audit_module(Path(module))
    other = audit_module(Path(against)) if against is not None else None
    rate = dispatch_rate(found, profile, exits_per_second) if profile is not None else None
    if json:
        _print_json(found, other, rate)
        return
    typer.echo(render_audit(found, all_sites), nl=False)
    if rate is not None:
        typer.echo("\n" + render_rate(found, rate), nl=False)
    if other is not None:
        typer.echo("\n" + render_difference(found, other, compare(found, other)), nl=False)


def _print_json(found: object, other: object, rate: object) -> None:
    import json

    from lzero.dispatch.audit import DispatchRate, ModuleAudit

    assert isinstance(found, ModuleAudit)
    document = found.to_json()
    if isinstance(other, ModuleAudit):
        document["against"] = other.to_json()
    if isinstance(rate, DispatchRate):
        document["profile"] = {
            "name": rate.profile,
            "exits": rate.exits,
            "through_table": {str(reason): count for reason, count in rate.through_table.items()},
            "without_handler": {str(reason): count for reason, count in rate.without_handler.items()},
            "exits_per_second": rate.exits_per_second,
            "indirect_branches_per_second": rate.per_second,
            "retpoline": rate.retpoline,
        }
    typer.echo(json.dumps(document, indent=2))
