"""How many retpolines per second a module's dispatcher executes under a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lzero.dispatch.audit.branches import BranchKind
from lzero.dispatch.audit.chain import Shape
from lzero.dispatch.audit.report import ModuleAudit
from lzero.errors import PlanError, UsageError

__all__ = ["DispatchRate", "dispatch_rate"]

_ISA = {"vmx": 1, "svm": 2}
_HANDLED_BY_L0 = 1


@dataclass(frozen=True, slots=True)
class DispatchRate:
    """Indirect branches through the handler table, for one profile.

    Only the dispatch site is counted: how often the module's other sites run cannot be told from exit reasons.
    """

    profile: str
    exits: int
    """Exits that reach the dispatcher."""
    through_table: Mapping[int, int]
    """Exits that go through the table, by reason."""
    without_handler: Mapping[int, int]
    """Exits whose reason has neither a test nor a filled slot: KVM reports an internal error for them."""
    exits_per_second: float | None
    """None when neither the profile nor the caller tells a rate."""
    rate_from: str
    """Where the rate comes from."""
    retpoline: bool
    """Whether the dispatch site is a retpoline; otherwise the counts are of plain or fenced indirect branches."""

    @property
    def table_share(self) -> float:
        """Part of the exits that execute the indirect branch, 0 to 1."""
        return sum(self.through_table.values()) / self.exits

    @property
    def per_second(self) -> float | None:
        """Indirect branches per second through the table; None without a rate."""
        return None if self.exits_per_second is None else self.exits_per_second * self.table_share


def dispatch_rate(audit: ModuleAudit, profile: str, exits_per_second: float | None = None) -> DispatchRate:
    """Apply a profile to an audited dispatcher.

    Parameters
    ----------
    profile:
        A shipped profile's name, a CSV of counts, or a Parquet recording; a recording with ``host_ns`` tells its own
        rate.
    exits_per_second:
        Rate to assume instead.

    Raises
    ------
    UsageError
        No such profile, or one of the other vendor's reasons.
    PlanError
        The profile cannot be read, or the module's dispatcher was not recovered completely.
    """
    if audit.table is None or audit.dispatch.shape not in (Shape.CHAIN, Shape.TABLE_ONLY):
        why = "; ".join(audit.dispatch.unknown) or f"it is a {audit.dispatch.shape.value}"
        raise PlanError(f"{audit.path}: no rate can be told, the dispatcher was not recovered: {why}")
    if exits_per_second is not None and not exits_per_second > 0:
        raise UsageError(f"a rate of {exits_per_second} exits per second makes no sense; give a positive number")
    counts, rate, source = _counts(profile, audit.vendor)
    if exits_per_second is not None:
        rate, source = exits_per_second, "as given"
    handled = {**audit.table.handlers, **audit.table.overrides}
    direct = audit.dispatch.direct_reasons
    site = next(
        (
            b
            for b in audit.branches
            if b.offset == audit.dispatch.branch_offset and b.function == audit.dispatch.function
        ),
        None,
    )
    return DispatchRate(
        profile=profile,
        exits=sum(counts.values()),
        through_table={reason: count for reason, count in counts.items() if reason not in direct and reason in handled},
        without_handler={
            reason: count for reason, count in counts.items() if reason not in direct and reason not in handled
        },
        exits_per_second=rate,
        rate_from=source,
        retpoline=site is not None and site.kind in (BranchKind.RETPOLINE, BranchKind.RETPOLINE_INLINE),
    )


def _counts(profile: str, vendor: str) -> tuple[dict[int, int], float | None, str]:
    from lzero.dispatch.profiles import SYNTHETIC, load_profile

    if vendor == "svm" and profile in SYNTHETIC:
        raise UsageError(
            f"profile {profile} has VT-x exit reasons; an SVM module needs a recording or counts of SVM exit codes"
        )
    path = Path(profile)
    if profile not in SYNTHETIC and path.exists() and path.suffix != ".csv":
        return _recording(path, vendor)
    loaded = load_profile(profile)
    return {reason: count for reason, count in loaded.counts.items() if count}, None, "not known"


def _recording(path: Path, vendor: str) -> tuple[dict[int, int], float | None, str]:
    import polars

    source = str(path / "*.parquet") if path.is_dir() else path
    try:
        frame = polars.scan_parquet(source)
        columns = frame.collect_schema().names()
        if "reason" not in columns:
            raise PlanError(f"{path}: no column 'reason' (has: {', '.join(columns) or 'none'})")
        span = _span(frame, columns)
        if "isa" in columns:
            frame = frame.filter(polars.col("isa") == _ISA[vendor])
        if "handled_by" in columns:
            frame = frame.filter(polars.col("handled_by") == _HANDLED_BY_L0)
        if "failed_entry" in columns:
            frame = frame.filter(~polars.col("failed_entry"))
        rows = frame.group_by("reason").agg(polars.len().alias("exits")).sort("reason").collect().rows()
    except (polars.exceptions.PolarsError, OSError) as error:
        raise PlanError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    counts = {int(reason): int(exits) for reason, exits in rows}
    if not counts:
        raise PlanError(f"{path}: no exit of a {vendor.upper()} guest reaches the dispatcher in this recording")
    if span is None:
        return counts, None, "not known"
    return counts, sum(counts.values()) / span, f"recorded, over {span:.3g} s"


def _span(frame: object, columns: list[str]) -> float | None:
    """Seconds from the first to the last row; None when the recording does not tell."""
    import polars

    if "host_ns" not in columns or not isinstance(frame, polars.LazyFrame):
        return None
    low, high = (
        frame.select(polars.col("host_ns").min().alias("low"), polars.col("host_ns").max().alias("high"))
        .collect()
        .row(0)
    )
    return (high - low) / 1e9 if low is not None and high > low else None
