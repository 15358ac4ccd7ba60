"""The closed loop of a shadow plan: the same guest without a shadow VMCS and with the planned set."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lzero.errors import GuestFault, PlanError
from lzero.trace.shadow import Costs, ShadowSet, plan_shadow

if TYPE_CHECKING:
    from lzero.result import RunResult

__all__ = ["verify_plan"]

_READ_WRITE = (23, 25)  # VMREAD, VMWRITE


def verify_plan(image: Path, arguments: list[str], fields: Path, initrd: Path | None, append: str) -> str:
    """Run `image` twice and compare the exits that vanished with the prediction; returns the comparison as text.

    Raises
    ------
    UsageError
        The plan or the image cannot be read.
    GuestFault
        The guest did not end the same way in both runs.
    PlanError
        Without a shadow VMCS the guest makes no VMREAD or VMWRITE exit.
    """
    chosen = ShadowSet.load(fields)
    choices: dict[str, Any] = {"initrd": initrd, "append": append}
    without = _run(image, arguments, "off", choices)
    with_plan = _run(image, arguments, str(fields), choices)
    if (without.ended, without.debug_exit) != (with_plan.ended, with_plan.debug_exit):
        raise GuestFault(
            f"{image}: ended by {without.ended} without a shadow VMCS, but by {with_plan.ended} with it: "
            f"{with_plan.message or 'no message'}"
        )
    plan = plan_shadow(without.aggregates, Costs.load())
    before, after = _accesses(without), _accesses(with_plan)
    if not before:
        raise PlanError(f"{image}: no VMREAD or VMWRITE exit without a shadow VMCS; is it a hypervisor?")
    predicted, observed = plan.removed(chosen), before - after
    served = sum(with_plan.aggregates.by_processor.values())
    off = 100 * (observed - predicted) / predicted if predicted else 0.0
    return (
        f"{'':<34} {'without':>12} {'with plan':>12}\n"
        f"{'VMREAD and VMWRITE exits':<34} {before:>12} {after:>12}\n"
        f"{'all exits':<34} {without.exits:>12} {with_plan.exits:>12}\n"
        f"{'served by the processor':<34} {0:>12} {served:>12}\n"
        f"\nexits removed: predicted {predicted}, observed {observed} ({off:+.2f} %)\n"
    )


def _run(image: Path, arguments: list[str], shadow: str, choices: dict[str, Any]) -> RunResult:
    from lzero.machine import Machine

    machine = Machine(image, tuple(arguments), shadow_vmcs=shadow, quiet=True, console=io.BytesIO(), **choices)
    return machine.run()


def _accesses(result: RunResult) -> int:
    return sum(result.aggregates.counts(1).get(reason, 0) for reason in _READ_WRITE)
