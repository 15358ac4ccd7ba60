"""Two cascaded 8259A interrupt controllers and their edge/level control registers."""

from __future__ import annotations

from collections.abc import Callable

from lzero.platform.bus import Bus
from lzero.platform.registers import Access, RegisterRow

__all__ = ["Pic8259", "PicPair", "REGISTERS"]

SHEET = "Intel 8259A"

# Offsets are ports of the first chip; the second chip's are 0x80 higher (ELCR: one higher).
REGISTERS = (
    RegisterRow("ICW1", 0x20, Access.WRITE, f"{SHEET}, Initialization Command Words", "bit 4 set"),
    RegisterRow("OCW2", 0x20, Access.WRITE, f"{SHEET}, Operation Control Word 2", "bits 4:3 = 00"),
    RegisterRow("OCW3", 0x20, Access.WRITE, f"{SHEET}, Operation Control Word 3", "bits 4:3 = 01"),
    RegisterRow("IRR/ISR/POLL", 0x20, Access.READ, f"{SHEET}, Reading the 8259A Status", "as OCW3 chose"),
    RegisterRow("ICW2..ICW4", 0x21, Access.WRITE, f"{SHEET}, Initialization Command Words", "after ICW1"),
    RegisterRow("IMR (OCW1)", 0x21, Access.READ_WRITE, f"{SHEET}, Operation Control Word 1"),
    RegisterRow("ELCR", 0x4D0, Access.READ_WRITE, "Intel PIIX4 (82371AB) 4.2.5, ELCR1/ELCR2", "1 = level"),
)

CASCADE = 2
"""Input of the first chip that the second one drives."""
SPURIOUS = 7
ICW1_INIT, ICW1_LEVEL, ICW1_SINGLE, ICW1_NEED_ICW4 = 0x10, 8, 2, 1
ICW4_SPECIAL_FULLY_NESTED, ICW4_AUTO_EOI = 0x10, 2
OCW3_SELECT, OCW3_SMM_ENABLE, OCW3_SMM_ON, OCW3_POLL, OCW3_READ_ENABLE, OCW3_READ_ISR = 8, 0x40, 0x20, 4, 2, 1
POLL_INTERRUPT = 0x80
ELCR_MASKS = (0xF8, 0xDE)
"""Writable bits: the timer, the keyboard, the cascade, the RTC and the FPU are always edge-triggered."""


def _nothing() -> None:
    """The hook of a chip whose inputs nobody drives lazily."""


class Pic8259:
    """One 8259A.

    Parameters
    ----------
    output:
        Drives the INT pin.
    cascade:
        Mask of inputs that have another chip behind them (0 for the second chip).
    before_access:
        Called before software reads or writes a register: whoever drives an input lazily brings it up to date.
    after_write:
        Called after software wrote a register: masks may have changed.
    """

    def __init__(
        self,
        output: Callable[[bool], None],
        cascade: int = 0,
        before_access: Callable[[], None] | None = None,
        after_write: Callable[[], None] | None = None,
    ) -> None:
        self._output = output
        self._cascade = cascade
        self._before_access = before_access or _nothing
        self._after_write = after_write or _nothing
        self.elcr = 0
        self._reset()
        self.imr = 0xFF  # as firmware leaves it

    def _reset(self) -> None:
        self.irr = 0
        self.isr = 0
        self.imr = 0
        self._levels = 0
        self._lowest = 7
        self._base = 0
        self._icw_step = 0
        self._need_icw4 = False
        self._single = False
        self._read_isr = False
        self._poll = False
        self._special_mask = False
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._special_fully_nested = False
        self._level_mode = False

    # Inputs and priority

    def set_input(self, n: int, level: bool) -> None:
        """Drive input ``n``. An edge is latched; a level-triggered request lasts as long as its line."""
        bit = 1 << n
        if level:
            if self._is_level(bit) or not self._levels & bit:
                self.irr |= bit
            self._levels |= bit
        else:
            self._levels &= ~bit
            if self._is_level(bit):
                self.irr &= ~bit
        self._update()

    def _is_level(self, bit: int) -> bool:
        return self._level_mode or bool(self.elcr & bit)

    def _highest(self, mask: int) -> int | None:
        """The input of highest priority among ``mask``; priorities rotate."""
        for i in range(1, 9):
            n = (self._lowest + i) & 7
            if mask & 1 << n:
                return n
        return None

    def _rank(self, n: int) -> int:
        return (n - self._lowest - 1) & 7

    def request(self) -> int | None:
        """The input that would be served now."""
        candidate = self._highest(self.irr & ~self.imr)
        if candidate is None:
            return None
        in_service = self.isr
        if self._special_mask:
            # A masked level in service inhibits nobody else.
            in_service &= ~self.imr
        if self._special_fully_nested:
            # The second chip may interrupt its own service routine.
            in_service &= ~(self._cascade & 1 << candidate)
        serving = self._highest(in_service)
        if serving is not None and self._rank(serving) <= self._rank(candidate):
            return None
        return candidate

    def _update(self) -> None:
        self._output(self.request() is not None)

    # Acknowledge and end of interrupt

    def acknowledge(self) -> tuple[int, int]:
        """INTA: the input now in service and its vector; a request that went away gives the spurious input 7."""
        n = self.request()
        if n is None:
            return SPURIOUS, self._base | SPURIOUS
        bit = 1 << n
        if not self._is_level(bit):
            self.irr &= ~bit
        if self._auto_eoi:
            if self._rotate_on_auto_eoi:
                self._lowest = n
        else:
            self.isr |= bit
        # INT falls with INTA and rises again if more is requested: the first chip must see an edge from the second.
        self._output(False)
        self._update()
        return n, self._base | n

    def _end_of_interrupt(self, n: int | None, rotate: bool) -> None:
        if n is None:
            return
        self.isr &= ~(1 << n)
        if rotate:
            self._lowest = n

    # Registers

    def read_command(self) -> int:
        """Port A0=0: IRR, ISR, or the poll byte."""
        self._before_access()
        if self._poll:
            self._poll = False
            n = self.request()
            if n is None:
                return 0
            self.acknowledge()
            return POLL_INTERRUPT | n
        return self.isr if self._read_isr else self.irr

    def write_command(self, value: int) -> None:
        """Port A0=0: ICW1, OCW2 or OCW3 by bits 4 and 3."""
        self._before_access()
        if value & ICW1_INIT:
            levels = self._levels
            self._reset()
            self._levels = levels
            self._level_mode = bool(value & ICW1_LEVEL)
            self._single = bool(value & ICW1_SINGLE)
            self._need_icw4 = bool(value & ICW1_NEED_ICW4)
            self._icw_step = 2
            # The edge latches are cleared, lines that stay high by level request again.
            self.irr = levels & (0xFF if self._level_mode else self.elcr)
        elif value & OCW3_SELECT:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._update()
        self._after_write()

    def _write_ocw2(self, value: int) -> None:
        rotate, specific, eoi = bool(value & 0x80), bool(value & 0x40), bool(value & 0x20)
        n = value & 7
        if eoi:
            self._end_of_interrupt(n if specific else self._nonspecific(), rotate)
        elif specific:
            if rotate:
                self._lowest = n
        else:
            self._rotate_on_auto_eoi = rotate

    def _nonspecific(self) -> int | None:
        # In special mask mode a masked level's ISR bit is not cleared by a non-specific EOI.
        return self._highest(self.isr & ~self.imr if self._special_mask else self.isr)

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_SMM_ENABLE:
            self._special_mask = bool(value & OCW3_SMM_ON)
        if value & OCW3_POLL:
            self._poll = True
        elif value & OCW3_READ_ENABLE:
            self._read_isr = bool(value & OCW3_READ_ISR)

    def read_data(self) -> int:
        """Port A0=1: the interrupt mask (or the poll byte, if one is due)."""
        return self.read_command() if self._poll else self.imr

    def write_data(self, value: int) -> None:
        """Port A0=1: the next ICW after ICW1, otherwise the interrupt mask."""
        self._before_access()
        if self._icw_step == 2:
            self._base = value & 0xF8
            self._icw_step = 3 if not self._single else self._after_icw3()
        elif self._icw_step == 3:
            self._icw_step = self._after_icw3()
        elif self._icw_step == 4:
            self._special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
            self._auto_eoi = bool(value & ICW4_AUTO_EOI)
            self._icw_step = 0
        else:
            self.imr = value
        self._update()
        self._after_write()

    def _after_icw3(self) -> int:
        return 4 if self._need_icw4 else 0


class PicPair:
    """The PC's arrangement: inputs 0–7 on the first chip, 8–15 on the second, which drives input 2 of the first.

    Parameters
    ----------
    output:
        Drives the INT line towards the processor (the local APIC's LINT0).
    before_access, after_write:
        Hooks of the first chip, where the timer is.
    """

    def __init__(
        self,
        output: Callable[[bool], None],
        before_access: Callable[[], None] | None = None,
        after_write: Callable[[], None] | None = None,
    ) -> None:
        self.first = Pic8259(output, 1 << CASCADE, before_access, after_write)
        self.second = Pic8259(lambda level: self.first.set_input(CASCADE, level))

    def attach(self, bus: Bus) -> None:
        """Claim 0x20, 0x21, 0xA0, 0xA1 and the ELCRs."""
        for port, chip in ((0x20, self.first), (0xA0, self.second)):
            bus.register_byte_port(port, chip.read_command, chip.write_command)
            bus.register_byte_port(port + 1, chip.read_data, chip.write_data)
        for index, chip in enumerate((self.first, self.second)):
            bus.register_byte_port(0x4D0 + index, self._elcr_reader(chip), self._elcr_writer(chip, ELCR_MASKS[index]))

    @staticmethod
    def _elcr_reader(chip: Pic8259) -> Callable[[], int]:
        return lambda: chip.elcr

    @staticmethod
    def _elcr_writer(chip: Pic8259, mask: int) -> Callable[[int], None]:
        def write(value: int) -> None:
            chip.elcr = value & mask

        return write

    def set_input(self, irq: int, level: bool) -> None:
        """Drive ISA interrupt 0–15; input 2 belongs to the cascade and is ignored."""
        if irq >= 8:
            self.second.set_input(irq - 8, level)
        elif irq != CASCADE:
            self.first.set_input(irq, level)

    def acknowledge(self) -> int:
        """The processor's two INTA cycles: the vector."""
        n, vector = self.first.acknowledge()
        return self.second.acknowledge()[1] if n == CASCADE else vector
