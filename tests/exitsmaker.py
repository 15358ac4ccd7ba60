"""Totals of runs that never were: small, exact, and with known causes."""

from __future__ import annotations

from lzero.sdm.exit_reasons import ExitReason
from lzero.trace.aggregates import Aggregates, Totals


def nested(cpuid: int = 100, vmreads: int = 9, vmwrites: int = 4, others: int = 1, served: int = 0) -> Aggregates:
    """Totals of an L2 that executed CPUID so many times, each handled by L1 with these exits and one VMRESUME."""
    made = Aggregates()
    if cpuid:
        made.exits[2, ExitReason.CPUID] = timed(cpuid, 2_000)
        made.exits[2, ExitReason.HLT] = timed(1, 500)
        made.reflected[ExitReason.CPUID] = cpuid
    for reason, each in (
        (ExitReason.VMREAD, vmreads),
        (ExitReason.VMWRITE, vmwrites),
        (ExitReason.VMRESUME, 1),
        (ExitReason.MSR_WRITE, others),
    ):
        if cpuid * each:
            made.exits[1, reason] = timed(cpuid * each, 1_000)
            made.caused[ExitReason.CPUID, reason] = cpuid * each
    if served:
        made.caused_by_processor[ExitReason.CPUID, ExitReason.VMREAD] = cpuid * served
    return made


def timed(count: int, each_ns: int) -> Totals:
    """Totals of so many exits that all took the same time."""
    return Totals(count, count, count * each_ns, each_ns, each_ns, float(count * each_ns**2))
