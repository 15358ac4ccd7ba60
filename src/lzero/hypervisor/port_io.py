"""IN, OUT, INS and OUTS (SDM 3C 28.2.1, table 28-5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.hypervisor.endings import exit_requested
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["handle_io"]

_BUS_CYCLE_NS = 1000
"""Guest time of an access to a port: that of the ISA bus, on which software that polls a device counts."""
_BURST = 1024
"""String I/O goes on for this many items before the guest may take an interrupt."""


def handle_io(vcpu: Vcpu) -> bool:
    """One I/O instruction."""
    cpu = vcpu.cpu
    cpu.clock.skip(_BUS_CYCLE_NS)
    qualification = cpu.vmread(Field.EXIT_QUALIFICATION)
    port, size = qualification >> 16 & 0xFFFF, (qualification & 7) + 1
    if qualification & 0x10:
        return _string(vcpu, port, size, qualification)
    bus, gpr = vcpu.pc.bus, cpu.gpr
    if qualification & 8:
        value = bus.port_read(port, size)
        if size == 4:
            gpr[0] = value
        else:
            mask = (1 << 8 * size) - 1
            gpr[0] = (gpr[0] & ~mask) | value
    else:
        bus.port_write(port, size, gpr[0] & ((1 << 8 * size) - 1))
        if vcpu.pc.exit_request is not None:
            vcpu.skip_instruction()
            return exit_requested(vcpu)
    return vcpu.skip_instruction()


def _string(vcpu: Vcpu, port: int, size: int, qualification: int) -> bool:
    """INS or OUTS, with or without REP; a fault in the middle leaves the registers where they are."""
    cpu, bus, gpr = vcpu.cpu, vcpu.pc.bus, vcpu.cpu.gpr
    is_in, rep = bool(qualification & 8), bool(qualification & 0x20)
    register = 7 if is_in else 6
    mask = (1 << cpu.instruction().address_bits) - 1
    step = -size if cpu.vmread(Field.GUEST_RFLAGS) >> 10 & 1 else size
    left = gpr[1] & mask if rep else 1
    for _ in range(min(left, _BURST)):
        linear = cpu.string_operand(is_in=is_in)
        if is_in:
            if not vcpu.write_guest(linear, bus.port_read(port, size).to_bytes(size, "little")):
                return True
        else:
            data = vcpu.read_guest(linear, size)
            if data is None:
                return True
            bus.port_write(port, size, int.from_bytes(data, "little"))
        gpr[register] = (gpr[register] & ~mask) | (gpr[register] + step & mask)
        if rep:
            gpr[1] = (gpr[1] & ~mask) | (gpr[1] - 1 & mask)
        if vcpu.pc.exit_request is not None:
            return exit_requested(vcpu)
    if left > _BURST:
        return True
    return vcpu.skip_instruction()
