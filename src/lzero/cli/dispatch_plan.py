"""``lzero dispatch plan``: the cheapest dispatcher for a profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lzero.dispatch.plan import CostModel, Plan

__all__ = ["app", "plan"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class ClassName(StrEnum):
    """Classes of dispatchers; the values are those of `lzero.dispatch.plan.PlanClass`."""

    TREE = "tree"
    TREE_TABLE = "tree-table"
    CHAIN = "chain"


@app.command()
def plan(
    traces: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACE|NAME...", help="The profile to plan for, then others to show the plan's cost under."
        ),
    ],
    plan_class: Annotated[
        ClassName,
        typer.Option("--class", help="Tests only; tests and then the table in any tree; or k tests, then the table."),
    ] = ClassName.TREE,
    tests: Annotated[int, typer.Option("-k", "--tests", help="Number of tests of --class chain.")] = 6,
    mitigation: Annotated[str, typer.Option(metavar="NAME", help="The mitigation the plan is for.")] = "retpoline",
    cc: Annotated[str, typer.Option("--cc", metavar="CC", help="Compiler to calibrate with.")] = "gcc",
    prices: Annotated[
        str,
        typer.Option(metavar="host|reference|FILE", help="Calibrated here (cached), the study's, or from a JSON file."),
    ] = "host",
    predictor: Annotated[
        str | None, typer.Option(metavar="NAME", help="independent, tage or gshare; default: by the profile.")
    ] = None,
    level: Annotated[int | None, typer.Option(help="Only exits of this level of a recording.")] = None,
    vcpu: Annotated[int | None, typer.Option(help="Only exits of this VCPU of a recording.")] = None,
    mix: Annotated[bool, typer.Option("--mix", help="Plan for an equal mixture of all profiles given.")] = False,
    name: Annotated[str, typer.Option(help="Name of the plan.")] = "planned",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="PLAN.json", help="Write the plan.")] = None,
) -> None:
    """Plan the dispatcher with the least expected cost, and say in which class it is best, its bound and its risks."""
    from lzero.dispatch.plan import PlanClass, make_plan
    from lzero.dispatch.plan_file import write_plan
    from lzero.dispatch.profiles import Profile, load_profile

    profile, *others = [load_profile(source, level=level, vcpu=vcpu) for source in traces]
    if mix:
        others = [profile, *others]
        profile = Profile.mixture(others)
    made = make_plan(
        profile,
        _prices(prices, cc, mitigation),
        PlanClass(plan_class.value),
        tests=tests,
        others=others,
        predictor=predictor,
        name=name,
        date=datetime.now(UTC).date().isoformat(),
    )
    _show(made)
    if out is not None:
        write_plan(out, made.strategy)
        typer.echo(f"wrote {out}", err=True)


def _prices(source: str, cc: str, mitigation: str) -> CostModel:
    """Prices by name or file; without a compiler the reference ones, and the plan says that they are."""
    import json
    from dataclasses import replace

    from lzero.dispatch.measure.calibrate import load_calibration
    from lzero.dispatch.measure.mitigations import mitigation_named
    from lzero.dispatch.plan import REFERENCE_MODEL, CostModel
    from lzero.dispatch.toolchain import find_compiler
    from lzero.errors import PlanError, ToolError, UsageError

    chosen = mitigation_named(mitigation)
    if source == "host":
        try:
            return load_calibration(find_compiler(cc), chosen, progress=lambda text: typer.echo(text, err=True))
        except ToolError as error:
            raise ToolError(
                f"{error}\nPrices cannot be measured here; --prices=reference plans with the study's"
            ) from None
    if source == "reference":
        if chosen.name != REFERENCE_MODEL.mitigation:
            raise UsageError(f"reference prices exist for {REFERENCE_MODEL.mitigation} only; use --prices=host")
        return replace(REFERENCE_MODEL)
    path = Path(source)
    if not path.exists():
        raise UsageError(f"--prices: {source} is neither host, reference nor a file")
    try:
        return CostModel(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"{path}: not a JSON object of prices: {error}") from error


def _without_slots(lines: Iterable[str]) -> Iterator[str]:
    """A tree's lines without the slots of its tables, which are KVM's and the same everywhere."""
    for line in lines:
        if not line.lstrip().startswith(("[", "overwritten at initialisation")):
            yield line.split(",")[0] if "indirect call through" in line else line


def _show(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from lzero.dispatch.describe import tree_lines
    from lzero.dispatch.measure.results import EXIT_SCALE

    expected, reference = made.expected, made.reference
    how = (
        "of independent exits, min(p, 1-p) at a test or a little more, as a two-bit counter errs"
        if made.predictor == "independent"
        else f"recorded order replayed through the {made.predictor} predictor model"
    )
    lines = [
        *_without_slots(tree_lines(made.strategy.root)),
        "",
        f"profile: {made.profile.name} ({made.profile.origin})",
        f"model: {made.model.describe()}",
        f"mispredictions: {how}",
        f"expected: {expected.ticks:.2f} ticks per exit over a direct call ({expected.comparisons:.2f} comparisons, "
        f"{expected.mispredictions:.3f} mispredictions, {expected.table_calls:.3f} table calls); "
        f"S2 {reference.ticks:.2f} ({reference.comparisons:.2f}, {reference.mispredictions:.3f}, "
        f"{reference.table_calls:.3f})",
        f"tests in the tree: {made.tests}",
        "best of: " + (made.optimal_in or "the trees tried; replay chose among them, nothing is proved"),
    ]
    if made.bound is not None:
        share = made.bound / expected.ticks if expected.ticks else 1.0
        lines.append(f"lower bound, any two-way tests: {made.bound:.2f} ticks per exit ({share:.0%} of the plan)")
    lines.append(EXIT_SCALE)
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if made.sensitivity:
        table = Table(title="Under other profiles, expected ticks per exit", title_justify="left")
        for heading in ("profile", "this plan", "S2", "that profile's plan", "worse than S2"):
            table.add_column(heading, justify="left" if heading == "profile" else "right")
        for row in made.sensitivity:
            values = [f"{value:.2f}" for value in (row.planned, row.reference, row.own_plan)]
            table.add_row(row.profile, *values, "yes" if row.planned > row.reference else "no")
        console.print(table)
