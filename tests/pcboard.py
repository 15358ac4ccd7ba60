"""A PC whose clock tests turn by hand, and the port and register accesses that drive it."""

from __future__ import annotations

import io

from lzero.platform.clock import VirtualClock
from lzero.platform.memory import GuestMemory
from lzero.platform.pc import Pc


class Board:
    """A PC, its console output, and its time."""

    def __init__(self, memory_size: int = 16 << 20) -> None:
        self.time_ns = 0
        self.clock = VirtualClock(lambda: self.time_ns, tsc_hz=2_000_000_000)
        self.console = io.BytesIO()
        self.kicks = 0
        self.pc = Pc(GuestMemory(memory_size), self.clock, self.console, on_interrupt=self._kick)
        self.bus = self.pc.bus

    def _kick(self) -> None:
        self.kicks += 1

    def outb(self, port: int, *values: int) -> None:
        """OUT, one byte after the other."""
        for value in values:
            self.bus.port_write(port, 1, value)

    def inb(self, port: int) -> int:
        """IN, one byte."""
        return self.bus.port_read(port, 1)

    def advance(self, ns: int) -> None:
        """Let guest time pass, stopping at each timer as a run loop would."""
        end = self.time_ns + ns
        while (deadline := self.clock.next_deadline_ns()) is not None and deadline <= end:
            self.time_ns = max(self.time_ns, deadline)
            self.clock.run_due()
        self.time_ns = end

    def skip(self, ns: int) -> None:
        """Let guest time jump, as when nobody ran for long: due timers fire once, at the end."""
        self.time_ns += ns
        self.clock.run_due()

    def set_up_pics(self) -> None:
        """Vectors 0x20 and 0x28, everything unmasked, as an operating system begins."""
        for port, vector, cascade in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
            self.outb(port, 0x11)
            self.outb(port + 1, vector, cascade, 1, 0)

    def ioapic_write(self, index: int, value: int) -> None:
        """Write an I/O APIC register."""
        self.bus.mmio_write(0xFEC00000, 4, index)
        self.bus.mmio_write(0xFEC00010, 4, value)

    def ioapic_read(self, index: int) -> int:
        """Read an I/O APIC register."""
        self.bus.mmio_write(0xFEC00000, 4, index)
        return self.bus.mmio_read(0xFEC00010, 4)

    def redirect(self, pin: int, entry: int) -> None:
        """Write a redirection entry's low half."""
        self.ioapic_write(0x10 + 2 * pin, entry)

    def apic_write(self, offset: int, value: int) -> None:
        """Write a local APIC register by MMIO."""
        self.bus.mmio_write(0xFEE00000 + offset, 4, value)

    def apic_read(self, offset: int) -> int:
        """Read a local APIC register by MMIO."""
        return self.bus.mmio_read(0xFEE00000 + offset, 4)

    def take_interrupts(self) -> list[int]:
        """Vectors the processor would receive now, without any EOI."""
        vectors = []
        while self.pc.pending_interrupt():
            vectors.append(self.pc.acknowledge_interrupt())
        return vectors
