"""What a dispatch is assumed to cost: the model under which a plan is called best."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from lzero.errors import PlanError

__all__ = ["REFERENCE_MODEL", "CostModel", "Floats"]

Floats = npt.NDArray[np.float64]

_TINY = 1e-300
"""Keeps the division of nothing by nothing, at a test nobody reaches, from being one."""


@dataclass(frozen=True)
class CostModel:
    """Prices in TSC ticks, for one CPU and one mitigation.

    Attributes
    ----------
    comparison:
        One executed compare-and-branch that is predicted right and falls through.
    taken:
        What a taken branch costs more than one that falls through.
    range_extra:
        What a range test (subtract, compare) costs more than an equality test.
    misprediction:
        One mispredicted conditional branch.
    counter_share:
        Between 0 and 1: how far mispredictions of independent exits follow a two-bit counter rather than the ideal
        guess; see `mispredicted`.
    indirect:
        The handler table: bounds, load and one indirect call under ``mitigation``.
    indirect_misprediction:
        What a wrongly predicted target adds to ``indirect``; 0 under a retpoline, which never predicts.  Of
        independent exits with shares p the target is wrong 1 - Σp² of the time: predicted is what came last.
    mitigation:
        Name of the mitigation under which ``indirect`` was measured.
    source:
        Where the prices come from: which CPU, calibrated when.
    """

    comparison: float = 1.0
    taken: float = 0.5
    range_extra: float = 0.5
    misprediction: float = 16.0
    counter_share: float = 0.0
    indirect: float = 20.0
    indirect_misprediction: float = 0.0
    mitigation: str = "retpoline"
    source: str = "reference prices (Zen 3, gcc 12), not calibrated on this host"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float | int) and not 0 <= value < 1e6:
                raise PlanError(f"cost model: {name} is {value}; prices are ticks, at least 0; calibrate again")
        if self.counter_share > 1:
            raise PlanError(f"cost model: counter_share is {self.counter_share}, a share above 1; calibrate again")

    def mispredicted(self, yes: Floats, no: Floats) -> Floats:
        """Share of exits mispredicted at a test that ``yes`` of all exits pass and ``no`` fail, for independent exits.

        The ideal guess is wrong for the rarer outcome, min(yes, no).  A saturating two-bit counter errs in the fraction
        pq / (1 - 2pq) of cases, a little more often; CPUs measured lie close to it.
        """
        ideal = np.minimum(yes, no)
        if not self.counter_share:
            return ideal
        squares = np.maximum(yes * yes + no * no, _TINY)
        return ideal + self.counter_share * (yes * no * (yes + no) / squares - ideal)

    def describe(self) -> str:
        """One line with every price."""
        return (
            f"{self.comparison:.2f}·comparisons + {self.taken:.2f}·taken + {self.misprediction:.1f}·mispredictions "
            f"({self.counter_share:.0%} two-bit counter) "
            f"+ {self.indirect:.1f}·table calls + {self.indirect_misprediction:.1f}·wrong targets "
            f"(ticks; {self.mitigation}; {self.source})"
        )


REFERENCE_MODEL = CostModel()
"""The prices of the feasibility study, for use where nothing was calibrated; its plans say so."""
