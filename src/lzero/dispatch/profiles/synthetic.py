"""The named synthetic profiles.

None of these was recorded anywhere.  They are seeded draws from the histograms below, which were chosen by hand
to have the shape the 2019 discussion of KVM's dispatcher assumed; what each is for stands in its ``origin``.  Judge a
dispatcher by recordings of your own workload, and use these to see how it behaves off its profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lzero.dispatch.handlers import HANDLERS
from lzero.dispatch.profiles.profile import Profile, ReasonArray
from lzero.sdm.exit_reasons import ExitReason

__all__ = ["DEFAULT_LENGTH", "SYNTHETIC", "SyntheticProfile"]

DEFAULT_LENGTH = 65536
"""Exits per synthetic sequence: shorter than 32,768 and a branch predictor learns the sequence by heart."""

_Generator = np.random.Generator

SKEWED: Mapping[ExitReason, float] = {
    ExitReason.MSR_WRITE: 45.0,
    ExitReason.EPT_MISCONFIG: 20.0,
    ExitReason.HLT: 10.0,
    ExitReason.EXTERNAL_INTERRUPT: 8.0,
    ExitReason.PREEMPTION_TIMER: 5.0,
    ExitReason.INTERRUPT_WINDOW: 3.0,
    ExitReason.IO_INSTRUCTION: 2.5,
    ExitReason.EPT_VIOLATION: 2.0,
    ExitReason.CPUID: 1.5,
    ExitReason.MSR_READ: 1.0,
    ExitReason.PAUSE_INSTRUCTION: 0.8,
    ExitReason.CR_ACCESS: 0.4,
    ExitReason.EXCEPTION_NMI: 0.3,
    ExitReason.VMCALL: 0.2,
    ExitReason.APIC_WRITE: 0.1,
    ExitReason.EOI_INDUCED: 0.1,
    ExitReason.WBINVD: 0.05,
    ExitReason.XSETBV: 0.05,
}
"""Percent of exits per reason: a virtio guest on a host without APIC virtualisation."""

NESTED: Mapping[ExitReason, float] = {
    ExitReason.VMREAD: 30.0,
    ExitReason.VMWRITE: 17.0,
    ExitReason.VMRESUME: 14.0,
    ExitReason.MSR_WRITE: 10.0,
    ExitReason.EPT_MISCONFIG: 6.0,
    ExitReason.EXTERNAL_INTERRUPT: 5.0,
    ExitReason.HLT: 4.0,
    ExitReason.INVEPT: 2.5,
    ExitReason.MSR_READ: 2.0,
    ExitReason.CPUID: 2.0,
    ExitReason.CR_ACCESS: 1.5,
    ExitReason.EPT_VIOLATION: 1.5,
    ExitReason.PREEMPTION_TIMER: 1.0,
    ExitReason.INTERRUPT_WINDOW: 1.0,
    ExitReason.IO_INSTRUCTION: 0.8,
    ExitReason.VMPTRLD: 0.5,
    ExitReason.INVVPID: 0.5,
    ExitReason.VMCALL: 0.3,
    ExitReason.EXCEPTION_NMI: 0.2,
    ExitReason.VMCLEAR: 0.1,
    ExitReason.VMLAUNCH: 0.1,
}
"""Percent of exits per reason: L1 is a hypervisor without VMCS shadowing and L0 sees its VMX instructions."""

PERIOD_16 = (
    *(ExitReason.MSR_WRITE,) * 2,
    ExitReason.EPT_MISCONFIG,
    ExitReason.MSR_WRITE,
    ExitReason.EXTERNAL_INTERRUPT,
    ExitReason.MSR_WRITE,
    ExitReason.EPT_MISCONFIG,
    ExitReason.HLT,
    ExitReason.MSR_WRITE,
    ExitReason.INTERRUPT_WINDOW,
    ExitReason.MSR_WRITE,
    ExitReason.EPT_MISCONFIG,
    ExitReason.PREEMPTION_TIMER,
    ExitReason.MSR_WRITE,
    ExitReason.IO_INSTRUCTION,
    ExitReason.HLT,
)
"""One period of the periodic profile, in order."""

MEAN_RUN = 12
"""Mean number of equal reasons in a row of the bursty profiles."""

UNIFORM_REASONS = tuple(sorted(HANDLERS))
"""Every reason that KVM has a handler for."""


def _normal(histogram: Mapping[ExitReason, float]) -> tuple[ReasonArray, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    reasons = np.array([int(reason) for reason in histogram], dtype=np.uint16)
    weights = np.array(list(histogram.values()), dtype=np.float64)
    return reasons, weights / weights.sum()


def _independent(histogram: Mapping[ExitReason, float]) -> Callable[[_Generator, int], ReasonArray]:
    def draw(generator: _Generator, length: int) -> ReasonArray:
        reasons, shares = _normal(histogram)
        return generator.choice(reasons, size=length, p=shares)

    return draw


def _bursty(histogram: Mapping[ExitReason, float]) -> Callable[[_Generator, int], ReasonArray]:
    """Runs of equal reasons, geometric with mean `MEAN_RUN`; run values are drawn independently from the histogram."""

    def draw(generator: _Generator, length: int) -> ReasonArray:
        reasons, shares = _normal(histogram)
        values = generator.choice(reasons, size=length, p=shares)
        starts = generator.random(length) < 1.0 / MEAN_RUN
        starts[0] = True
        return values[np.maximum.accumulate(np.where(starts, np.arange(length), 0))]

    return draw


def _periodic(_generator: _Generator, length: int) -> ReasonArray:
    return np.resize(np.array([int(reason) for reason in PERIOD_16], dtype=np.uint16), length)


def _uniform(generator: _Generator, length: int) -> ReasonArray:
    return generator.choice(np.array(UNIFORM_REASONS, dtype=np.uint16), size=length)


@dataclass(frozen=True)
class SyntheticProfile:
    """A named generator: same name, seed and length give the same sequence."""

    name: str
    origin: str
    independent: bool
    draw: Callable[[_Generator, int], ReasonArray]

    def make(self, length: int = DEFAULT_LENGTH, seed: int = 1) -> Profile:
        """Draw ``length`` exits with numpy's PCG64 seeded by ``seed``."""
        order = self.draw(np.random.default_rng(seed), length)
        origin = f"synthetic, seed {seed}, {length} exits: {self.origin}"
        return Profile.from_order(self.name, origin, order, independent=self.independent)


SYNTHETIC: Mapping[str, SyntheticProfile] = {
    profile.name: profile
    for profile in (
        SyntheticProfile(
            "skewed",
            "independent draws; a virtio guest without APIC virtualisation, by assumption",
            True,
            _independent(SKEWED),
        ),
        SyntheticProfile(
            "nested",
            "independent draws; L1 is a hypervisor and VMCS shadowing is off, by assumption",
            True,
            _independent(NESTED),
        ),
        SyntheticProfile("bursty", f"the skewed histogram in runs of mean length {MEAN_RUN}", False, _bursty(SKEWED)),
        SyntheticProfile(
            "nested-bursty", f"the nested histogram in runs of mean length {MEAN_RUN}", False, _bursty(NESTED)
        ),
        SyntheticProfile("periodic", "one fixed pattern of 16 exits, repeated", False, _periodic),
        SyntheticProfile(
            "uniform", "independent draws, each handled reason alike: the worst case of any chain", True, _uniform
        ),
    )
}
"""The profiles shipped, by name."""
