"""EPT violations of L2: L0's own (a page not mapped yet), L1's, or an exception in L2 (SDM 3C 28.2.1, 29.3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.vmcs import FIELD_POSITION
from lzero.errors import GuestFault
from lzero.hypervisor import mmio
from lzero.hypervisor.nested.merge import secondary_controls
from lzero.hypervisor.nested.shadow_ept import EptWalk
from lzero.sdm.controls import ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.nested.nested import Nested
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["EptExits"]

_P = FIELD_POSITION
_QUALIFICATION, _ADDRESS = _P[Field.EXIT_QUALIFICATION], _P[Field.GUEST_PHYSICAL_ADDRESS]
_LINEAR, _VECTORING = _P[Field.GUEST_LINEAR_ADDRESS], _P[Field.IDT_VECTORING_INFORMATION]
_EPTP, _PML_INDEX = _P[Field.EPT_POINTER], _P[Field.PML_INDEX]
_ENABLE_EPT, _MBEC = int(ProcBased2.ENABLE_EPT), int(ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)
_ENABLE_PML, _ENABLE_VE = int(ProcBased2.ENABLE_PML), int(ProcBased2.EPT_VIOLATION_VE)
_WRITE, _FETCH = 2, 4
_FINAL, _EXECUTE_BITS = 1 << 8, 0x404
_LOG_ENTRIES = 512
_AREA_FREE, _AREA_BUSY = 0, 0xFFFF_FFFF


class EptExits:
    """What an EPT violation under vmcs02 means.

    Parameters
    ----------
    vcpu, state:
        L1's VCPU and its VMX.
    """

    def __init__(self, vcpu: Vcpu, state: NestedState) -> None:
        self._vcpu, self._state = vcpu, state

    def violation(self, nested: Nested) -> bool | None:
        """Deal with the violation; None if it is for L0's own handler."""
        state = self._state
        assert state.vmcs12 is not None
        w12, w02 = state.vmcs12.words, state.vmcs02.words
        proc2 = secondary_controls(w12)
        if not proc2 & _ENABLE_EPT:
            return None
        qualification, address, eptp = w02[_QUALIFICATION], w02[_ADDRESS], w12[_EPTP]
        mbec = bool(proc2 & _MBEC)
        access = qualification & 7
        if not qualification & _FINAL and eptp & 0x40:
            access |= _WRITE  # with accessed and dirty flags, walks of the guest's tables write (29.3.3.2)
        logs = bool(proc2 & _ENABLE_PML)
        log_full = logs and w02[_PML_INDEX] >= _LOG_ENTRIES
        found = state.ept.walk(eptp, address, access, mbec=mbec, log_full=log_full)
        if found.outcome == "mapped" and not (mbec and access == _FETCH and _wrong_mode(qualification, found.rights)):
            if logs and found.dirtied:
                self._log(address)
            return self._map(eptp, address, found, qualification, mbec=mbec)
        if found.outcome == "log full":
            w02[_QUALIFICATION] = 0
            return nested.reflect(ExitReason.PML_FULL)
        if found.outcome == "misconfiguration":
            w02[_QUALIFICATION] = 0
            return nested.reflect(ExitReason.EPT_MISCONFIG)
        rights = (found.rights & 7) << 3 | (0x40 if mbec and found.rights & 0x400 else 0)
        w02[_QUALIFICATION] = (qualification & ~0x7F) | access | rights
        if proc2 & _ENABLE_VE and not found.suppress_ve and self._virtualization_exception():
            return True
        return nested.reflect(ExitReason.EPT_VIOLATION)

    def _map(self, eptp: int, address: int, found: EptWalk, qualification: int, *, mbec: bool) -> bool:
        page = found.address & ~0xFFF
        if not self._vcpu.pc.memory.contains(page, 4096) and page != self._state.ept.apic_page:
            return self._device(qualification, found.address)
        self._state.ept.fill(eptp, address, found, mbec=mbec)
        return True

    def _device(self, qualification: int, address: int) -> bool:
        """L1's tables lead to where L1 has no RAM: L2 accesses a device of L1, or none."""
        if qualification & _FETCH or not qualification & _FINAL:
            what = "an instruction" if qualification & _FETCH else "a page-table entry"
            raise GuestFault(
                f"L2 needs {what} from guest-physical address {address:#x} of L1, where there is no memory: "
                f"L1's extended page tables lead there (RIP of L2 {self._state.vmcs02.words[_P[Field.GUEST_RIP]]:#x})"
            )
        return mmio.access(self._vcpu, address)

    def _log(self, address: int) -> None:
        """Page-modification logging (29.3.6)."""
        assert self._state.vmcs12 is not None
        w12, w02 = self._state.vmcs12.words, self._state.vmcs02.words
        index = w02[_PML_INDEX]
        self._state.memory.write_u64(w12[_P[Field.PML_ADDRESS]] + 8 * index, address & ~0xFFF)
        w02[_PML_INDEX] = (index - 1) & 0xFFFF

    def _virtualization_exception(self) -> bool:
        """#VE in L2 instead of the exit, if its information area is free (26.5.7); false if it is not."""
        state, memory = self._state, self._state.memory
        assert state.vmcs12 is not None
        w12, w02 = state.vmcs12.words, state.vmcs02.words
        area = w12[_P[Field.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS]]
        busy = int.from_bytes(memory.read(area + 4, 4), "little")
        if busy != _AREA_FREE or w02[_VECTORING] >> 31 or not w02[_P[Field.GUEST_CR0]] & 1:
            return False
        head = int(ExitReason.EPT_VIOLATION).to_bytes(4, "little") + _AREA_BUSY.to_bytes(4, "little")
        values = (w02[_QUALIFICATION], w02[_LINEAR], w02[_ADDRESS])
        index = w12[_P[Field.EPTP_INDEX]].to_bytes(2, "little")
        memory.write(area, head + b"".join(value.to_bytes(8, "little") for value in values) + index)
        return self._vcpu.inject_exception(Vector.VE)


def _wrong_mode(qualification: int, rights: int) -> bool:
    """A fetch that L0's tables refuse with L1's rights in them: its mode is the one that lacks the right (29.3.2)."""
    seen = (4 if qualification & 0x20 else 0) | (0x400 if qualification & 0x40 else 0)
    return seen == rights & _EXECUTE_BITS
