"""The local APIC of the one processor: xAPIC by MMIO, x2APIC by MSRs (SDM Vol. 3, chapter 11).

Interrupt vectors are three 256-bit integers, so that the highest request is one ``bit_length``. ``deliverable`` is
kept current at every change: the run loop reads one attribute per exit.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag

from lzero.platform.bus import Bus
from lzero.platform.clock import Clock
from lzero.platform.interrupts.ioapic import DeliveryMode, InterruptMessage
from lzero.platform.interrupts.lapic_registers import APIC_REGISTERS, LVT_COUNT, X2APIC_MSR_BASE, ApicRegister
from lzero.platform.interrupts.lapic_timer import ApicTimer, TimerMode
from lzero.platform.registers import Access

__all__ = ["ApicError", "LocalApic", "MsrFault"]

APIC_BASE_DEFAULT = 0xFEE0_0000
APIC_PAGE = 0x1000
BASE_BSP, BASE_EXTENDED, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
VERSION = 0x14
SVR_ENABLE = 1 << 8
LVT_MASKED = 1 << 16
LVT_MODE_SHIFT = 8
ICR_LOGICAL, ICR_ASSERT, ICR_LEVEL = 1 << 11, 1 << 14, 1 << 15
ICR_SHORTHAND_SHIFT = 18
SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS = range(4)
DFR_FLAT = 0xF
BROADCAST_8, BROADCAST_32 = 0xFF, 0xFFFF_FFFF
FIRST_LEGAL_VECTOR = 16
FIRMWARE_LINT0 = 0x8700
FIRMWARE_LINT1 = 0x8400
FIRMWARE_SVR = 0x1FF


class ApicError(IntFlag):
    """Bits of the error status register (SDM Vol. 3, 11.5.3)."""

    SEND_ILLEGAL_VECTOR = 0x20
    RECEIVE_ILLEGAL_VECTOR = 0x40
    ILLEGAL_REGISTER_ADDRESS = 0x80


LVT_READ_ONLY = 1 << 12 | 1 << 14
"""Delivery status and remote IRR of an LVT entry: ignored on writes, not reserved (11.5.1, figure 11-8)."""


class MsrFault(Exception):
    """An access to an APIC MSR that the processor answers with #GP(0). Never leaves the hypervisor."""


class LocalApic:
    """The local APIC.

    Parameters
    ----------
    clock:
        Guest time, for the timer.
    bus:
        Where the register page is claimed, moved and given back.
    on_change:
        Called whenever ``deliverable`` or ``nmi_pending`` may have changed.
    on_init:
        Called when the processor sends itself an INIT.
    on_eoi:
        Called with the vector of a level-triggered interrupt at its end, for the I/O APIC.
    apic_id:
        The processor's APIC ID.
    physical_address_bits:
        MAXPHYADDR, which bounds IA32_APIC_BASE.
    """

    def __init__(
        self,
        clock: Clock,
        bus: Bus,
        on_change: Callable[[], None],
        on_eoi: Callable[[int], None],
        on_init: Callable[[], None],
        apic_id: int = 0,
        physical_address_bits: int = 39,
    ) -> None:
        self._bus = bus
        self._on_change = on_change
        self._on_eoi = on_eoi
        self._on_init = on_init
        self._physical_mask = (1 << physical_address_bits) - 1
        self._reset_id = apic_id
        self.timer = ApicTimer(clock, self._timer_expired)
        self._base = APIC_BASE_DEFAULT | BASE_BSP | BASE_ENABLE
        self._page: int | None = None
        self.extint_line = False
        self.nmi_pending = False
        self._reset_registers()
        self._map(APIC_BASE_DEFAULT)

    def _reset_registers(self) -> None:
        """Power-up state (SDM Vol. 3, 11.4.7.1)."""
        self._id = self._reset_id
        self._tpr = 0
        self._ldr = 0
        self._dfr = BROADCAST_32
        self._svr = 0xFF
        self._esr = 0
        self._errors = 0
        self._icr = 0
        self.irr = 0
        self.isr = 0
        self.tmr = 0
        self._lvt = [LVT_MASKED] * LVT_COUNT
        self.timer.reset()
        self.deliverable = False
        self.accepts_extint = False
        self._refresh_extint()

    def set_firmware_state(self) -> None:
        """What PC firmware leaves behind: enabled, LINT0 takes the 8259A's interrupts (virtual wire), LINT1 is NMI."""
        self._svr = FIRMWARE_SVR
        self._lvt[ApicRegister.LVT_LINT0 - ApicRegister.LVT_TIMER] = FIRMWARE_LINT0
        self._lvt[ApicRegister.LVT_LINT1 - ApicRegister.LVT_TIMER] = FIRMWARE_LINT1
        self._refresh_extint()
        self._changed()

    # Mode

    @property
    def enabled(self) -> bool:
        """Whether the APIC exists for software at all (IA32_APIC_BASE.EN)."""
        return bool(self._base & BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """Whether the APIC is in x2APIC mode."""
        return bool(self._base & BASE_EXTENDED)

    @property
    def base(self) -> int:
        """IA32_APIC_BASE."""
        return self._base

    @base.setter
    def base(self, value: int) -> None:
        """Write IA32_APIC_BASE; MsrFault for reserved bits and impossible transitions (SDM Vol. 3, figure 11-27)."""
        flags = BASE_BSP | BASE_EXTENDED | BASE_ENABLE
        if value & ~(flags | self._physical_mask & ~(APIC_PAGE - 1)):
            raise MsrFault(f"IA32_APIC_BASE: reserved bits in {value:#x}")
        enabled, extended = bool(value & BASE_ENABLE), bool(value & BASE_EXTENDED)
        leaves_x2apic = self.x2apic and enabled and not extended
        skips_xapic = extended and not self.enabled
        if extended and not enabled or leaves_x2apic or skips_xapic:
            raise MsrFault(f"IA32_APIC_BASE: {self._base:#x} -> {value:#x} is no transition the APIC makes")
        was_enabled, was_x2apic = self.enabled, self.x2apic
        self._base = value
        if was_enabled and not enabled:
            self._reset_registers()
        elif extended and not was_x2apic:
            self._ldr = self._x2apic_ldr()
            self._icr &= 0xFFFF_FFFF
        self._map(value & ~(APIC_PAGE - 1) & self._physical_mask if enabled and not extended else None)
        self._refresh_extint()
        self._changed()

    def _map(self, page: int | None) -> None:
        """Answer at this page from now on, or nowhere. A page that another device has stays that device's."""
        if self._page is not None:
            self._bus.unregister_mmio(self._page, APIC_PAGE)
        self._page = page if page is not None and not self._bus.is_mmio(page) else None
        if self._page is not None:
            self._bus.register_mmio(self._page, APIC_PAGE, self)

    def _x2apic_ldr(self) -> int:
        return self._id >> 4 << 16 | 1 << (self._id & 0xF)

    # Priority and delivery

    def _isr_class(self) -> int:
        return (self.isr.bit_length() - 1 if self.isr else 0) & 0xF0

    @property
    def ppr(self) -> int:
        """Processor priority."""
        in_service = self._isr_class()
        return self._tpr if self._tpr & 0xF0 >= in_service else in_service

    @property
    def tpr(self) -> int:
        """Task priority."""
        return self._tpr

    @tpr.setter
    def tpr(self, value: int) -> None:
        self._tpr = value & 0xFF
        self._changed()

    @property
    def cr8(self) -> int:
        """CR8, the task priority's class (SDM Vol. 3, 11.8.6)."""
        return self._tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.tpr = (value & 0xF) << 4

    def _changed(self) -> None:
        irr = self.irr
        self.deliverable = bool(irr) and (irr.bit_length() - 1) & 0xF0 > self.ppr & 0xF0
        self._on_change()

    def highest_request(self) -> int | None:
        """The vector that would be delivered now."""
        return self.irr.bit_length() - 1 if self.deliverable else None

    def acknowledge(self) -> int:
        """Move the highest request into service and return its vector; the spurious vector if there is none (any
        more).
        """
        if not self.deliverable:
            return self._svr & 0xFF
        vector = self.irr.bit_length() - 1
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self._changed()
        return vector

    def request(self, vector: int, level: bool) -> None:
        """Accept a fixed interrupt."""
        if vector < FIRST_LEGAL_VECTOR:
            self._error(ApicError.RECEIVE_ILLEGAL_VECTOR)
            return
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._changed()

    def end_of_interrupt(self) -> None:
        """EOI: the highest interrupt in service is done."""
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        self.isr &= ~(1 << vector)
        if self.tmr >> vector & 1:
            self._on_eoi(vector)
        self._changed()

    # Messages

    def receive(self, message: InterruptMessage) -> None:
        """A message from the I/O APIC."""
        if self.enabled and self._is_destination(message.destination, message.logical, eight_bits=True):
            self._accept(message.mode, message.vector, message.level)

    def _is_destination(self, destination: int, logical: bool, eight_bits: bool) -> bool:
        if destination == (BROADCAST_8 if eight_bits else BROADCAST_32):
            return True
        if not logical:
            return destination == self._id
        if self.x2apic:
            return destination >> 16 == self._ldr >> 16 and bool(destination & self._ldr & 0xFFFF)
        mine = self._ldr >> 24
        if self._dfr >> 28 == DFR_FLAT:
            return bool(destination & mine)
        return destination >> 4 == mine >> 4 and bool(destination & mine & 0xF)

    def _accept(self, mode: int, vector: int, level: bool) -> None:
        """Do what a message or a local interrupt of this delivery mode does to this processor."""
        software_enabled = bool(self._svr & SVR_ENABLE)
        if mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
            if software_enabled:
                self.request(vector, level)
        elif mode == DeliveryMode.NMI:
            self.nmi_pending = True
            self._on_change()
        elif mode == DeliveryMode.INIT:
            self._on_init()
        # SMI: there is no SMM. Start-up: a processor that runs ignores it.

    def _send(self) -> None:
        """Writing the interrupt command register's low half sends it. There is one processor: it gets it, or nobody
        does.
        """
        icr = self._icr
        vector, mode, shorthand = icr & 0xFF, icr >> 8 & 7, icr >> ICR_SHORTHAND_SHIFT & 3
        if mode == DeliveryMode.INIT and icr & ICR_LEVEL and not icr & ICR_ASSERT:
            return  # INIT level de-assert
        if mode in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY) and vector < FIRST_LEGAL_VECTOR:
            self._error(ApicError.SEND_ILLEGAL_VECTOR)
            return
        if shorthand == SHORTHAND_OTHERS:
            return
        if shorthand == SHORTHAND_NONE:
            destination = icr >> 32 if self.x2apic else icr >> 56
            if not self._is_destination(destination, bool(icr & ICR_LOGICAL), eight_bits=not self.x2apic):
                return
        self._accept(mode, vector, level=False)

    # Local interrupts

    def _timer_expired(self) -> None:
        self._local_interrupt(ApicRegister.LVT_TIMER)

    def performance_interrupt(self) -> None:
        """A performance counter overflowed: deliver as its LVT entry says, and mask the entry (SDM Vol. 3, 11.5.1)."""
        index = ApicRegister.LVT_PERFORMANCE - ApicRegister.LVT_TIMER
        self._local_interrupt(ApicRegister.LVT_PERFORMANCE)
        self._lvt[index] |= LVT_MASKED

    def set_lint0(self, level: bool) -> None:
        """The 8259A's INT line. As ExtINT it is a level that the processor answers with INTA; in other modes its edge
        counts.
        """
        rising = level and not self.extint_line
        self.extint_line = level
        entry = self._lvt[ApicRegister.LVT_LINT0 - ApicRegister.LVT_TIMER]
        if rising and entry >> LVT_MODE_SHIFT & 7 != DeliveryMode.EXTINT:
            self._local_interrupt(ApicRegister.LVT_LINT0)
        self._on_change()

    def _local_interrupt(self, register: ApicRegister) -> None:
        entry = self._lvt[register - ApicRegister.LVT_TIMER]
        if not self.enabled or entry & LVT_MASKED:
            return
        has_mode = register not in (ApicRegister.LVT_TIMER, ApicRegister.LVT_ERROR)
        mode = entry >> LVT_MODE_SHIFT & 7 if has_mode else DeliveryMode.FIXED
        self._accept(mode, entry & 0xFF, level=False)

    def _refresh_extint(self) -> None:
        """ExtINT reaches the processor through an unmasked LINT0, or past a disabled APIC."""
        entry = self._lvt[ApicRegister.LVT_LINT0 - ApicRegister.LVT_TIMER]
        through = not entry & LVT_MASKED and entry >> LVT_MODE_SHIFT & 7 == DeliveryMode.EXTINT
        self.accepts_extint = through or not self.enabled

    def _error(self, error: ApicError) -> None:
        """Note an error; its interrupt comes when the first one since the last write to ESR is noted."""
        first = not self._errors & error
        self._errors |= error
        if first:
            self._local_interrupt(ApicRegister.LVT_ERROR)

    # Registers

    def mmio_read(self, offset: int, size: int) -> int:
        """xAPIC register page: aligned 32-bit registers; bytes between them read as 0."""
        index, byte = offset >> 4, offset & 0xF
        row = APIC_REGISTERS.get(index)
        if row is None or row.xapic is None:
            self._error(ApicError.ILLEGAL_REGISTER_ADDRESS)
            return 0
        if byte + size > 4 or row.xapic is Access.WRITE:
            return 0
        return self._read(index) >> 8 * byte

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """xAPIC register page: aligned 32-bit writes; others are ignored."""
        index, byte = offset >> 4, offset & 0xF
        row = APIC_REGISTERS.get(index)
        if row is None or row.xapic is None:
            self._error(ApicError.ILLEGAL_REGISTER_ADDRESS)
        elif byte == 0 and size == 4 and row.xapic is not Access.READ:
            self._write(index, value & (row.writable or value))

    def read_msr(self, msr: int) -> int:
        """RDMSR of an x2APIC register; MsrFault where the processor raises #GP (SDM Vol. 3, 11.12.1.3)."""
        row = APIC_REGISTERS.get(msr - X2APIC_MSR_BASE)
        if not self.x2apic or row is None or row.x2apic in (None, Access.WRITE):
            raise MsrFault(f"RDMSR {msr:#x}: no readable x2APIC register (IA32_APIC_BASE is {self._base:#x})")
        index = msr - X2APIC_MSR_BASE
        return self._icr if index == ApicRegister.ICR_LOW else self._read(index)

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR of an x2APIC register; MsrFault where the processor raises #GP (SDM Vol. 3, 11.12.1.3)."""
        index = msr - X2APIC_MSR_BASE
        row = APIC_REGISTERS.get(index)
        if not self.x2apic or row is None or row.x2apic in (None, Access.READ):
            raise MsrFault(f"WRMSR {msr:#x}: no writable x2APIC register (IA32_APIC_BASE is {self._base:#x})")
        writable = row.writable | (0xFFFF_FFFF << 32 if index == ApicRegister.ICR_LOW else 0)
        if ApicRegister.LVT_TIMER <= index <= ApicRegister.LVT_ERROR:
            value &= ~LVT_READ_ONLY  # Linux and Xen write them as 1 when they hand the APIC back
        if value & ~writable:
            raise MsrFault(f"WRMSR {msr:#x}: reserved bits in {value:#x}")
        if index == ApicRegister.ICR_LOW:
            self._icr = value
            self._send()
        elif index == ApicRegister.SELF_IPI:
            self._icr = SHORTHAND_SELF << ICR_SHORTHAND_SHIFT | value
            self._send()
        else:
            self._write(index, value)

    def _read(self, index: int) -> int:
        if ApicRegister.ISR <= index < ApicRegister.ESR:
            vectors = (self.isr, self.tmr, self.irr)[index - ApicRegister.ISR >> 3]
            return vectors >> 32 * (index & 7) & 0xFFFF_FFFF
        if ApicRegister.LVT_TIMER <= index <= ApicRegister.LVT_ERROR:
            return self._lvt[index - ApicRegister.LVT_TIMER]
        reader = _READERS.get(index)
        return reader(self) if reader is not None else 0

    def _write(self, index: int, value: int) -> None:
        if ApicRegister.LVT_TIMER <= index <= ApicRegister.LVT_ERROR:
            self._write_lvt(index, value)
            return
        writer = _WRITERS.get(index)
        if writer is not None:
            writer(self, value)

    def _write_lvt(self, index: int, value: int) -> None:
        if not self._svr & SVR_ENABLE:
            value |= LVT_MASKED
        self._lvt[index - ApicRegister.LVT_TIMER] = value
        if index == ApicRegister.LVT_TIMER:
            self.timer.set_mode(TimerMode(value >> 17 & 3))
        elif index == ApicRegister.LVT_LINT0:
            self._refresh_extint()
            self._on_change()

    def _read_id(self) -> int:
        return self._id if self.x2apic else self._id << 24

    def _write_id(self, value: int) -> None:
        self._id = value >> 24

    def _write_tpr(self, value: int) -> None:
        self.tpr = value

    def _write_ldr(self, value: int) -> None:
        self._ldr = value

    def _write_dfr(self, value: int) -> None:
        self._dfr = value | 0x0FFF_FFFF

    def _write_svr(self, value: int) -> None:
        self._svr = value
        if not value & SVR_ENABLE:
            # Software disable masks every local vector (SDM Vol. 3, 11.4.7.2).
            self._lvt = [entry | LVT_MASKED for entry in self._lvt]
            self._refresh_extint()
        self._changed()

    def _write_esr(self, value: int) -> None:
        # The errors gathered since the last write become visible now.
        self._esr, self._errors = self._errors, 0

    def _write_icr_low(self, value: int) -> None:
        self._icr = self._icr & 0xFFFF_FFFF << 32 | value
        self._send()

    def _write_icr_high(self, value: int) -> None:
        self._icr = value << 32 | self._icr & 0xFFFF_FFFF

    def _read_version(self) -> int:
        return (LVT_COUNT - 1) << 16 | VERSION


_READERS: dict[int, Callable[[LocalApic], int]] = {
    ApicRegister.ID: LocalApic._read_id,
    ApicRegister.VERSION: LocalApic._read_version,
    ApicRegister.TPR: lambda apic: apic._tpr,
    ApicRegister.APR: lambda apic: apic.ppr,
    ApicRegister.PPR: lambda apic: apic.ppr,
    ApicRegister.LDR: lambda apic: apic._ldr,
    ApicRegister.DFR: lambda apic: apic._dfr,
    ApicRegister.SVR: lambda apic: apic._svr,
    ApicRegister.ESR: lambda apic: apic._esr,
    ApicRegister.ICR_LOW: lambda apic: apic._icr & 0xFFFF_FFFF,
    ApicRegister.ICR_HIGH: lambda apic: apic._icr >> 32,
    ApicRegister.TIMER_INITIAL_COUNT: lambda apic: apic.timer.initial_count,
    ApicRegister.TIMER_CURRENT_COUNT: lambda apic: apic.timer.current_count(),
    ApicRegister.TIMER_DIVIDE: lambda apic: apic.timer.divide,
}
_WRITERS: dict[int, Callable[[LocalApic, int], None]] = {
    ApicRegister.ID: LocalApic._write_id,
    ApicRegister.TPR: LocalApic._write_tpr,
    ApicRegister.EOI: lambda apic, value: apic.end_of_interrupt(),
    ApicRegister.LDR: LocalApic._write_ldr,
    ApicRegister.DFR: LocalApic._write_dfr,
    ApicRegister.SVR: LocalApic._write_svr,
    ApicRegister.ESR: LocalApic._write_esr,
    ApicRegister.ICR_LOW: LocalApic._write_icr_low,
    ApicRegister.ICR_HIGH: LocalApic._write_icr_high,
    ApicRegister.TIMER_INITIAL_COUNT: lambda apic, value: apic.timer.set_initial_count(value),
    ApicRegister.TIMER_DIVIDE: lambda apic, value: apic.timer.set_divide(value),
}
