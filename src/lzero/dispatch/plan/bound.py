"""What no dispatcher of two-way tests can beat under the cost model, for independent exits.

Two bounds; both hold for *every* tree of two-way tests, whatever the tests are (sets, masks, parities), so a plan near
them has nothing left to gain from cleverer tests.

*Entropy.* A node reached by a share w of exits that sends p of them one way costs w·(c + M·m(p)), where m is the
model's share of mispredictions, and yields w·H(p) bits.  With λ the least ratio of the two over p, the whole tree costs
at least λ times the handlers' entropy.  Where the table may end any part at T ticks, the reasons that go to it cost T
and count as one handler; the best such set is a prefix of the reasons from the lightest up (it is a fractional
knapsack, and the bound is concave between).

*Relaxation.* All but the heaviest handlers count as one handler that needs no telling apart; over the rest the best
tree of arbitrary set tests is found exactly, by a program over subsets.  A real tree may hold pieces of that one
handler in several places; gathering them in one of the places cannot cost more, because every price is concave in how
much lies where.  That holds for the ideal guess min(p, 1-p), which is the greatest concave function below the two-bit
counter's, so this bound uses it whatever the model says.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lzero.dispatch.plan.model import CostModel

__all__ = ["entropy_bound", "lower_bound", "relaxation_bound"]

HEAVIEST = 11
"""Handlers kept apart by the relaxation: 3**(n+1) steps."""


def _price_per_bit(model: CostModel) -> float:
    """λ: the least ticks per bit of information that any test can cost."""
    p = np.linspace(1e-6, 0.5, 200_001)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    # The grid overestimates the minimum by less than this factor; a bound must err to the low side.
    missed = model.mispredicted(p, 1 - p)
    return float(((model.comparison + model.misprediction * missed) / bits).min() * (1 - 1e-6))


def entropy_bound(shares: Iterable[float], model: CostModel, *, table: bool = False) -> float:
    """Ticks per exit from the entropy of the handlers' shares (which sum to 1)."""
    weights = np.sort(np.array([share for share in shares if share > 0]))
    bits = -weights * np.log2(weights)
    price = _price_per_bit(model)
    bound = price * float(bits.sum())
    if table:
        sent = np.cumsum(weights)
        kept = bits.sum() - np.cumsum(bits)
        with_table = price * (kept - sent * np.log2(sent)) + model.indirect * sent
        bound = min(bound, float(with_table.min()))
    return bound


def relaxation_bound(shares: Iterable[float], model: CostModel, *, table: bool = False) -> float:
    """Ticks per exit of the best tree of arbitrary tests when the light handlers need no telling apart."""
    weights = sorted((share for share in shares if share > 0), reverse=True)
    groups = np.array(weights[:HEAVIEST] + ([sum(weights[HEAVIEST:])] if len(weights) > HEAVIEST else []))
    count = len(groups)
    weight = (np.arange(1 << count)[:, None] >> np.arange(count) & 1) @ groups
    cost: npt.NDArray[np.float64] = np.zeros(1 << count)
    for whole in range(1, 1 << count):
        if whole & (whole - 1) == 0:
            continue
        lowest = whole & -whole
        parts = _subsets(whole ^ lowest)[:-1] | lowest
        other = whole ^ parts
        price = cost[parts] + cost[other] + model.misprediction * np.minimum(weight[parts], weight[other])
        cost[whole] = price.min() + model.comparison * weight[whole]
        if table:
            cost[whole] = min(cost[whole], model.indirect * weight[whole])
    return float(cost[-1])


def _subsets(whole: int) -> npt.NDArray[np.int64]:
    """All subsets of the bit set ``whole``, itself last."""
    subsets = np.zeros(1, dtype=np.int64)
    while whole:
        lowest = whole & -whole
        subsets = np.concatenate((subsets, subsets | lowest))
        whole ^= lowest
    return subsets


def lower_bound(shares: Iterable[float], model: CostModel, *, table: bool = False) -> float:
    """The better of the two bounds, ticks per exit."""
    listed = list(shares)
    return max(entropy_bound(listed, model, table=table), relaxation_bound(listed, model, table=table))
