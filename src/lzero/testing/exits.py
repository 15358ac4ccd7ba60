"""The exits of a run, asked the way a test asks: what does one L2 exit of this reason cost?

>>> from lzero.sdm.exit_reasons import ExitReason
>>> from lzero.trace.aggregates import Aggregates, Totals
>>> totals = Aggregates(exits={(2, ExitReason.CPUID): Totals(count=100), (1, ExitReason.VMREAD): Totals(count=900)})
>>> totals.reflected[ExitReason.CPUID] = 100
>>> totals.caused[ExitReason.CPUID, ExitReason.VMREAD] = 900
>>> Exits(totals).per("CPUID", level=2).vmreads
9.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lzero.errors import UsageError
from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.names import reason_name
from lzero.trace.table import causes_lines, exit_table

__all__ = ["Cost", "Exits"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the exits of one reason at one level cost.

    The means of caused exits are per exit that L0 reflected to L1: only such an exit makes L1 work. They count exits;
    VMREADs and VMWRITEs that a shadow VMCS served cost none and are in :attr:`without_exit`.

    Parameters
    ----------
    reason, level:
        Which exits.
    count:
        Number of exits.
    reflected:
        How many of them L0 gave to L1.
    share:
        Part of all exits of the level, 0 to 1.
    mean_us, max_us:
        Host microseconds from the exit to the next entry; 0.0 when the trace has no times. They vary from run to run,
        unlike the counts.
    caused:
        Name of an L1 exit reason → mean number of such exits before L2 runs again.
    without_exit:
        Mean number of VMREADs and VMWRITEs that the shadow VMCS served.
    """

    reason: str
    level: int
    count: int
    reflected: int
    share: float
    mean_us: float
    max_us: float
    caused: Mapping[str, float]
    without_exit: float

    @property
    def vmreads(self) -> float:
        """Mean number of L1's VMREAD exits."""
        return self.caused.get("VMREAD", 0.0)

    @property
    def vmwrites(self) -> float:
        """Mean number of L1's VMWRITE exits."""
        return self.caused.get("VMWRITE", 0.0)

    @property
    def vmresumes(self) -> float:
        """Mean number of L1's VMRESUME exits."""
        return self.caused.get("VMRESUME", 0.0)

    @property
    def exits(self) -> float:
        """Mean number of all exits of L1 that one exit of L2 leads to: how many times it is multiplied."""
        return sum(self.caused.values())

    @property
    def others(self) -> float:
        """Mean number of L1's exits that are neither VMREAD, VMWRITE nor VMRESUME."""
        return self.exits - self.vmreads - self.vmwrites - self.vmresumes


class Exits:
    """The exits of one run or recorded trace.

    Parameters
    ----------
    aggregates:
        Their totals; :attr:`lzero.RunResult.aggregates` or those of a trace.
    """

    def __init__(self, aggregates: Aggregates) -> None:
        self.aggregates = aggregates

    @classmethod
    def of_trace(cls, path: Path) -> Self:
        """The exits of a recorded trace: any file that ``lzero trace`` reads.

        Raises
        ------
        UsageError, TraceFormatError
            The file is missing, or not a trace.
        """
        from lzero.trace.totals import totals_of

        return cls(totals_of(str(path)))

    def per(self, reason: str, level: int = 1) -> Cost:
        """Cost of the exits of one reason.

        Parameters
        ----------
        reason:
            Name as in the exit table, or any other name of it that the SDM or KVM has (``EPT_VIOLATION``, ``VMXON``).
        level:
            1 for exits of L1, 2 for exits of L2.

        Raises
        ------
        UsageError
            The name is of no exit reason, or no such exit happened: an assertion about it would guard nothing. Use
            :meth:`count` where none is fine.
        """
        code = self._code(reason)
        totals = self.aggregates.exits.get((level, code))
        if totals is None:
            seen = ", ".join(self.reasons(level)) or "none"
            raise UsageError(f"no exit {reason_name(code)} of L{level} was recorded; recorded are: {seen}")
        return self._cost(code, level, totals)

    def count(self, reason: str | None = None, level: int = 1) -> int:
        """Number of exits of a reason, or of all reasons, at a level; 0 when none happened."""
        if reason is None:
            return self.aggregates.total(level).count
        totals = self.aggregates.exits.get((level, self._code(reason)))
        return totals.count if totals is not None else 0

    def reasons(self, level: int = 1) -> list[str]:
        """Names of the reasons that happened at a level, the most frequent first."""
        counts = self.aggregates.counts(level)
        return [reason_name(code) for code in sorted(counts, key=lambda code: (-counts[code], code))]

    def canonical(self, reason: str) -> str:
        """The name under which a reason is recorded, from any name it has. Raises :class:`UsageError`."""
        return reason_name(self._code(reason))

    @property
    def multiplication(self) -> float:
        """Exits of L1 for each exit of L2, over the whole run; 0.0 when L2 never ran."""
        below = self.count(level=2)
        return self.count(level=1) / below if below else 0.0

    def table(self) -> str:
        """The exit table as ``lzero run`` prints it."""
        return exit_table(self.aggregates)

    def causes(self) -> str:
        """One line for each reason that L0 reflected to L1: what one such exit costs."""
        return "\n".join(causes_lines(self.aggregates))

    def __repr__(self) -> str:
        levels = ", ".join(f"L{level}: {self.count(level=level)}" for level in self.aggregates.levels())
        return f"<Exits {levels or 'none'}>"

    def _code(self, reason: str) -> int:
        for _, code in self.aggregates.exits:
            if reason_name(code) == reason:
                return code
        # Only now: the recorded names include SVM's and unknown numbers, the table below is VMX's.
        from lzero.sdm.exit_reasons import exit_reason_from_name

        try:
            return exit_reason_from_name(reason)
        except KeyError as unknown:
            raise UsageError(str(unknown.args[0])) from unknown

    def _cost(self, code: int, level: int, totals: Totals) -> Cost:
        reflected = self.aggregates.reflected[code] if level == 2 else 0
        caused: dict[str, float] = {}
        without_exit = 0.0
        if reflected:
            caused = {
                reason_name(child): count / reflected
                for (parent, child), count in self.aggregates.caused.items()
                if parent == code
            }
            served = (count for (parent, _), count in self.aggregates.caused_by_processor.items() if parent == code)
            without_exit = sum(served) / reflected
        return Cost(
            reason=reason_name(code),
            level=level,
            count=totals.count,
            reflected=reflected,
            share=totals.count / self.aggregates.total(level).count,
            mean_us=totals.mean_ns / 1000,
            max_us=totals.max_ns / 1000,
            caused=caused,
            without_exit=without_exit,
        )
