"""Running the checks, and running only those whose inputs changed.

A full run evaluates every rule that the capabilities leave something to say. On a hot path, keep a mask of the fields
written since the last entry that passed, and pass it::

    dirty |= FIELD_BIT[encoding]          # in VMWRITE, for either half of a field
    failure = plan.run(context, dirty)
    if failure is None:
        dirty = 0

Rules that look at memory are evaluated at every run; those that look at the processor's state (the attributes of the
context) when ``PROCESSOR_BIT`` is in the mask. The selection of rules for a mask is computed once and remembered.

Fields that a VM exit saved from a guest that had been entered need no marking: the processor saves only states that
these rules accept, and a rule that relates saved state to a control runs when the control is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from lzero.sdm.capabilities import VmxCapabilities
from lzero.sdm.vmcs_fields import HIGH, VMCS_FIELDS, Width

from .model import Check, CheckContext, CheckGroup, Failure, Outside, Predicate
from .table import CHECKS

__all__ = ["ALL_DIRTY", "FIELD_BIT", "PROCESSOR_BIT", "CheckPlan", "field_mask", "run_checks"]

_REMEMBERED_MASKS = 1024


def _field_bits() -> Mapping[int, int]:
    bits: dict[int, int] = {}
    for position, row in enumerate(VMCS_FIELDS.values()):
        bits[row.encoding] = 1 << position
        if row.width is Width.W64:
            bits[row.encoding | HIGH] = 1 << position
    return MappingProxyType(bits)


FIELD_BIT: Mapping[int, int] = _field_bits()
"""The bit of each field in a dirty mask, by encoding; both halves of a 64-bit field have the same bit."""

PROCESSOR_BIT = 1 << len(VMCS_FIELDS)
"""The bit of a dirty mask that says an attribute of the context changed: mode, current VMCS, SMM, Intel PT."""

ALL_DIRTY = 2 * PROCESSOR_BIT - 1
"""The dirty mask that says nothing is known: every rule is evaluated."""


def field_mask(fields: Iterable[int]) -> int:
    """Dirty mask of these fields."""
    mask = 0
    for encoding in fields:
        mask |= FIELD_BIT[encoding]
    return mask


def _inputs(check: Check) -> int:
    mask = field_mask(int(field) for field in check.fields)
    return mask | PROCESSOR_BIT if check.outside is Outside.PROCESSOR else mask


class CheckPlan:
    """The rules that matter under given capabilities, prepared for repeated runs.

    Rules that need a control which the capabilities never allow are left out: the rule on that control word's reserved
    bits comes before them and fails first.

    Parameters
    ----------
    capabilities:
        What the processor offers; a context of another offer must not be run under this plan.
    groups:
        Groups to check, all by default.
    """

    def __init__(self, capabilities: VmxCapabilities, groups: Iterable[CheckGroup] = tuple(CheckGroup)) -> None:
        wanted = frozenset(groups)
        self.capabilities = capabilities
        self.checks: tuple[Check, ...] = tuple(
            check
            for check in CHECKS
            if check.group in wanted and all(capabilities.allows(flag) for flag in check.requires)
        )
        self._masks = tuple(
            field_mask(int(field) for field in check.fields)
            | (PROCESSOR_BIT if check.outside is Outside.PROCESSOR else 0)
            for check in self.checks
        )
        self._selected: dict[int, tuple[tuple[Predicate, Check], ...]] = {}

    def run(self, context: CheckContext, dirty: int = ALL_DIRTY) -> Failure | None:
        """The first rule that fails among those that the dirty fields can have changed; None if all hold."""
        selected = self._selected.get(dirty)
        if selected is None:
            selected = self._select(dirty)
        for predicate, check in selected:
            if not predicate(context):
                return Failure(check, {field: context.read(int(field)) for field in check.fields})
        return None

    def selected(self, dirty: int) -> tuple[Check, ...]:
        """The rules that :meth:`run` evaluates for this mask."""
        return tuple(check for _, check in self._selected.get(dirty) or self._select(dirty))

    def _select(self, dirty: int) -> tuple[tuple[Predicate, Check], ...]:
        if len(self._selected) >= _REMEMBERED_MASKS:
            # A guest chooses what it writes: forget rather than grow without bound.
            self._selected.clear()
        chosen = tuple(
            (check.predicate, check)
            for check, mask in zip(self.checks, self._masks, strict=True)
            if mask & dirty or check.outside is Outside.MEMORY
        )
        self._selected[dirty] = chosen
        return chosen


_PLANS: dict[tuple[VmxCapabilities, frozenset[CheckGroup]], CheckPlan] = {}


def run_checks(context: CheckContext, groups: Iterable[CheckGroup] = tuple(CheckGroup)) -> Failure | None:
    """Evaluate all rules of the groups in the manual's order; the first failure, or None if the entry may proceed."""
    key = (context.capabilities, frozenset(groups))
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS[key] = CheckPlan(*key)
    return plan.run(context)
