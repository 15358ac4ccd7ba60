"""Claims C3 and C4 of the retpoline debate, answered from recordings of a nested guest.

C3: "VMREAD/WRITE/RESUME are the most frequent vmexit in L0 while nested runs in L2". C4: the high-frequency VMREAD and
VMWRITE fields hit the shadow VMCS, so they do not exit. Both are shares among the exits that one exit of L2 causes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import PlanError
from lzero.sdm.exit_reasons import ExitReason
from lzero.trace.names import reason_name
from lzero.trace.schema import HandledBy
from lzero.trace.store import open_trace

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NestedShares", "claim_lines", "nested_shares"]

VMX_ACCESS = (int(ExitReason.VMREAD), int(ExitReason.VMWRITE), int(ExitReason.VMRESUME))


@dataclass(frozen=True, slots=True)
class NestedShares:
    """What one kind of L2 exit costs L0, per exit of L2 that L1 handled.

    ``exits`` are all exits to L0, the one of L2 included; ``vmreads``, ``vmwrites`` and ``vmresumes`` those among
    them; ``shadowed`` the VMREADs and VMWRITEs that the shadow VMCS served without an exit.
    """

    reason: int
    count: int
    exits: float
    vmreads: float
    vmwrites: float
    vmresumes: float
    shadowed: float

    @property
    def share(self) -> float:
        """VMREAD, VMWRITE and VMRESUME among all exits to L0."""
        return (self.vmreads + self.vmwrites + self.vmresumes) / self.exits


def nested_shares(recording: Path) -> list[NestedShares]:
    """Shares per L2 exit reason, the most frequent first.

    Raises
    ------
    PlanError
        The recording has no L2 exit that L1 handled.
    """
    import polars as pl

    rows = open_trace(recording)
    reflected = (
        rows.filter((pl.col("level") == 2) & (pl.col("handled_by") == int(HandledBy.L1)))
        .group_by("reason")
        .len("count")
        .collect()
    )
    caused = (
        rows.filter((pl.col("level") == 1) & (pl.col("parent_reason") >= 0))
        .group_by("parent_reason", "reason", "handled_by")
        .len("count")
        .collect()
    )
    if not len(reflected):
        raise PlanError(f"{recording}: no exit of L2 that L1 handled; record a guest hypervisor that runs a guest")
    found = [_shares(int(reason), int(count), caused) for reason, count in reflected.iter_rows()]
    return sorted(found, key=lambda item: -item.count)


def _shares(reason: int, count: int, caused: pl.DataFrame) -> NestedShares:
    exits, shadowed = dict.fromkeys(VMX_ACCESS, 0), 0
    total = count
    for parent, own, handled_by, number in caused.iter_rows():
        if parent != reason:
            continue
        if handled_by == int(HandledBy.PROCESSOR):
            shadowed += number
            continue
        total += number
        if own in exits:
            exits[own] += number
    read, write, resume = (exits[own] / count for own in VMX_ACCESS)
    return NestedShares(reason, count, total / count, read, write, resume, shadowed / count)


def _table(shares: list[NestedShares]) -> list[str]:
    heads = (
        "L2 exit",
        "count",
        "exits to L0",
        "VMREAD",
        "VMWRITE",
        "VMRESUME",
        "share of the three",
        "no exit (shadow)",
    )
    rows = [heads]
    for s in shares:
        rows.append(
            (
                reason_name(s.reason),
                str(s.count),
                f"{s.exits:.2f}",
                f"{s.vmreads:.2f}",
                f"{s.vmwrites:.2f}",
                f"{s.vmresumes:.2f}",
                f"{s.share:.1%}",
                f"{s.shadowed:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return ["  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def claim_lines(without: Path, shadowed: Path) -> list[str]:
    """C3 and C4 in words and numbers.

    Parameters
    ----------
    without, shadowed:
        Recordings of the same guest with ``--shadow-vmcs=off`` and with a shadow VMCS.
    """
    off, on = nested_shares(without), nested_shares(shadowed)
    weight = sum(s.count for s in off)
    share = sum(s.share * s.exits * s.count for s in off) / sum(s.exits * s.count for s in off)
    reads = sum(s.vmreads * s.count for s in off) / weight
    writes = sum(s.vmwrites * s.count for s in off) / weight
    accesses = sum((s.vmreads + s.vmwrites) * s.count for s in off)
    left = sum((s.vmreads + s.vmwrites) * s.count for s in on)
    removed = 1 - left / accesses if accesses else 0.0
    return [
        f"C3: {share:.1%} of the exits to L0 between one exit of L2 and the next are VMREAD, VMWRITE or VMRESUME; "
        f"L1 does {reads:.1f} VMREADs and {writes:.1f} VMWRITEs per exit of L2",
        f"  {'confirmed' if share > 0.5 else 'refuted'} without a shadow VMCS ({without.name})",
        *_table(off),
        f"C4: with a shadow VMCS {removed:.1%} of those VMREADs and VMWRITEs do not exit",
        f"  {'confirmed' if removed > 0.5 else 'refuted'} ({shadowed.name})",
        *_table(on),
    ]
