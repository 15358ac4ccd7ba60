"""Reading a profile: a shipped name, Parquet with a ``reason`` column, a CSV of counts, a machine's recording."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.dispatch.profiles.profile import REASON_LIMIT, Profile
from lzero.dispatch.profiles.recorded import RecordedProfile, recorded_profiles
from lzero.dispatch.profiles.synthetic import SYNTHETIC, SyntheticProfile
from lzero.errors import PlanError, UsageError
from lzero.sdm.exit_reasons import exit_reason_from_name

if TYPE_CHECKING:
    import polars

__all__ = ["load_profile"]

HANDLED_BY_L0 = 1
"""Value of the recording's ``handled_by`` column for exits that reached L0's handler table."""

ISA_VMX = 1
"""Value of the recording's ``isa`` column for VT-x."""


def load_profile(source: str | Path, *, level: int | None = None, vcpu: int | None = None) -> Profile:
    """Load a profile by shipped name or by path.

    Parameters
    ----------
    source:
        A name of `SYNTHETIC` or `recorded_profiles`, a ``.csv`` of counts, a Parquet file, or a directory of
        Parquet parts.
    level, vcpu:
        Keep only rows of this level or VCPU, where the Parquet file has such a column.

    Raises
    ------
    UsageError
        When ``source`` is neither a shipped name nor an existing path.
    PlanError
        When the file cannot be read as a profile; the message names it.
    """
    path = Path(source)
    shipped: dict[str, SyntheticProfile | RecordedProfile] = {**SYNTHETIC, **recorded_profiles()}
    if isinstance(source, str) and source in shipped:
        return shipped[source].make()
    if not path.exists():
        raise UsageError(f"no profile {source}: neither a file nor one of {', '.join(shipped)}")
    if path.suffix == ".csv":
        return _from_csv(path)
    return _from_parquet(path, level, vcpu)


def _reason_of(text: str, where: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        try:
            number = exit_reason_from_name(text)
        except KeyError as error:
            raise PlanError(f"{where}: unknown exit reason {text!r} ({error.args[0]})") from None
    if not 0 <= number < REASON_LIMIT:
        raise PlanError(f"{where}: exit reason {number} does not fit 16 bits; pass bits 15:0 of the exit-reason field")
    return number


def _from_csv(path: Path) -> Profile:
    """Two columns, ``reason,count``; the reason a number or any name the manual or KVM gives it."""
    counts: Counter[int] = Counter()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                where = f"{path}:{number}"
                fields = [field.strip() for field in row]
                if not any(fields) or fields[0].startswith("#") or (number == 1 and fields[0].lower() == "reason"):
                    continue
                if len(fields) != 2:
                    raise PlanError(f"{where}: {len(fields)} columns; a CSV profile has two, reason and count")
                if not fields[1].isdecimal():
                    raise PlanError(f"{where}: the count {fields[1]!r} is not a whole number")
                counts[_reason_of(fields[0], where)] += int(fields[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PlanError(f"{path}: cannot be read as CSV: {error}") from error
    return Profile(path.stem, f"counts of {path.name}; order unknown, independence assumed", dict(counts))


def _from_parquet(path: Path, level: int | None, vcpu: int | None) -> Profile:
    import polars

    pattern = path / "*.parquet" if path.is_dir() else path
    if path.is_dir() and not any(path.glob("*.parquet")):
        raise PlanError(f"{path}: a directory without Parquet parts; pass the recording itself")
    try:
        frame = polars.scan_parquet(pattern)
        columns = frame.collect_schema().names()
        if "reason" not in columns:
            raise PlanError(f"{path}: no column 'reason' (has: {', '.join(columns) or 'none'})")
        filtered, notes = _keep_dispatched(frame, columns, level, vcpu)
        values = filtered.select(polars.col("reason").cast(polars.Int64)).collect().get_column("reason")
    except (polars.exceptions.PolarsError, OSError) as error:
        raise PlanError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    if values.null_count():
        raise PlanError(f"{path}: {values.null_count()} rows have no reason")
    if values.is_empty():
        raise PlanError(f"{path}: no exits left{' after keeping ' if notes else ''}{', '.join(notes)}")
    origin = f"recorded order of {path.name}" + (f", only {', '.join(notes)}" if notes else "")
    return Profile.from_order(path.stem, origin, values.to_numpy())


def _keep_dispatched(
    frame: polars.LazyFrame, columns: list[str], level: int | None, vcpu: int | None
) -> tuple[polars.LazyFrame, list[str]]:
    """Keep the exits that reach the handler table: not failed entries, not those reflected to L1 before it."""
    import polars

    notes: list[str] = []
    fixed = {"handled_by": (HANDLED_BY_L0, "handled by L0"), "isa": (ISA_VMX, "VT-x")}
    for column, (value, note) in fixed.items():
        if column in columns:
            frame = frame.filter(polars.col(column) == value)
            notes.append(note)
    if "failed_entry" in columns:
        frame = frame.filter(~polars.col("failed_entry"))
    for column, wanted in (("level", level), ("vcpu", vcpu)):
        if wanted is None:
            continue
        if column not in columns:
            raise PlanError(f"a {column} was asked for, but the recording has no such column")
        frame = frame.filter(polars.col(column) == wanted)
        notes.append(f"{column} {wanted}")
    return (frame.sort("seq") if "seq" in columns else frame), notes
