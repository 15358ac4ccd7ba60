"""Paired ratios with bootstrap confidence intervals.

Passes of one round run back to back in one process, so a ratio is formed inside the round: drift of clock and load then
cancels.  A process and its layout form a cluster; the interval resamples clusters, and rounds within them, because what
differs between two programs is mostly their layout, which no number of rounds averages out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["NOISE_TICKS", "Interval", "difference_interval", "ratio_interval"]

Samples = npt.NDArray[np.float64]
"""Ticks per exit, by cluster (first axis) and round (second axis)."""

RESAMPLES = 2000
CONFIDENCE = 0.95

NOISE_TICKS = 1.0
"""Differences below this are called noise whatever the interval says: facts of such machines, not of statistics."""


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _interval(paired: Samples, seed: int) -> Interval:
    """Mean over clusters of the median over rounds, with the cluster bootstrap."""
    generator = np.random.default_rng(seed)
    clusters, rounds = paired.shape
    point = float(np.median(paired, axis=1).mean())
    picked = generator.integers(0, clusters, (RESAMPLES, clusters))
    within = generator.integers(0, rounds, (RESAMPLES, clusters, rounds))
    drawn = np.take_along_axis(paired[picked], within, axis=2)
    means = np.median(drawn, axis=2).mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(point, min(float(low), point), max(float(high), point))


def ratio_interval(candidate: Samples, reference: Samples, seed: int = 1) -> Interval:
    """Time of ``candidate`` as a multiple of ``reference``'s, paired by round."""
    return _interval(candidate / reference, seed)


def difference_interval(candidate: Samples, reference: Samples, seed: int = 1) -> Interval:
    """Ticks per exit of ``candidate`` over ``reference``, paired by round."""
    return _interval(candidate - reference, seed)
