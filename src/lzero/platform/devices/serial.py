"""A 16550A serial port at 0x3F8, IRQ 4: the console.

Characters leave at once: the transmitter is always empty by the time software looks. The receiver has the real FIFO;
what the host sends faster than the guest reads waits outside, so nothing is lost and no overrun is reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.registers import Access, RegisterRow

__all__ = ["COM1_BASE", "COM1_IRQ", "REGISTERS", "Serial16550"]

COM1_BASE = 0x3F8
COM1_IRQ = 4
FIFO_SIZE = 16
SHEET = "TI PC16550D"

# Offsets count from the port's base.
REGISTERS = (
    RegisterRow("RBR", 0, Access.READ, f"{SHEET} 8.1", "when LCR.DLAB is 0"),
    RegisterRow("THR", 0, Access.WRITE, f"{SHEET} 8.1", "when LCR.DLAB is 0"),
    RegisterRow("DLL", 0, Access.READ_WRITE, f"{SHEET} 8.3", "when LCR.DLAB is 1"),
    RegisterRow("IER", 1, Access.READ_WRITE, f"{SHEET} 8.7", "when LCR.DLAB is 0"),
    RegisterRow("DLM", 1, Access.READ_WRITE, f"{SHEET} 8.3", "when LCR.DLAB is 1"),
    RegisterRow("IIR", 2, Access.READ, f"{SHEET} 8.6"),
    RegisterRow("FCR", 2, Access.WRITE, f"{SHEET} 8.5"),
    RegisterRow("LCR", 3, Access.READ_WRITE, f"{SHEET} 8.2"),
    RegisterRow("MCR", 4, Access.READ_WRITE, f"{SHEET} 8.8"),
    RegisterRow("LSR", 5, Access.READ, f"{SHEET} 8.4", "factory-test writes are ignored"),
    RegisterRow("MSR", 6, Access.READ, f"{SHEET} 8.9"),
    RegisterRow("SCR", 7, Access.READ_WRITE, f"{SHEET} 8.10"),
)


class Ier(IntEnum):
    """Interrupt enable register."""

    RECEIVED_DATA = 1
    TRANSMITTER_EMPTY = 2
    LINE_STATUS = 4
    MODEM_STATUS = 8


class Lcr(IntEnum):
    """Line control register; only the bit with a consequence here."""

    DIVISOR_LATCH_ACCESS = 0x80


class Mcr(IntEnum):
    """Modem control register."""

    DTR = 1
    RTS = 2
    OUT1 = 4
    OUT2 = 8
    LOOPBACK = 0x10


class Lsr(IntEnum):
    """Line status register."""

    DATA_READY = 1
    OVERRUN = 2
    THR_EMPTY = 0x20
    TRANSMITTER_EMPTY = 0x40


class Msr(IntEnum):
    """Modem status register."""

    DELTA_CTS = 1
    DELTA_DSR = 2
    TRAILING_RI = 4
    DELTA_DCD = 8
    CTS = 0x10
    DSR = 0x20
    RI = 0x40
    DCD = 0x80


class Iir(IntEnum):
    """Interrupt identification, highest priority first."""

    LINE_STATUS = 6
    RECEIVED_DATA = 4
    CHARACTER_TIMEOUT = 0xC
    TRANSMITTER_EMPTY = 2
    MODEM_STATUS = 0
    NONE = 1


TRIGGER_LEVELS = (1, 4, 8, 14)
"""Receiver FIFO trigger level by FCR bits 7:6."""
LOOPED = 0x100
"""Marks a character in the FIFO that came by loopback, not over the line."""
FCR_ENABLE, FCR_CLEAR_RECEIVER, FCR_CLEAR_TRANSMITTER = 1, 2, 4
IIR_FIFOS_ENABLED = 0xC0
MCR_WRITABLE = 0x1F
# Plain numbers for the two registers that a polling console reads and writes for every character.
LSR_IDLE = int(Lsr.THR_EMPTY | Lsr.TRANSMITTER_EMPTY)
LSR_DATA_READY = int(Lsr.DATA_READY)
IDLE_MODEM = Msr.CTS | Msr.DSR | Msr.DCD
LINES = Msr.CTS | Msr.DSR | Msr.RI | Msr.DCD


_BYTES = tuple(bytes((value,)) for value in range(256))


class Serial16550:
    """One UART.

    Parameters
    ----------
    irq:
        Drives the interrupt line.
    transmit:
        Receives each character as a one-byte ``bytes``.
    base:
        First of the eight ports.
    """

    def __init__(self, irq: Callable[[bool], None], transmit: Callable[[bytes], object], base: int = COM1_BASE) -> None:
        self._irq = irq
        self._transmit = transmit
        self._base = base
        self._receive: deque[int] = deque()
        self._buffer = 0
        self._waiting: deque[int] = deque()
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._divisor = 12
        self._fifo_enabled = False
        self._trigger = 1
        self._overrun = False
        self._thr_interrupt = False
        self._character_timeout = False
        self._msr = IDLE_MODEM
        self._line = False
        self._redirected = False
        self._line_open = True

    def attach(self, bus: Bus) -> None:
        """Claim the eight ports."""
        handlers = (
            (self._read_data, self._write_data),
            (self._read_ier, self._write_ier),
            (self._read_iir, self._write_fcr),
            (lambda: self._lcr, self._write_lcr),
            (lambda: self._mcr, self._write_mcr),
            (self._read_lsr, None),
            (self._read_msr, None),
            (lambda: self._scr, self._write_scr),
        )
        for offset, (read, write) in enumerate(handlers):
            bus.register_byte_port(self._base + offset, read, write)

    def feed(self, data: bytes) -> None:
        """Characters from the host: the guest receives them as fast as it reads."""
        self._waiting.extend(data)
        self._refill()

    @property
    def input_waiting(self) -> int:
        """Characters the guest has not read yet."""
        return len(self._waiting) + len(self._receive)

    # Data and divisor

    def _read_data(self) -> int:
        if self._lcr & Lcr.DIVISOR_LATCH_ACCESS:
            return self._divisor & 0xFF
        self._character_timeout = False
        # An empty FIFO reads as 0; without FIFOs the buffer keeps the last character.
        value = 0 if self._fifo_enabled else self._buffer
        if self._receive:
            value = self._receive.popleft() & 0xFF
        self._refill()
        return value

    def _accept(self, value: int) -> None:
        """A character arrives, and there is room."""
        self._receive.append(value)
        if not self._fifo_enabled:
            self._buffer = value & 0xFF

    def _write_data(self, value: int) -> None:
        if self._redirected:
            self._write_elsewhere(value)
        elif self._ier:
            self._send(value, self._transmit_byte)
        else:
            # The console of a kernel that polls: nothing to tell anybody.
            self._transmit(_BYTES[value])
            self._thr_interrupt = True

    def _transmit_byte(self, value: int) -> None:
        self._transmit(_BYTES[value])

    def _write_elsewhere(self, value: int) -> None:
        """The data register while DLAB or loopback is on."""
        if self._lcr & Lcr.DIVISOR_LATCH_ACCESS:
            self._divisor = self._divisor & 0xFF00 | value
        else:
            self._send(value, self._loop_back)

    def _send(self, value: int, sink: Callable[[int], None]) -> None:
        """The holding register is full for a moment: the line falls and rises, or an edge-triggered controller would
        lose the interrupt of the character after this one.
        """
        self._thr_interrupt = False
        self._update()
        sink(value)
        self._thr_interrupt = True
        self._update()

    def _loop_back(self, value: int) -> None:
        if len(self._receive) >= self._capacity:
            self._overrun = True
            if not self._fifo_enabled:
                self._receive.clear()
                self._accept(value | LOOPED)
        else:
            self._accept(value | LOOPED)
        self._character_timeout = True

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if self._fifo_enabled else 1

    def _give_back(self) -> None:
        """Take what the host sent out of the FIFO: a driver that probes, clears and starts must not lose piped
        input.
        """
        self._waiting.extendleft(c for c in reversed(self._receive) if not c & LOOPED)
        self._receive = deque(c for c in self._receive if c & LOOPED)

    def _refill(self) -> None:
        if self._line_open:
            while self._waiting and len(self._receive) < self._capacity:
                self._accept(self._waiting.popleft())
        # Whatever stays below the trigger level would time out after four character times; no guest can tell that it
        # happens at once.
        self._character_timeout = bool(self._receive)
        self._update()

    # Interrupts

    def _read_ier(self) -> int:
        return self._divisor >> 8 if self._lcr & Lcr.DIVISOR_LATCH_ACCESS else self._ier

    def _write_ier(self, value: int) -> None:
        if self._lcr & Lcr.DIVISOR_LATCH_ACCESS:
            self._divisor = self._divisor & 0xFF | value << 8
            return
        enabled = value & ~self._ier
        self._ier = value & 0xF
        if enabled & Ier.TRANSMITTER_EMPTY:
            # Enabling it while the holding register is empty raises it (drivers test for that).
            self._thr_interrupt = True
        self._update()

    def _identify(self) -> Iir:
        ier = self._ier
        if ier & Ier.LINE_STATUS and self._overrun:
            return Iir.LINE_STATUS
        if ier & Ier.RECEIVED_DATA and self._receive:
            if not self._fifo_enabled or len(self._receive) >= self._trigger:
                return Iir.RECEIVED_DATA
            if self._character_timeout:
                return Iir.CHARACTER_TIMEOUT
        if ier & Ier.TRANSMITTER_EMPTY and self._thr_interrupt:
            return Iir.TRANSMITTER_EMPTY
        if ier & Ier.MODEM_STATUS and self._msr & 0xF:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _read_iir(self) -> int:
        cause = self._identify()
        if cause is Iir.TRANSMITTER_EMPTY:
            self._thr_interrupt = False
            self._update()
        return cause | (IIR_FIFOS_ENABLED if self._fifo_enabled else 0)

    def _update(self) -> None:
        # PC boards gate the interrupt with OUT2; virtual machines do not, and small kernels written for them never
        # set it.
        self._set_line(self._identify() is not Iir.NONE)

    def _set_line(self, level: bool) -> None:
        if level != self._line:
            self._line = level
            self._irq(level)

    # Control and status

    def _write_fcr(self, value: int) -> None:
        enabled = bool(value & FCR_ENABLE)
        # Switching the FIFOs on or off clears both.
        switched = enabled != self._fifo_enabled
        if switched or value & FCR_CLEAR_RECEIVER:
            self._give_back()
            self._receive.clear()
        if switched or value & FCR_CLEAR_TRANSMITTER:
            self._thr_interrupt = True
        self._fifo_enabled = enabled
        self._trigger = TRIGGER_LEVELS[value >> 6] if enabled else 1
        self._refill()

    def _write_lcr(self, value: int) -> None:
        self._lcr = value
        self._redirect()

    def _redirect(self) -> None:
        """Whether a write to the data register goes anywhere but out."""
        self._redirected = bool(self._lcr & Lcr.DIVISOR_LATCH_ACCESS or self._mcr & Mcr.LOOPBACK)

    def _write_scr(self, value: int) -> None:
        self._scr = value

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & MCR_WRITABLE
        # The host sends while RTS is on (and before any driver has touched this register, for kernels that never do).
        # In loopback the receiver is disconnected from the line.
        self._line_open = self._mcr & (Mcr.RTS | Mcr.LOOPBACK) == Mcr.RTS
        if not self._line_open:
            self._give_back()
        self._redirect()
        self._set_modem_lines(self._looped_lines() if self._mcr & Mcr.LOOPBACK else IDLE_MODEM)
        self._refill()

    def _looped_lines(self) -> int:
        """In loopback RTS, DTR, OUT1 and OUT2 appear as CTS, DSR, RI and DCD."""
        pairs = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD))
        return sum(status for control, status in pairs if self._mcr & control)

    def _set_modem_lines(self, lines: int) -> None:
        before = self._msr & LINES
        changed = before ^ lines
        deltas = self._msr & 0xF | (changed & (Msr.CTS | Msr.DSR | Msr.DCD)) >> 4
        if before & Msr.RI and not lines & Msr.RI:
            deltas |= Msr.TRAILING_RI
        self._msr = lines | deltas

    def _read_lsr(self) -> int:
        value = LSR_IDLE
        if self._receive:
            value |= LSR_DATA_READY
        if self._overrun:
            value |= Lsr.OVERRUN
            self._overrun = False
            self._update()
        return value

    def _read_msr(self) -> int:
        value = self._msr
        if value & 0xF:
            self._msr = value & LINES
            self._update()
        return value
