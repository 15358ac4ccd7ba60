"""The board: every device, wired as on a PC with one processor.

Interrupt lines are numbered as ACPI's global system interrupts. An ISA interrupt reaches both the 8259A pair and the
I/O APIC; IRQ 0 is input 2 there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lzero.platform.bus import Bus
from lzero.platform.clock import Clock
from lzero.platform.devices.debug_exit import DebugExit
from lzero.platform.devices.fw_cfg import FwCfg, Key
from lzero.platform.devices.keyboard import KeyboardController
from lzero.platform.devices.pci import PciHost
from lzero.platform.devices.pit import Pit8254
from lzero.platform.devices.port61 import Port61
from lzero.platform.devices.power import PowerManagement
from lzero.platform.devices.reset import ResetPorts
from lzero.platform.devices.rtc import Rtc
from lzero.platform.devices.serial import COM1_IRQ, Serial16550
from lzero.platform.devices.test_device import TestDevice
from lzero.platform.exits import ExitKind, ExitRequest
from lzero.platform.firmware import acpi, mptable
from lzero.platform.interrupts.ioapic import PINS, IoApic
from lzero.platform.interrupts.lapic import LocalApic
from lzero.platform.interrupts.pic import PicPair
from lzero.platform.loaders import EntryState, LoadOptions
from lzero.platform.loaders import load as load_image
from lzero.platform.loaders.images import read_image
from lzero.platform.memory import GuestMemory

__all__ = ["Console", "Pc"]

TIMER_IRQ, KEYBOARD_IRQ, RTC_IRQ = 0, 1, 8
TIMER_GSI = 2
ISA_IRQS = 16
DELAY_PORTS = (0x80, 0xED)
"""Ports that software writes to wait a microsecond: the POST code and a port that never had a device."""


class Console(Protocol):
    """Where the guest's console output goes: any binary stream."""

    def write(self, data: bytes, /) -> object:
        """Take bytes."""
        ...


class Pc:
    """The platform around one processor.

    The run loop looks at ``interrupt_pending`` and ``nmi_pending`` (or the methods of the same purpose) at every
    exit, and at ``exit_request`` after port writes.

    Parameters
    ----------
    memory:
        The guest's RAM.
    clock:
        Guest time; the only one any device knows.
    console:
        Receives the serial port's output byte by byte.
    on_interrupt:
        Called when an interrupt or an NMI has become deliverable that was not before: wake or stop the
        processor.
    physical_address_bits:
        MAXPHYADDR of the processor.
    """

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        console: Console,
        on_interrupt: Callable[[], None] | None = None,
        physical_address_bits: int = 39,
    ) -> None:
        self.memory = memory
        self.clock = clock
        self.bus = Bus()
        self.on_interrupt = on_interrupt
        self.exit_request: ExitRequest | None = None
        self.interrupt_pending = False
        self.nmi_pending = False
        self._attention = False
        self._pic_output = False
        # The local APIC reports changes while it is being built, before the rest of the board exists.
        self._built = False
        self.ioapic = IoApic(lambda message: self.lapic.receive(message), self._watch_timer)
        self.lapic = LocalApic(
            clock,
            self.bus,
            on_change=self._update,
            on_eoi=self.ioapic.end_of_interrupt,
            on_init=self._init,
            physical_address_bits=physical_address_bits,
        )
        self.pit = Pit8254(clock, self._timer_edge)
        self.pic = PicPair(self._set_pic_output, self.pit.channels[0].catch_up, self._watch_timer)
        self.port61 = Port61(clock, self.pit.channels[2])
        self.rtc = Rtc(clock, lambda level: self.irq(RTC_IRQ, level))
        self.serial = Serial16550(lambda level: self.irq(COM1_IRQ, level), console.write)
        self.keyboard = KeyboardController(lambda level: self.irq(KEYBOARD_IRQ, level), self._request_exit)
        self.fw_cfg = FwCfg(memory)
        self.debug_exit = DebugExit(self._request_exit)
        self.reset_ports = ResetPorts(self._request_exit)
        self.power = PowerManagement(clock, self._request_exit)
        self.pci = PciHost()
        self.test_device = TestDevice(self.irq)
        self._built = True
        self._attach()
        self._install_firmware_tables()
        self.lapic.set_firmware_state()
        self._watch_timer()

    def _attach(self) -> None:
        devices = (
            self.ioapic,
            self.pic,
            self.pit,
            self.port61,
            self.rtc,
            self.serial,
            self.keyboard,
            self.fw_cfg,
            self.debug_exit,
            self.reset_ports,
            self.power,
            self.pci,
            self.test_device,
        )
        for device in devices:
            device.attach(self.bus)
        for port in DELAY_PORTS:
            self.bus.register_byte_port(port, lambda: 0xFF, lambda value: None)

    def _install_firmware_tables(self) -> None:
        """What firmware leaves in memory and CMOS: ACPI and MP tables, BIOS data, memory sizes."""
        tables = acpi.install(self.memory)
        self.rsdp_address = tables.rsdp_address
        self.fw_cfg.add_file("etc/acpi/rsdp", tables.rsdp)
        self.fw_cfg.add_file("etc/acpi/tables", tables.tables)
        mptable.install(self.memory)
        self.rtc.describe_memory(self.memory)

    def load(self, image: Path, options: LoadOptions | None = None) -> EntryState:
        """Load a guest's image, and tell fw_cfg about it.

        Raises
        ------
        ImageError
            As :func:`lzero.platform.loaders.load`.
        """
        options = replace(options or LoadOptions(), rsdp=self.rsdp_address)
        state = load_image(image, self.memory, options)
        command_line = options.encoded_command_line + b"\0"
        self.fw_cfg.add_number(Key.COMMAND_LINE_SIZE, len(command_line), 4)
        self.fw_cfg.add(Key.COMMAND_LINE_DATA, command_line)
        if options.initrd is not None:
            contents = read_image(options.initrd, "initrd")
            self.fw_cfg.add_number(Key.INITRD_SIZE, len(contents), 4)
            self.fw_cfg.add(Key.INITRD_DATA, contents)
        return state

    # Interrupts

    def irq(self, gsi: int, level: bool) -> None:
        """Drive a global system interrupt, 0 to 23."""
        if gsi < ISA_IRQS:
            self.pic.set_input(gsi, level)
        pin = TIMER_GSI if gsi == TIMER_IRQ else gsi
        if gsi != TIMER_GSI and pin < PINS:
            self.ioapic.set_input(pin, level)

    def _timer_edge(self, late: bool) -> None:
        # In its periodic modes the counter's output is high but for a moment: a short low before each edge. An edge
        # that came while both controllers masked it is in the 8259A's latch; the I/O APIC has lost it.
        drive = self.pic.set_input if late else self.irq
        drive(TIMER_IRQ, False)
        drive(TIMER_IRQ, True)

    def _watch_timer(self) -> None:
        """Without this a guest that halts with the timer masked would be woken 18 times a second for nothing, for
        ever.
        """
        masked = self.pic.first.imr & 1 << TIMER_IRQ and self.ioapic.is_masked(TIMER_GSI)
        self.pit.channels[0].watch(not masked)

    def _set_pic_output(self, level: bool) -> None:
        self._pic_output = level
        self.lapic.set_lint0(level)

    def _update(self) -> None:
        """Something about interrupts changed: refresh what the run loop reads, and wake it if there is more to do
        than before.
        """
        if not self._built:
            return
        lapic = self.lapic
        self.interrupt_pending = pending = lapic.deliverable or (self._pic_output and lapic.accepts_extint)
        self.nmi_pending = lapic.nmi_pending
        attention = pending or lapic.nmi_pending
        rising = attention and not self._attention
        self._attention = attention
        if rising and self.on_interrupt is not None:
            self.on_interrupt()

    def pending_interrupt(self) -> bool:
        """Whether a maskable interrupt waits for the processor."""
        return self.interrupt_pending

    def acknowledge_interrupt(self) -> int:
        """The processor accepts an interrupt: its vector. The local APIC's come first, then the 8259A's."""
        if self.lapic.deliverable:
            return self.lapic.acknowledge()
        if self._pic_output and self.lapic.accepts_extint:
            return self.pic.acknowledge()
        return self.lapic.acknowledge()

    def acknowledge_nmi(self) -> None:
        """The processor accepts the pending NMI."""
        self.lapic.nmi_pending = False
        self._update()

    # The outside

    def feed_console(self, data: bytes) -> None:
        """Characters typed at the console."""
        self.serial.feed(data)

    def _init(self) -> None:
        # The only processor would start again at the reset vector, where a PC has its firmware: a reset.
        self._request_exit(ExitRequest(ExitKind.RESET, 0, "INIT IPI to itself, local APIC"))

    def _request_exit(self, request: ExitRequest) -> None:
        if self.exit_request is None:
            self.exit_request = request
