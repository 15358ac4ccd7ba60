"""Why a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lzero.platform.exits import ExitRequest
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["HaltedForever", "TripleFault", "VmxAborted", "exit_requested", "halted_forever", "triple_fault"]


@dataclass(frozen=True, slots=True)
class TripleFault:
    """The guest could not deliver a double fault."""

    rip: int


@dataclass(frozen=True, slots=True)
class HaltedForever:
    """The guest halted and nothing can wake it."""

    rip: int
    interrupts_enabled: bool


@dataclass(frozen=True, slots=True)
class VmxAborted:
    """A VM exit to L1 could not be completed: the logical processor is in VMX-abort shutdown (28.7)."""

    indicator: str


def triple_fault(vcpu: Vcpu) -> bool:
    """End: triple fault."""
    return vcpu.stop(TripleFault(vcpu.cpu.vmread(Field.GUEST_RIP)))


def halted_forever(vcpu: Vcpu) -> bool:
    """End: HLT with nothing to come."""
    cpu = vcpu.cpu
    return vcpu.stop(HaltedForever(cpu.vmread(Field.GUEST_RIP), bool(cpu.vmread(Field.GUEST_RFLAGS) >> 9 & 1)))


def exit_requested(vcpu: Vcpu) -> bool:
    """End: a device asked for it."""
    request = vcpu.pc.exit_request
    assert isinstance(request, ExitRequest)
    return vcpu.stop(request)
