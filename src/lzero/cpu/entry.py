"""VM entry: the named checks applied to the VMCS that L0 launches (SDM 3C chapter 27)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import CheckContext, CheckGroup, Failure, run_checks
from lzero.cpu.vmcs import Changed, Vmcs
from lzero.errors import ConsistencyError
from lzero.sdm.capabilities import VmxCapabilities

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["VmFailure", "check_entry", "eptp_valid"]

_GROUPS = {
    CheckGroup.CONTROLS: Changed.CONTROLS,
    CheckGroup.HOST_STATE: Changed.CONTROLS | Changed.HOST,
    CheckGroup.GUEST_STATE: Changed.CONTROLS | Changed.GUEST,
}


class VmFailure(ConsistencyError):
    """VMLAUNCH or VMRESUME failed with VMfailValid: a control or host-state field breaks a rule.

    Attributes
    ----------
    instruction_error:
        The VM-instruction error number.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.check.id, failure.text())
        self.instruction_error = failure.vm_instruction_error


def check_entry(processor: Processor, vmcs: Vmcs) -> Failure | None:
    """The first rule that entry with this VMCS breaks, looking only at groups whose fields were written since the
    last entry.
    """
    context = CheckContext(vmcs.read, processor.capabilities, processor.memory.read)
    groups = [group for group, changes in _GROUPS.items() if vmcs.changed & changes]
    return run_checks(context, groups)


def eptp_valid(eptp: int, capabilities: VmxCapabilities) -> bool:
    """Whether VM entry would accept this EPT pointer (27.2.1.1)."""
    if eptp & 7 not in (0, 6) or eptp >> 3 & 7 != 3:
        return False
    if eptp & 0x40 and not capabilities.ept_vpid >> 21 & 1:
        return False
    return not eptp & 0xF80 and not eptp >> capabilities.physical_address_width
