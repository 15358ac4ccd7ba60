"""Why a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lzero.platform.exits import ExitRequest
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["HaltedForever", "TripleFault", "exit_requested", "halted_forever", "triple_fault"]


@dataclass(frozen=True, slots=True)
class TripleFault:
    """The guest could not deliver a double fault."""

    rip: int


@dataclass(frozen=True, slots=True)
class HaltedForever:
    """The guest halted and nothing can wake it."""

    rip: int
    interrupts_enabled: bool


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
