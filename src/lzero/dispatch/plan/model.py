"""What a dispatch is assumed to cost: the model under which a plan is called best."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lzero.errors import PlanError

__all__ = ["REFERENCE_MODEL", "CostModel"]


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
    indirect:
        The handler table: bounds, load and one indirect call under ``mitigation``.
    indirect_misprediction:
        What a wrongly predicted target adds to ``indirect``; 0 under a retpoline, which never predicts.
    mitigation:
        Name of the mitigation under which ``indirect`` was measured.
    source:
        Where the prices come from: which CPU, calibrated when.
    """

    comparison: float = 1.0
    taken: float = 0.5
    range_extra: float = 0.5
    misprediction: float = 16.0
    indirect: float = 20.0
    indirect_misprediction: float = 0.0
    mitigation: str = "retpoline"
    source: str = "reference prices (Zen 3, gcc 12), not calibrated on this host"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float | int) and not 0 <= value < 1e6:
                raise PlanError(f"cost model: {name} is {value}; prices are ticks, at least 0; calibrate again")

    def describe(self) -> str:
        """One line with every price."""
        return (
            f"{self.comparison:.2f}·comparisons + {self.taken:.2f}·taken + {self.misprediction:.1f}·mispredictions "
            f"+ {self.indirect:.1f}·table calls + {self.indirect_misprediction:.1f}·wrong targets "
            f"(ticks; {self.mitigation}; {self.source})"
        )


REFERENCE_MODEL = CostModel()
"""The prices of the feasibility study, for use where nothing was calibrated; its plans say so."""
