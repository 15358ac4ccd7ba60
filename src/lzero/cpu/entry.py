"""VM entry: the named checks applied to the VMCS that L0 launches (SDM 3C chapter 27)."""

from __future__ import annotations

from collections.abc import Callable

from lzero.cpu.checks import CheckContext, CheckPlan, Failure
from lzero.cpu.vmcs import Vmcs
from lzero.errors import ConsistencyError
from lzero.sdm.capabilities import VmxCapabilities

__all__ = ["EntryChecker", "VmFailure", "eptp_valid"]


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


class EntryChecker:
    """The checks of VM entry for one processor.

    Parameters
    ----------
    capabilities:
        The VMX features that decide what is allowed.
    memory:
        Reads physical memory, for the rules that look there.
    """

    def __init__(self, capabilities: VmxCapabilities, memory: Callable[[int, int], bytes]) -> None:
        self._capabilities = capabilities
        self._memory = memory
        self._plan = CheckPlan(capabilities)

    def check(self, vmcs: Vmcs) -> Failure | None:
        """The first rule that entry with this VMCS breaks, looking only at rules that read changed fields."""
        return self._plan.run(CheckContext(vmcs.read, self._capabilities, self._memory), vmcs.changed)


def eptp_valid(eptp: int, capabilities: VmxCapabilities) -> bool:
    """Whether VM entry would accept this EPT pointer (27.2.1.1)."""
    if eptp & 7 not in (0, 6) or eptp >> 3 & 7 != 3:
        return False
    if eptp & 0x40 and not capabilities.ept_vpid >> 21 & 1:
        return False
    return not eptp & 0xF80 and not eptp >> capabilities.physical_address_width
