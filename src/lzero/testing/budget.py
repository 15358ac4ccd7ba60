"""Budgets: how many exits, and how much work for each, a trace may show. Read from TOML, checked against totals.

::

    [L2.CPUID]              # one table for each level and exit reason
    vmreads = 10            # at most so many of L1's VMREAD exits for each CPUID exit of L2
    exits = { max = 25 }    # the same, written out
    count = { min = 1 }     # at least one

    [L2.CPUID.caused]       # any other reason of L1
    INVEPT = 0

    [L1.total]              # all reasons of a level
    count = 100_000
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lzero.errors import UsageError
from lzero.testing.exits import Cost, Exits

__all__ = ["METRICS", "Budget", "Verdict", "check", "load_budgets", "report"]

METRICS: Mapping[str, str] = {
    "count": "exits",
    "share": "part of the level's exits, 0 to 1",
    "vmreads": "mean VMREAD exits of L1 per reflected exit",
    "vmwrites": "mean VMWRITE exits of L1 per reflected exit",
    "vmresumes": "mean VMRESUME exits of L1 per reflected exit",
    "others": "mean other exits of L1 per reflected exit",
    "exits": "mean exits of L1 per reflected exit, all reasons",
    "mean_us": "mean host microseconds from exit to entry",
    "max_us": "longest host microseconds from exit to entry",
}
"""What a budget can limit: attribute of :class:`lzero.testing.exits.Cost` → what it counts."""

_COUNTED_WHEN_ABSENT = ("count", "share")
_TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit on one figure of one exit reason.

    Parameters
    ----------
    level, reason:
        Which exits; the reason ``total`` means all of the level.
    metric:
        A key of :data:`METRICS`, or ``caused.REASON``.
    minimum, maximum:
        Inclusive limits.
    """

    level: int
    reason: str
    metric: str
    minimum: float
    maximum: float

    @property
    def name(self) -> str:
        """As the file has it, such as ``L2.CPUID.vmreads``."""
        return f"L{self.level}.{self.reason}.{self.metric}"

    @property
    def allowed(self) -> str:
        """The limits as text."""
        if math.isinf(self.minimum):
            return f"at most {self.maximum:g}"
        if math.isinf(self.maximum):
            return f"at least {self.minimum:g}"
        return f"{self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget held against a trace.

    Parameters
    ----------
    budget:
        The limit.
    value:
        What the trace has; ``None`` when the trace has no such exit, so that there is nothing to hold it against.
    """

    budget: Budget
    value: float | None

    @property
    def kept(self) -> bool:
        """Whether the value is within the limits. Without a value it is not: such a budget guards nothing."""
        return self.value is not None and self.budget.minimum <= self.value <= self.budget.maximum

    def __str__(self) -> str:
        found = "no such exit in the trace" if self.value is None else f"{self.value:.6g}"
        return f"{'ok  ' if self.kept else 'OVER'} {self.budget.name}: {found} ({self.budget.allowed})"


def load_budgets(path: Path) -> list[Budget]:
    """Read a budget file.

    Raises
    ------
    UsageError
        It cannot be read, is no TOML, or has a level, metric or limit that makes no sense; the message names the key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise UsageError(f"cannot read the budgets {path}: {failure.strerror}") from failure
    except ValueError as failure:  # of the TOML grammar, or bytes that are no UTF-8
        raise UsageError(f"{path} is no TOML file: {failure}") from failure
    budgets = [
        budget
        for level_name, reasons in document.items()
        for reason, limits in _table(path, level_name, reasons).items()
        for budget in _limits(path, _level(path, level_name), reason, _table(path, f"{level_name}.{reason}", limits))
    ]
    if not budgets:
        raise UsageError(f"{path} has no budget: write for instance [L2.CPUID] and below it vmreads = 10")
    return budgets


def check(exits: Exits, budgets: Sequence[Budget]) -> list[Verdict]:
    """Hold each budget against the exits, in the order of the file.

    Raises :class:`UsageError` for a reason that is the name of no exit reason.
    """
    return [Verdict(budget, _value(exits, budget)) for budget in budgets]


def report(exits: Exits, verdicts: Sequence[Verdict], change: str = "") -> str:
    """Text about the verdicts; with a failing one also the exit table, its causes, and what changed.

    Parameters
    ----------
    exits:
        What the budgets were held against.
    verdicts:
        The outcome of :func:`check`.
    change:
        Differences to an earlier trace, as text; empty without one.
    """
    lines = [str(verdict) for verdict in verdicts]
    broken = sum(not verdict.kept for verdict in verdicts)
    lines.append(f"{len(verdicts) - broken} budgets kept, {broken} not")
    if broken:
        lines += ["", exits.table().rstrip()]
        if change:
            lines += ["", "Against the trace recorded before:", "", change.rstrip()]
    return "\n".join(lines) + "\n"


def _value(exits: Exits, budget: Budget) -> float | None:
    if budget.reason == _TOTAL:
        return float(exits.count(level=budget.level))
    if not exits.count(budget.reason, budget.level):
        return 0.0 if budget.metric in _COUNTED_WHEN_ABSENT else None
    cost = exits.per(budget.reason, budget.level)
    if budget.metric.startswith("caused."):
        return _caused(exits, cost, budget.metric.removeprefix("caused."))
    return float(getattr(cost, budget.metric))


def _caused(exits: Exits, cost: Cost, reason: str) -> float:
    # By the name as recorded: a budget may use any other name of the same reason.
    return cost.caused.get(exits.canonical(reason), 0.0)


def _level(path: Path, name: str) -> int:
    if name not in ("L1", "L2"):
        raise UsageError(f"{path}: table [{name}] names no level: write [L1.REASON] or [L2.REASON]")
    return int(name[1:])


def _table(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {key} is {value!r}: a table such as [L2.CPUID] is meant")
    return value


def _limits(path: Path, level: int, reason: str, limits: Mapping[str, Any]) -> Iterator[Budget]:
    for metric, limit in limits.items():
        key = f"L{level}.{reason}.{metric}"
        if metric == "caused":
            for child, child_limit in _table(path, key, limit).items():
                yield Budget(level, reason, f"caused.{child}", *_bounds(path, f"{key}.{child}", child_limit))
            continue
        if metric not in METRICS:
            raise UsageError(f"{path}: {key}: no such figure; there are {', '.join(METRICS)}, caused.REASON")
        if reason == _TOTAL and metric != "count":
            raise UsageError(f"{path}: {key}: of all exits of a level only the count can be limited")
        yield Budget(level, reason, metric, *_bounds(path, key, limit))


def _bounds(path: Path, key: str, limit: Any) -> tuple[float, float]:
    bounds = limit if isinstance(limit, dict) else {"max": limit}
    if not bounds or set(bounds) - {"min", "max"}:
        raise UsageError(f"{path}: {key} = {limit!r}: write a number (at most) or {{ min = N, max = N }}")
    for bound in bounds.values():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
            raise UsageError(f"{path}: {key}: {bound!r} is no number")
    low, high = float(bounds.get("min", -math.inf)), float(bounds.get("max", math.inf))
    if low > high:
        raise UsageError(f"{path}: {key}: no number is at least {low:g} and at most {high:g}")
    return low, high
