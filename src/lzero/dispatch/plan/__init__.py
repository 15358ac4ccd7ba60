"""Planning: from a profile and prices to the dispatcher with the least expected cost.

``model`` prices, ``domain`` reasons cut into atoms, ``exact`` and ``chain`` the optimal trees of two classes, ``bound``
what no tree beats, ``predictor`` and ``evaluate`` costs of any tree, ``planner`` all of it together.
"""

from lzero.dispatch.plan.model import REFERENCE_MODEL, CostModel
from lzero.dispatch.plan.planner import Plan, PlanClass, make_plan

__all__ = ["REFERENCE_MODEL", "CostModel", "Plan", "PlanClass", "make_plan"]
